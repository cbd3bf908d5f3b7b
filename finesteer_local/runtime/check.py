"""Finds out what kind of request a prompt is, without answering it: the pass stops after the last gate's layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finesteer_local.errors import SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime.prompt import Message
from finesteer_local.runtime.steered_request import Steer
from finesteer_local.steering import Decision, Kind, likely
from finesteer_local.steering.kinds import Probabilities


@dataclass(frozen=True)
class Check:
    """What the profiles found.

    Attributes:
        profiles, decisions: of those that were asked, in their order.
        n_tokens: of the prompt.
    """

    profiles: tuple[Profile, ...]
    decisions: tuple[Decision, ...]
    n_tokens: int

    @property
    def flagged(self) -> bool:
        """Whether a gate opened, and its profile's policy does not leave such requests alone."""
        return any(decision.flagged for decision in self.decisions)

    @property
    def kinds(self) -> Probabilities:
        """(kind, probability), likeliest first; of several profiles that know a kind, the greatest counts."""
        found: dict[str, float] = {}
        for decision in self.decisions:
            for name, probability in decision.kinds:
                found[name] = max(probability, found.get(name, 0.0))
        return tuple(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def likely_kinds(self) -> tuple[str, ...]:
        """What a flagged request counts as: the likeliest kind, and others from .5 on; () where it is not flagged."""
        return likely(self.kinds) if self.flagged else ()

    def about(self, name: str) -> Kind:
        """A kind's words and categories; raises `KeyError`."""
        known = {kind.name: kind for profile in self.profiles if profile.kinds for kind in profile.kinds.kinds}
        return known[name]

    def openai(self) -> dict[str, float]:
        """Scores of the categories of OpenAI's moderation API that the kinds belong to: each one's likeliest kind."""
        return self._categories(lambda kind: kind.openai)

    def mlcommons(self) -> dict[str, float]:
        """As `openai`, for the hazard categories of MLCommons' AILuminate."""
        return self._categories(lambda kind: kind.mlcommons)

    def _categories(self, of: Callable[[Kind], tuple[str, ...]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, probability in self.kinds:
            for category in of(self.about(name)):
                found[category] = max(probability, found.get(category, 0.0))
        return found

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "flagged": self.flagged,
            "likely_kinds": list(self.likely_kinds),
            "kinds": dict(self.kinds),
            "openai": self.openai(),
            "mlcommons": self.mlcommons(),
            "decisions": [p.decision_json(d) for p, d in zip(self.profiles, self.decisions, strict=True)],
            "usage": {"prompt_tokens": self.n_tokens},
        }


def asked_for(prompt: str | Sequence[Message]) -> list[Message]:
    """The conversation that is checked: up to its last user message, since no gate reads answers; a text is one.

    Raises:
        SteeringError: nobody asks for anything.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    last = max((i for i, message in enumerate(prompt) if message.get("role") == "user"), default=None)
    if last is None:
        raise SteeringError("the conversation has no message of the role 'user'; there is nothing to check")
    return list(prompt[: last + 1])


def checking(steer: Iterable[Steer]) -> tuple[Steer, ...]:
    """Those of the profiles that tell what a request is: the ones with kinds or, where none has any, all.

    Raises:
        SteeringError: there is none.
    """
    steer = tuple(steer)
    if not steer:
        raise SteeringError("there is no profile to check with; name one, such as safety")
    return tuple(one for one in steer if one.profile.kinds) or steer
