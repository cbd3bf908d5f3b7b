"""How methods act on the model: by steering profiles, or by a linear map of the hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finesteer_local.errors import SteeringError
from finesteer_local.evaluation.journal import digest
from finesteer_local.profile import MAX_STRENGTH, Profile, layer_words
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.tap import Rows
from finesteer_local.steering import LONG_PROMPT, SHORT_PROMPT, Decision

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Reading:
    """What a method made of one prompt.

    Attributes:
        g: the greatest value of a gate on the prompt; 1 for a method without a gate.
        score: what is compared with the threshold; None for a method that does not tell prompts apart.
        threshold: None for a method without one.
        steers: whether anything is added to the hidden states. Else the answer is the unsteered one.
        experts: weights of the experts by name, averaged over the layers.
        watched: whether a gate reads the answer, because none found anything in the prompt.
        answer_at: tokens that the answer had when such a gate opened; None where none did.
        taken_back: how many of these were taken back.
    """

    g: float = 0.0
    score: float | None = None
    threshold: float | None = None
    steers: bool = False
    experts: tuple[tuple[str, float], ...] = ()
    watched: bool = False
    answer_at: int | None = None
    taken_back: int = 0

    @property
    def differs(self) -> bool:
        """Whether the answer may be another one than the unsteered model's."""
        return self.steers or self.answer_at is not None

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Reading:
        """From the values that `dataclasses.asdict` and JSON made of one."""
        return cls(**{**values, "experts": tuple((name, weight) for name, weight in values["experts"])})

    @classmethod
    def of(cls, decisions: Sequence[Decision]) -> Reading:
        """Of several profiles the one that is nearest to its threshold, or furthest above it, gives the score."""
        if not decisions:
            return cls()
        alike = len(decisions) == 1
        first = decisions[0]
        opened = [d.answer for d in decisions if d.answer is not None and d.answer.opened_at is not None]
        earliest = min(opened, key=lambda reading: reading.opened_at or 0, default=None)
        return cls(
            # One that its answer opened was shut for the prompt.
            g=max(0.0 if d.answer is not None else d.g for d in decisions),
            score=first.score if alike else max(d.score - d.threshold for d in decisions),
            threshold=first.threshold if alike else 0.0,
            steers=any(d.open for d in decisions),
            experts=tuple(
                (name if alike else f"{d.profile}: {name}", weight)
                for d in decisions
                for name, weight in d.leading_experts(n=256)
            ),
            watched=any(d.answer is not None for d in decisions),
            answer_at=None if earliest is None else earliest.opened_at,
            taken_back=0 if earliest is None else earliest.taken_back,
        )


class Intervention(Protocol):
    """A method, ready to be applied."""

    @property
    def digest(self) -> str:
        """Of everything that decides what it does."""

    @property
    def summary(self) -> str:
        """Layers, strength and scope, for people."""

    def scaled(self, factor: float) -> Intervention:
        """The same at `factor` times its strength."""

    def applied(self, llama: SteeredLlama) -> AbstractContextManager[None]:
        """Everything inside is steered; the cache is empty at both ends."""

    def expect(self, n_prompt: int) -> None:
        """The next request's prompt has so many tokens."""

    def reading(self, llama: SteeredLlama) -> Reading:
        """What was made of the prompt read last.

        Raises:
            SteeringError: it could not be applied.
        """


def _decay(profile: Profile) -> tuple[float, ...]:
    """The length decay, left out where it is 0: then answers that were kept before there was one are found."""
    return (profile.length_decay, SHORT_PROMPT, LONG_PROMPT) if profile.length_decay else ()


