"""The settings among which tuning chooses, by the recipe's judge, and the result of trying one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

SHORT, LONG = "short", "long"
"""Which prompts a trial answers."""
Layers = tuple[int, ...]
"""The layers of one candidate, which are steered together."""


@dataclass(frozen=True)
class Search:
    """The settings that are tried for one judge and one kind of experts."""

    first_strengths: tuple[float, ...]  # at which layers are ranked
    strengths: tuple[float, ...]
    scopes: tuple[str, ...]
    first_answer_strength: float
    answer_strengths: tuple[float, ...]
    length_decays: tuple[float, ...]
    tolerance: float
    """Scores that differ by less may do so by chance. Among settings so near to the best, tuning prefers the layer that
    ranks higher, the narrower scope, and a strength with room on either side."""
    learnt_for: float | None = None
    """The strength for which the vectors were learnt, where they were: preferred to any that is no better."""


DECAYS = (0.0, 0.2, 0.4)
SEARCHES = {
    # Two answers more or less are .04. A refusal is decided by the prompt.
    "refusal": Search(
        (0.9,),
        (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.7, 2.0, 2.5),
        ("turn", "prompt"),
        0.5,
        (0.35, 0.5, 0.7, 1.0),
        DECAYS,
        0.05,
    ),
    # Probabilities are finer. What an answer says is decided all through it, and how far a weak direction must be
    # followed differs from layer to layer. Questions are short.
    "margin": Search(
        (1.0, 2.0, 4.0),
        (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6),
        ("turn", "prompt"),
        1.0,
        (0.35, 0.5, 0.7, 1.0),
        (),
        0.02,
    ),
    # Learnt through the model for strength 1 in the scope `turn`, the answer included: how it ends is part of it.
    "refusal, learnt": Search(
        (1.0,), (0.7, 0.85, 1.0, 1.2, 1.4, 1.7), ("turn",), 1.0, (0.5, 0.7, 1.0), DECAYS, 0.05, learnt_for=1.0
    ),
}


def search_name(judge: str, learnt: bool) -> str:
    """Which of `SEARCHES` is that of a recipe's judge, where what steers was or was not learnt through the model."""
    return "refusal, learnt" if learnt and judge == "refusal" else judge


@dataclass(frozen=True)
class Setting:
    """How a profile steers."""

    layers: Layers
    strength: float
    scope: str
    answer_strength: float
    length_decay: float

    def but(self, **changes: Any) -> Setting:
        """The same with other values."""
        return Setting(**{each.name: getattr(self, each.name) for each in fields(Setting)} | changes)


@dataclass(frozen=True)
class Trial(Setting):
    """One setting and how its answers were judged."""

    prompts: str  # SHORT or LONG
    wanted: float  # share of answers with the wanted behaviour; judged by pairs, the chosen answers' probability
    ended: float  # share of answers that end by themselves, and not after going round in circles; 1 judged by pairs
    coherent: float  # share of answers that are language
    score: float  # share that is all three; judged by pairs, `wanted` of the coherent ones less those that are not
    n_answers: int = 0  # that were judged
    lost: bool = False  # given up, since it was behind the best by then

    @classmethod
    def of(cls, setting: Setting, prompts: str, figures: Mapping[str, float]) -> Trial:
        """The trial of a setting; `figures` are the fields that a setting does not have."""
        values: dict[str, Any] = {**vars(setting.but()), "prompts": prompts, **figures}
        return cls(**values)


def as_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Trials as plain values, for the profile's provenance."""
    return [asdict(trial) for trial in trials]
