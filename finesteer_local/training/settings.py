"""What a training was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from finesteer_local.errors import ProfileError
from finesteer_local.profile import MAX_STRENGTH, SCOPES
from finesteer_local.training.data import QUALITIES

GATES = ("contrastive", "scs", "always")


@dataclass(frozen=True)
class Settings:
    """What a run does; part of its identity. `layer`, `strength` and `scope` replace the tuned ones.

    Raises:
        ProfileError: there is no such gate, quality, strength or scope.
    """

    gate: str = "contrastive"
    seed: int = 0
    layer: int | None = None
    strength: float | None = None
    scope: str | None = None
    optimise: bool | None = None  # None: where it is the better way, see `learns_by_itself`
    quality: str = "standard"  # one of QUALITIES

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ProfileError(f"gate {self.gate!r} is none of {', '.join(GATES)}")
        if self.quality not in QUALITIES:
            raise ProfileError(f"quality {self.quality!r} is none of {', '.join(QUALITIES)}")
        if self.strength is not None and not 0 <= self.strength <= MAX_STRENGTH:
            raise ProfileError(f"strength {self.strength} is not in [0, {MAX_STRENGTH:g}]")
        if self.scope is not None and self.scope not in SCOPES:
            raise ProfileError(f"scope {self.scope!r} is none of {', '.join(SCOPES)}")

    @property
    def gated(self) -> bool:
        """Whether a gate is learnt."""
        return self.gate != "always"
