"""The settings that a training was asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finesteer_local.errors import ProfileError
from finesteer_local.profile import MAX_STRENGTH, SCOPES
from finesteer_local.training import DEFAULT_MINUTES
from finesteer_local.training.effort import EFFORTS

GATES = ("contrastive", "scs", "always")


@dataclass(frozen=True)
class TrainingSettings:
    """What a run does. `layer`, `strength` and `scope` replace the tuned ones.

    Attributes:
        quality: one of `effort.EFFORTS`, however long it takes; None: what fits into `minutes`.
        keep: an interruption leaves the best profile so far, where there is one.
        watch: learn a gate that reads the answers, too, where the recipe is one of refusals.

    Raises:
        ProfileError: there is no such gate, quality, strength or scope, or no time at all.
    """

    gate: str = "contrastive"
    seed: int = 0
    layer: int | None = None
    strength: float | None = None
    scope: str | None = None
    optimise: bool | None = None  # None: where it is the better way, see `learns_by_itself`
    quality: str | None = None
    minutes: float = DEFAULT_MINUTES
    keep: bool = False
    watch: bool = False

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ProfileError(f"gate {self.gate!r} is none of {', '.join(GATES)}")
        if self.quality is not None and self.quality not in EFFORTS:
            raise ProfileError(f"quality {self.quality!r} is none of {', '.join(EFFORTS)}")
        if not self.minutes > 0:
            raise ProfileError(f"nothing can be trained in {self.minutes:g} minutes")
        if self.strength is not None and not 0 <= self.strength <= MAX_STRENGTH:
            raise ProfileError(f"strength {self.strength} is not in [0, {MAX_STRENGTH:g}]")
        if self.scope is not None and self.scope not in SCOPES:
            raise ProfileError(f"scope {self.scope!r} is none of {', '.join(SCOPES)}")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes it another run; how long that takes does not, so a longer run goes on from a shorter one."""
        return {**asdict(self), "quality": None, "minutes": None, "keep": None, "watch": None}

    @property
    def gated(self) -> bool:
        """Whether a gate is learnt."""
        return self.gate != "always"