@dataclass(frozen=True, eq=False)
class ProfileSteering:
    """Profiles in the runtime that everybody uses; none of them is the unsteered model."""

    profiles: tuple[Profile, ...] = ()

    @cached_property
    def digest(self) -> str:
        # What a decision depends on, and not the profile's description or provenance.
        return digest(
            [
                (
                    *(p.name, p.model.fingerprint, p.gate.kind, p.gate, p.gate_layer, dict(p.experts)),
                    *(p.strength, p.answer_strength, p.scope, *_decay(p)),
                    *([] if p.answer_gate is None else [p.answer_gate]),
                )
                for p in self.profiles
            ]
        )

    @property
    def summary(self) -> str:
        return "; ".join(f"{layer_words(p.layers)}, strength {p.strength:.3g}, scope {p.scope}" for p in self.profiles)

    def scaled(self, factor: float) -> ProfileSteering:
        return ProfileSteering(
            tuple(replace(p, strength=min(p.strength * factor, MAX_STRENGTH)) for p in self.profiles)
        )

    @contextmanager
    def applied(self, llama: SteeredLlama) -> Iterator[None]:
        llama.set_profiles(self.profiles)
        llama.forget()
        try:
            yield
        finally:
            llama.set_profiles([])
            llama.forget()

    def expect(self, n_prompt: int) -> None:
        pass

    def reading(self, llama: SteeredLlama) -> Reading:
        return Reading.of(llama.last_decisions)


UNSTEERED = ProfileSteering()


@dataclass(eq=False)
class MapSteering:
    """`h <- h + strength * (h'w) r` at every layer that has a map, through the tap.

    Args:
        maps: (w, r) by layer (llama.cpp's `l_out-N`), each (n_embd,), float32. `h'w` is meant to be 1 for a prompt
            that needs intervention and 0 for others.
        strength: lambda.
        every_token: each token, of prompt and answer, moves as its own state says. Otherwise the prompt's tokens move
            as the last one's state says, and the answer's tokens are left alone.
    """

    maps: Mapping[int, tuple[Array, Array]]
    strength: float
    every_token: bool = False

    def __post_init__(self) -> None:
        self._n_prompt = 0
        self._weights: dict[int, float] = {}  # h'w of the last prompt's last token

    @cached_property
    def digest(self) -> str:
        return digest(dict(self.maps), self.strength, self.every_token)

    @property
    def summary(self) -> str:
        tokens = "every token" if self.every_token else "the prompt's tokens"
        return f"{layer_words(sorted(self.maps))}, strength {self.strength:.3g}, {tokens}"

    def scaled(self, factor: float) -> MapSteering:
        return MapSteering(self.maps, self.strength * factor, self.every_token)

    @contextmanager
    def applied(self, llama: SteeredLlama) -> Iterator[None]:
        llama.set_profiles([])
        llama.forget()

        def on_layer(layer: int, rows: Rows) -> bool:
            self._steer(layer, rows, in_prompt=llama.n_tokens < self._n_prompt)
            return True

        llama.tap.arm(dict.fromkeys(self.maps, on_layer))
        try:
            yield
            llama.tap.check()
        finally:
            llama.tap.disarm()
            llama.forget()

    def _steer(self, layer: int, rows: Rows, *, in_prompt: bool) -> None:
        if not in_prompt and not self.every_token:
            return
        w, r = self.maps[layer]
        states = rows.read(0, rows.n_rows)  # (n_tokens, n_embd)
        weights = states @ w  # (n_tokens,)
        if in_prompt:
            self._weights[layer] = float(weights[-1])
        if not self.every_token:
            # A prompt of several micro-batches moves piece by piece, each as its own last token says.
            weights[:] = weights[-1]
        rows.write(0, states + (np.float32(self.strength) * weights)[:, None] * r)

    def expect(self, n_prompt: int) -> None:
        self._n_prompt, self._weights = n_prompt, {}

    def reading(self, llama: SteeredLlama) -> Reading:
        llama.tap.check()
        if self._weights.keys() != self.maps.keys():
            raise SteeringError("llama.cpp did not show the layers that the method steers; nothing was measured")
        return Reading(g=1.0, score=float(np.mean(list(self._weights.values()))), steers=self.strength != 0)
