"""The gates that read one answer while it is written: which tokens they read, when one opens, what is taken back."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.tap import Array, Handler, Rows, Tap
from finesteer_local.steering import ON_ANSWER, REPORT, REWIND, STOP, AnswerGate, AnswerReading, AnswerWatch

NEAR = 32
"""A sentence that begins within so many tokens of the answer's beginning is taken back with all that comes before it:
that is the model's consent ("Sure, here is how:"), and to decline after it would be no answer."""

_ENDS = re.compile(r"""(?:[.!?…](?<!\d\.)["'”’»)\]*_]*\s|[。！？]|\n)\s*$""")
"""What a text ends with whose next letter begins a sentence; `1.` is a list's."""
_NOT_SHOWN = "llama.cpp did not show the layer that the answer's gate reads"
_LOOK_BACK = 8  # tokens that a sentence's end may take, with its quotes and brackets


class Opening(NamedTuple):
    """A gate on the answer opened.

    Attributes:
        profile: its place among the request's.
        action: what is to be done, one of `ON_ANSWER`.
        keep: the tokens of the answer from before the harm began to show, where some are to be taken back, else all.
    """

    profile: int
    action: str
    keep: int


class AnswerWatches:
    """The gates that watch one answer, by their profile's place among the request's.

    Args:
        gates: by place, each with what is done once it opens.

    Attributes:
        n_before: tokens of the answer before what is watched: thoughts that are left alone.
    """

    def __init__(self, gates: Mapping[int, tuple[AnswerGate, str]]) -> None:
        self._watches = {i: gate.start() for i, (gate, _) in gates.items()}
        self._actions = {i: action for i, (_, action) in gates.items()}
        self._opened: dict[int, AnswerReading] = {}
        self.n_before = 0

    @property
    def shut(self) -> dict[int, AnswerWatch]:
        """Those that still read."""
        return {i: watch for i, watch in self._watches.items() if i not in self._opened}

    @property
    def look_ahead(self) -> int:
        """Tokens that have to be held back, so that what the next reading may take back is still there."""
        takes = [w.gate.look_ahead for i, w in self.shut.items() if self._actions[i] in (REWIND, STOP)]
        return max(takes, default=0)

    def layers(self, n: int) -> set[int]:
        """The layers that have to be read while the answer's next `n` tokens are computed."""
        shut = self.shut.values()
        return {w.gate.layer for w in shut if w.n_tokens // w.gate.every < (w.n_tokens + n) // w.gate.every}

    def skip(self, n: int) -> None:
        """The answer's next `n` tokens are thoughts that are left alone."""
        self.n_before += n

    def read(self, n: int, states: Mapping[int, Array], keep_from: Callable[[int, int], int]) -> list[Opening]:
        """The answer's next `n` tokens were computed; returns what opened with them, the mildest action first.

        Args:
            states: by layer, one row a token, those of `layers(n)`.
            keep_from: as `sentence_start` with the answer's texts.

        Raises:
            SteeringError: a layer was not shown, or a state is not finite.
        """
        found = []
        for i, watch in self.shut.items():
            _follow(watch, n, states.get(watch.gate.layer))
            if watch.opened_at is not None:
                found.append(self._open(i, watch, keep_from))
        return sorted(found, key=lambda opening: ON_ANSWER.index(opening.action))

    def _open(self, i: int, watch: AnswerWatch, keep_from: Callable[[int, int], int]) -> Opening:
        action, gate = self._actions[i], watch.gate
        assert watch.opened_at is not None
        score = watch.scores[watch.opened_at // gate.every - 1]
        self._opened[i] = AnswerReading(action, gate.threshold, score, self.n_before + watch.opened_at)
        n_answer = self.n_before + watch.n_tokens
        keep = n_answer
        if action in (REWIND, STOP):
            keep = keep_from(self.n_before, self.n_before + watch.began)
        return Opening(i, action, keep)

    def took_back(self, i: int, action: str, n_tokens: int) -> None:
        """What was done once the gate of profile `i` had opened."""
        reading = self._opened[i]
        self._opened[i] = AnswerReading(action, reading.threshold, reading.score, reading.opened_at, n_tokens)

    def cut(self, n_answer: int) -> None:
        """Forget all tokens of the answer but the first `n_answer`; a gate that has opened stays open."""
        self.n_before = min(self.n_before, n_answer)
        for watch in self.shut.values():
            watch.cut(n_answer - self.n_before)

    @property
    def readings(self) -> list[AnswerReading]:
        """What all gates have found, in the profiles' order."""
        return [reading for i in self._watches if (reading := self.reading(i)) is not None]

    def reading(self, i: int) -> AnswerReading | None:
        """What profile `i`'s gate has found; None where it does not watch."""
        if i in self._opened or i not in self._watches:
            return self._opened.get(i)
        watch = self._watches[i]
        return AnswerReading(self._actions[i], watch.gate.threshold, watch.score)


class GivenAnswer:
    """The gates that read an answer that is there already, to its end; nothing is done once one opens.

    Args:
        tokens: of the answer.
        gates: by their profile's place among the request's.

    Attributes:
        tokens: of the answer; none where nobody reads it.
        layer: the last that is read, up to which the prompt before it has to be computed; 0 where none is.
    """

    def __init__(self, tokens: Sequence[int], gates: Mapping[int, AnswerGate]) -> None:
        self._watches = {i: gate.start() for i, gate in gates.items()} if tokens else {}
        self.tokens = list(tokens) if gates else []
        self.layer = max((watch.gate.layer for watch in self._watches.values()), default=0)

    def leave_to(self, profiles: Container[int]) -> None:
        """Let none but these read it."""
        self._watches = {i: watch for i, watch in self._watches.items() if i in profiles}
        self.tokens = self.tokens if self._watches else []

    @property
    def handlers(self) -> dict[int, Handler]:
        """What the tap is to be armed with while the tokens are computed; each pass ends after the last layer read."""
        return dict.fromkeys({watch.gate.layer for watch in self._watches.values()}, self._on_layer)

    def _on_layer(self, layer: int, rows: Rows) -> bool:
        states = rows.read(0, rows.n_rows)
        for watch in self._watches.values():
            if watch.gate.layer == layer:
                _follow(watch, len(states), states)
        return any(watch.gate.layer > layer for watch in self._watches.values())

    def check(self) -> None:
        """Make sure that all of it was read.

        Raises:
            SteeringError: llama.cpp showed another number of rows.
        """
        if any(watch.n_tokens != len(self.tokens) for watch in self._watches.values()):
            raise SteeringError(_NOT_SHOWN)

    def reading(self, i: int) -> AnswerReading | None:
        """What profile `i`'s gate has found; None where it does not read."""
        watch = self._watches.get(i)
        return AnswerReading(REPORT, watch.gate.threshold, watch.highest, watch.opened_at) if watch else None


def _follow(watch: AnswerWatch, n: int, states: Array | None) -> None:
    """Let a gate read the answer's next `n` tokens, with their states (n, n_embd) where one of them is due.

    Raises:
        SteeringError: these are missing, or one is not finite.
    """
    for row in range(n):
        if not watch.due:
            watch.pass_by()
        elif states is None or len(states) <= row:
            raise SteeringError(_NOT_SHOWN)
        else:
            watch.read(states[row])


def sentence_start(texts: Sequence[bytes], first: int, at: int) -> int:
    """The token, of those from `first` to `at`, with which the sentence begins that token `at` is in.

    That is `first` where the sentence begins within `NEAR` tokens of it.

    Args:
        texts: of the answer's tokens.
    """
    for start in range(min(at, len(texts)), first + NEAR - 1, -1):
        before = b"".join(texts[max(start - _LOOK_BACK, first) : start]).decode(errors="ignore")
        space = " " if start < len(texts) and texts[start][:1].isspace() else ""
        if _ENDS.search(before + space):
            return start
    return first


class StatesOf:
    """The tap's handlers that keep the rows of some layers in one pass."""

    def __init__(self, layers: set[int]) -> None:
        self._seen: dict[int, list[Array]] = {layer: [] for layer in layers}

    @property
    def handlers(self) -> dict[int, Handler]:
        """What the tap is to be armed with."""
        return dict.fromkeys(self._seen, self._keep)

    @property
    def rows(self) -> dict[int, Array]:
        """What was seen, by layer: (n, n_embd)."""
        return {layer: np.concatenate(pieces) for layer, pieces in self._seen.items() if pieces}

    @contextmanager
    def shown_by(self, tap: Tap) -> Iterator[None]:
        """Let `tap` show them in the block's passes, if there are any; raises what the tap raised."""
        if not self._seen:
            yield
            return
        tap.arm(self.handlers)
        try:
            yield
        finally:
            tap.disarm()
        tap.check()

    def _keep(self, layer: int, rows: Rows) -> bool:
        self._seen[layer].append(rows.read(0, rows.n_rows))  # one micro-batch of several
        return True
