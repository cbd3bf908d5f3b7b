"""What a behaviour's profile does to questions that taught it nothing: before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.training.behaviour.material import Material
from finesteer_local.training.data import Prompt, spread
from finesteer_local.training.progress import Progress, quiet
from finesteer_local.training.trials import compared

SHOWN = 3
_SHOWN_TOKENS = 96
_STAGE = "comparing before and after"


@dataclass(frozen=True)
class Shown:
    """Before and after, on what was held out.

    Attributes:
        preferred: mean share of the wanted answer in the probability of both, unsteered and steered.
        opened: share of the questions on which the gate opens.
        opened_near: share of the near misses on which it opens; None without near misses.
        words: of the answers shown and counted, in the mean, unsteered and steered.
        examples: questions, and the model's answer before and after.
    """

    preferred: tuple[float, float]
    opened: float
    opened_near: float | None
    words: tuple[float, float]
    examples: list[tuple[str, str, str]]
    n_questions: int
    n_near: int


def before_and_after(llama: SteeredLlama, profile: Profile, material: Material, *, progress: Progress = quiet) -> Shown:
    """Compare the loaded model with and without the profile, on what was held out.

    Raises:
        ProfileMismatchError: the profile is for another model.
    """
    pairs, near = list(material.held_pairs), list(material.held_near_misses)
    total = 2 * len(pairs) + len(near)
    preferred, answers = [], []
    questions = [pair.prompt for pair in pairs]
    asked = [prompt.messages for prompt in questions]
    for i, profiles in enumerate(((), (profile,))):
        llama.set_profiles(profiles)
        shares = []
        for pair in pairs:
            shares += [each.share for each in compared(llama, [pair])]
            progress(_STAGE, i * len(pairs) + len(shares), total)
        preferred.append(float(np.mean(shares)) if shares else 0.0)
        answers.append([answer.strip() for answer in llama.greedy_answers(asked, _SHOWN_TOKENS, at_most=8)])
    opened, opened_near = _opened(llama, questions), _opened(llama, near)
    progress(_STAGE, total, total)
    llama.set_profiles([])
    rows = list(zip((prompt.text for prompt in questions), *answers, strict=True))
    return Shown(
        preferred=(preferred[0], preferred[1]),
        opened=opened or 0.0,
        opened_near=opened_near,
        words=(_words(answers[0]), _words(answers[1])),
        examples=spread(rows, SHOWN),
        n_questions=len(questions),
        n_near=len(near),
    )


def _words(answers: Sequence[str]) -> float:
    return float(np.mean([len(answer.split()) for answer in answers])) if answers else 0.0


def _opened(llama: SteeredLlama, prompts: Sequence[Prompt]) -> float | None:
    found = [llama.check(prompt.messages).decisions[0].g > 0 for prompt in prompts]
    return float(np.mean(found)) if found else None
