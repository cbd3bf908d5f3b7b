"""Training data: preference pairs for the behaviour, and prompts that must stay untouched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import zip_longest
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finesteer_local.errors import DataError
from finesteer_local.jsonl import Messages, is_text, messages_of, read_rows
from finesteer_local.profile import NAME
from finesteer_local.steering import Kind

_Item = TypeVar("_Item")

PLAIN, WRAPPED, FOREIGN, PAGE = "plain", "wrapped", "foreign", "page"
FORMS = (PLAIN, WRAPPED, FOREIGN, PAGE)
"""How a request comes: by itself, in a dress that hides it, in another language than English, in a long text."""
MIN_PAIRS = 24
MIN_PROMPTS = 8  # different ones: some are held out, and a gate finds the rest's layer by cross-validation
PAIRS_A_QUESTION = 2


@dataclass(frozen=True)
class Prompt:
    """One prompt as chat messages; `kind`, `family` (of its wrapper or page) and `form` label it.

    `request` is the part of a page's text that asks for something, "" where none does, and what a recipe's wrapper was
    put around.
    """

    messages: Messages
    kind: str = ""
    family: str = ""
    form: str = PLAIN
    request: str = ""

    @property
    def text(self) -> str:
        """The last message's words."""
        return self.messages[-1]["content"]

    @cached_property
    def place(self) -> int:
        """Where it stands in a random order of all that could be written, below 2^64."""
        return drawn_by(json.dumps(self.messages))


