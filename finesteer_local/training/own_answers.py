"""The model's own answers to prompts of the recipe, from which its answers' gate learns.

Nobody writes harmful answers: the model gives them, they are judged and read, and only hidden states are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.judges.whole import declines
from finesteer_local.runtime.harvest import Reader
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.training.data import FOREIGN, PAGE, PLAIN, WRAPPED, Prompt, TrainingData, in_drawn_order, in_turn
from finesteer_local.training.effort import MIN_WATCHED, Deadline, portions
from finesteer_local.training.model_data import ModelData, Turns, answer_tokens, whole_answers

TOKENS = 128  # of an answer, at most
TEMPERATURE = 0.8  # that of `chat`
BLOCK = 32  # answers at a time, and between two looks at the clock
LONGEST = 1500  # letters of a prompt: longer ones take their time to read, and their answers are like others
SHARES = {PLAIN: 0.4, WRAPPED: 0.35, FOREIGN: 0.2, PAGE: 0.05}
"""By the prompt's form. Wrapped ones are many more than in the recipe: more of them are answered."""


class AskedPrompt(NamedTuple):
    """A prompt that the model answers, and whether it needs intervention."""

    needs: bool
    prompt: Prompt


@dataclass(frozen=True)
class OwnAnswers:
    """Answers that the model gave, unsteered.

    Attributes:
        asked: the prompts.
        declined: whether each answer declines, (n,).
        states: hidden states of the answers' tokens that the gate reads.
    """

    asked: Sequence[AskedPrompt]
    declined: NDArray[np.bool_]
    states: Turns

    @property
    def needs(self) -> NDArray[np.bool_]:
        """Whether each prompt needs intervention, (n,)."""
        return np.array([each.needs for each in self.asked], bool)

    @property
    def complies(self) -> NDArray[np.bool_]:
        """Whether each answer does what should not be done, (n,)."""
        return self.needs & ~self.declined


def prompts_to_answer(data: TrainingData, n: int) -> list[AskedPrompt]:
    """`n` prompts of the recipe, half of which need intervention; fewer where it has fewer.

    Forms come by `SHARES`, kinds and families in turn, and of those that need none as many about what is refused
    otherwise as ordinary ones. Fewer prompts are the first ones of more.
    """
    kinds = {prompt.kind for prompt in data.positive} - {""}
    near = [prompt for prompt in data.contrast if prompt.kind in kinds]
    ordinary = [prompt for prompt in data.contrast if prompt.kind not in kinds]
    contrast = in_turn([_balanced(near), _balanced(ordinary)])
    pairs = zip(_balanced(data.positive), contrast, strict=False)
    return [each for wanted, other in pairs for each in (AskedPrompt(True, wanted), AskedPrompt(False, other))][:n]


def _balanced(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts that are not too long: forms at their shares from the beginning on, families or kinds in turn."""
    groups: dict[str, dict[str, list[Prompt]]] = {}
    for prompt in in_drawn_order([prompt for prompt in prompts if len(prompt.text) <= LONGEST], "answer"):
        groups.setdefault(prompt.form, {}).setdefault(prompt.family or prompt.kind, []).append(prompt)
    left = {form: iter(in_turn(list(kinds.values()))) for form, kinds in groups.items()}
    taken, found = dict.fromkeys(left, 0), []
    while left:
        form = min(left, key=lambda each: (taken[each] + 1) / SHARES[each])
        taken[form] += 1
        following = next(left[form], None)
        if following is None:
            del left[form]
        else:
            found.append(following)
    return found


def own_answers(
    model_data: ModelData,
    asked: Sequence[AskedPrompt],
    layer: int,
    *,
    every: int,
    deadline: Deadline,
    keep: bool = False,
    stage: str = "watching answers",
) -> OwnAnswers:
    """Let the model answer the prompts, and read every `every`-th token of its answers at `layer`.

    As many as there is time for, `MIN_WATCHED` at least; what was answered before is known (`ModelData.folder`).

    Args:
        keep: an interruption ends the asking, and what has been answered by then is learnt from.
    """
    llama, n = model_data.llama, 0
    llama.set_profiles([])
    reader = llama.reader([layer])
    found: list[Mapping[str, NDArray[np.float16]]] = []
    try:
        for n, block in portions(asked, BLOCK, deadline, least=MIN_WATCHED):
            file = model_data.folder / f"own-answers-{layer}-{every}-{TOKENS}-{n:05}.npz"
            found.append(_known(file) or _answered(model_data, block, reader, every, n, file))
            model_data.progress(stage, n, len(asked))
    except KeyboardInterrupt:
        if not keep or sum(len(each["lengths"]) for each in found) < MIN_WATCHED:
            raise
    finally:
        reader.close()
    lengths = np.concatenate([each["lengths"] for each in found])
    return OwnAnswers(
        asked[: len(lengths)],
        np.concatenate([each["declined"] for each in found]).astype(bool),
        Turns(
            np.concatenate([each["states"] for each in found]),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        ),
    )


def _known(file: Path) -> dict[str, NDArray[np.float16]] | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def _answered(
    model_data: ModelData, block: Sequence[AskedPrompt], reader: Reader, every: int, seed: int, file: Path
) -> dict[str, NDArray[np.float16]]:
    """Ask a block of prompts. What was said is judged and read, and not kept."""
    llama = model_data.llama
    prompts = [each.prompt for each in block]
    texts = [answer.text for answer in whole_answers(llama, prompts, TOKENS, TEMPERATURE, seed=seed)]
    requests = []
    for prompt, text in zip(prompts, texts, strict=True):
        before = model_data.tokens(prompt)[0]
        room = llama.n_ctx() - len(before)  # a text may be cut into more tokens than it was written in
        answer = answer_tokens(llama, text)[:room] or [llama.turn_end]
        requests.append(StatesRequest([*before, *answer], len(before)))
    read: dict[int, NDArray[np.float16]] = {}
    largest = float(np.finfo(np.float16).max)
    for i, states in reader.harvest(requests):
        read[i] = np.clip(states[0, every - 1 :: every], -largest, largest).astype(np.float16)
    found = {
        "states": np.concatenate([read[i] for i in range(len(block))]),
        "lengths": np.array([len(read[i]) for i in range(len(block))]),
        "declined": np.array([declines(text) for text in texts]),
    }
    with paths.atomic_write(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **found)  # type: ignore[arg-type]
    return found