@dataclass(frozen=True)
class Pair:
    """A prompt that needs intervention, with the answer to move towards and the one to move away from."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class KindOf:
    """A kind of request that a profile tells, and the kinds `of` the prompts that belong to it."""

    kind: Kind
    of: tuple[str, ...]


@dataclass(frozen=True)
class TrainingData:
    """What a profile is trained on.

    Attributes:
        name: of the profile to be.
        pairs: preference pairs; their prompts are those that need intervention.
        contrast: prompts for which the gate must stay closed.
        judge: how generated answers are judged while tuning: `refusal`, or `margin` where only the pairs can tell.
        own_replies: move away from the model's own unsteered replies, where they show the unwanted behaviour, rather
            than from the pairs' rejected answers: what the model would have said is a better start than a stock one.
        pooled: the answers were dealt from a pool, so that any of them goes with any prompt.
        kinds: the kinds of request that the profile is to tell apart; () where it is to tell none.
        teachers: the files of what the recipe's gate learnt on other models (teacher.py), one each.
    """

    name: str
    pairs: Sequence[Pair]
    contrast: Sequence[Prompt]
    description: str = ""
    license: str = ""
    judge: str = "margin"
    recipe: str = ""
    own_replies: bool = False
    pooled: bool = False
    kinds: Sequence[KindOf] = ()
    teachers: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):  # it also names files
            raise DataError(f"{self.name!r} cannot name a profile; use lower-case letters, digits, - and _")
        if len(self.pairs) < MIN_PAIRS:
            raise DataError(f"{len(self.pairs)} pairs are too few to train on; give at least {MIN_PAIRS}")
        if (n_prompts := len(self.positive)) < MIN_PROMPTS:
            raise DataError(
                f"the pairs have {n_prompts} different prompt{'s' * (n_prompts != 1)}, too few to train a gate on; "
                f"give at least {MIN_PROMPTS}"
            )

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the pairs and the contrast prompts."""
        text = json.dumps([list(self.pairs), list(self.contrast)], default=_as_fields, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def positive(self) -> list[Prompt]:
        """The pairs' prompts, each once, however many pairs it has."""
        prompts = [pair.prompt for pair in self.pairs]
        return [prompts[i] for i, first in enumerate(first_equal(prompts)) if i == first]

    @cached_property
    def _experts(self) -> dict[str, str]:
        return {kind: each.kind.expert for each in reversed(self.kinds) for kind in each.of}

    def expert(self, prompt: Prompt) -> str:
        """The name of the expert that answers prompts of this kind; "" where the recipe names none."""
        return self._experts.get(prompt.kind, "")

    @property
    def ordered(self) -> list[tuple[bool, Prompt]]:
        """All prompts, each with whether it needs intervention, in the order in which a gate learns from a part of
        them: of both kinds in turn, as far as there are any.

        A prompt's own text draws its place, so that what was read for a part serves a larger one.
        """
        positive = [(True, prompt) for prompt in sorted(self.positive, key=attrgetter("place"))]
        contrast = [(False, prompt) for prompt in sorted(self.contrast, key=attrgetter("place"))]
        return in_turn([positive, contrast])

    def part(self, most: int | None) -> TrainingData:
        """The same data with the first `most` prompts of its order; all of it for None."""
        if most is None or len(self.positive) + len(self.contrast) <= most:
            return self
        first = self.ordered[:most]
        taken = {id(prompt) for _, prompt in first}
        texts = {json.dumps(prompt.messages) for needs, prompt in first if needs}
        return replace(
            self,
            pairs=[pair for pair in self.pairs if json.dumps(pair.prompt.messages) in texts],
            contrast=[prompt for prompt in self.contrast if id(prompt) in taken],
        )


def _as_fields(item: Any) -> dict[str, Any]:
    """A pair or a prompt; `dataclasses.asdict` copies what is in it, which takes seconds over a recipe."""
    return {field.name: getattr(item, field.name) for field in fields(item)}


def drawn_by(text: str) -> int:
    """A number below 2^64 that the text alone draws: the same in every run, whatever else there is."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def in_drawn_order(prompts: Sequence[Prompt], purpose: str) -> list[Prompt]:
    """The prompts in an order that their texts alone draw, another one for every purpose."""
    return sorted(prompts, key=lambda prompt: drawn_by(f"{purpose} {prompt.text}"))


def in_turn(groups: Sequence[Sequence[_Item]]) -> list[_Item]:
    """The first of every group, then the second of every group, and so on."""
    return [each for row in zip_longest(*groups) for each in row if each is not None]


def first_equal(prompts: Sequence[Prompt]) -> list[int]:
    """For every prompt, the index of the first with the same messages."""
    first: dict[str, int] = {}
    return [first.setdefault(json.dumps(prompt.messages), i) for i, prompt in enumerate(prompts)]


def prompt_of(row: dict[str, Any], where: str) -> Prompt:
    """The prompt of a row with `prompt` or `messages`; raises `DataError`."""
    family = str(row.get("family") or "")
    form = WRAPPED if family else FOREIGN if row.get("language") else PLAIN
    return Prompt(messages_of(row, where), str(row.get("kind") or ""), family, form)


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a JSONL file; raises `DataError` naming the line of the first bad row."""
    return [prompt_of(row, where) for where, row in read_rows(path)]


def read_pairs(path: Path, seed: int = 0) -> list[Pair]:
    """Preference pairs of a JSONL file, one or several a row.

    A row has a prompt and either `chosen` and `rejected`, or lists of `correct` and `wrong` answers, of which up to
    PAIRS_A_QUESTION pairs are dealt by `seed`. A chosen or rejected answer may also be a list of chat messages, as
    preference data sets have it: its last message counts.

    Raises:
        DataError: a field is missing or empty, or an answer stands on both sides; the message names the line.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for where, row in read_rows(path):
        prompt = prompt_of(row, where)
        if "correct" in row or "wrong" in row:
            answers = [_answers(row, name, where) for name in ("correct", "wrong")]
            if set(answers[0]) & set(answers[1]):
                raise DataError(f"{where}: an answer is both in 'correct' and in 'wrong'")
            n = min(PAIRS_A_QUESTION, max(map(len, answers)))  # one list lasts for n answers: no pair comes twice
            indices = [dealt(n, len(side), rng) for side in answers]
            pairs += [Pair(prompt, answers[0][i], answers[1][j]) for i, j in zip(*indices, strict=True)]
        else:
            chosen, rejected = (_answer(row, name, where) for name in ("chosen", "rejected"))
            if chosen == rejected:
                raise DataError(f"{where}: 'chosen' and 'rejected' are the same")
            pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def _answer(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not is_text(value):
        raise DataError(f"{where}: the field {name!r} is missing or empty")
    return str(value)


def _answers(row: dict[str, Any], name: str, where: str) -> list[str]:
    values = row.get(name)
    if not isinstance(values, list) or not values or not all(map(is_text, values)):
        raise DataError(f"{where}: the field {name!r} must be a list of answers")
    if len(set(values)) < len(values):
        raise DataError(f"{where}: an answer stands twice in {name!r}")
    return values


def dealt(n: int, n_cards: int, rng: np.random.Generator) -> list[int]:
    """`n` cards from a pack of `n_cards`, shuffled anew whenever it is used up."""
    return [int(i) for _ in range(-(-n // n_cards)) for i in rng.permutation(n_cards)][:n]


def split(n: int, groups: Sequence[str], seed: int, share: float = 0.2) -> tuple[list[int], list[int]]:
    """Indices for training and validation, `share` of every group held out, seeded."""
    rng = np.random.default_rng(seed)
    train: list[int] = []
    held: list[int] = []
    for group in sorted(set(groups)):
        members = rng.permutation([i for i in range(n) if groups[i] == group])
        cut = round(len(members) * share)
        held += members[:cut].tolist()
        train += members[cut:].tolist()
    return sorted(train), sorted(held)


def spread(items: Sequence[_Item], n: int) -> list[_Item]:
    """At most `n` of the items, from all over the list."""
    return list(items[:: max(len(items) // n, 1)][:n])
