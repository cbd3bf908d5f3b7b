"""One running request: how far its prompt is read, what was decided, and what its next token is steered by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from finesteer_local.errors import SteeringError
from finesteer_local.profile import Profile
from finesteer_local.runtime.batch.answer import AnswerStream, TokenScore
from finesteer_local.runtime.batch.pieces import Sizes, cuts, cuts_from
from finesteer_local.runtime.batch.request import Request
from finesteer_local.runtime.batch.sampler import Sampler
from finesteer_local.runtime.batch.text import AnswerText
from finesteer_local.runtime.control import Vectors
from finesteer_local.runtime.prompt_pass import PromptPass, Segment, first_in_scope, segments, summed
from finesteer_local.runtime.tap import Addition, Array
from finesteer_local.runtime.thinking import Thinking
from finesteer_local.steering import Decision


@dataclass
class Waiting:
    """A request that was accepted."""

    request: Request
    stream: AnswerStream
    sampler: Sampler
    seed: int
    submitted: float = field(default_factory=time.perf_counter)


class Sequence:
    """A request in its place.

    Its prompt is read in pieces, ended by `ends`. `n_past` tokens are in the cache; the last token of an answer that
    goes on is not yet. A prompt whose gate opened too late is read once more from `_again` on, steered.
    """

    def __init__(self, waiting: Waiting, slot: int, n_layer: int, sizes: Sizes) -> None:
        self.request, self.stream, self.sampler = waiting.request, waiting.stream, waiting.sampler
        if self.request.prompt_logprobs:
            sizes = replace(sizes, whole=sizes.chunk)  # a row of logits is a thousand times one of the hidden states
        self.waiting, self.slot, self._n_layer, self._sizes = waiting, slot, n_layer, sizes
        self.tokens = list(self.request.prompt)
        self.n_prompt = len(self.tokens)
        self.turn = min(self.request.turn, self.n_prompt - 1)
        scopes = [steer.effective_scope for steer in self.request.steer]
        self.ends = cuts(self.n_prompt, self.turn, sizes=sizes, shares="prompt" not in scopes)
        self._starts = [first_in_scope(scope, self.n_prompt, self.turn) for scope in scopes]
        self.n_past = self.n_cached = 0
        self.clean: list[int] = []  # cuts up to which the cache holds what any request would put there
        self.decisions: tuple[Decision, ...] = ()
        self._vectors: Vectors = {}  # what the hidden states of the answer's tokens are steered by
        self._unsteered = self.request.unsteered
        if not self.request.skip_thinking or self.request.sampling.grammar is not None:
            self._unsteered = replace(self._unsteered, thinking=None)  # under a grammar the answer comes at once
        self._thinking: Thinking | None = None  # while its thoughts are to be left alone
        self.text = AnswerText(self.request.stop)
        self.prompt_scores: dict[int, TokenScore] = {}  # by the token's place
        self.scores: list[TokenScore] = []  # of the answer's tokens that no piece has told yet
        self.started = time.perf_counter()
        self.first_token: float | None = None
        self._plan: list[Segment] = []
        self._again: list[int] | None = None  # ends of the pieces of the second reading
        self._steer_by_name = {steer.profile.name: steer for steer in self.request.steer}
        self._reading: PromptPass | None = None

    # --- the prompt

    @property
    def may_reuse(self) -> int:
        """Up to this token a cached beginning can be used: a gate that pools must see what it pools over."""
        gates = [steer.profile.gate for steer in self.request.steer]
        if self.request.prompt_logprobs or any(gate.whole for gate in gates):
            return 0
        return self.turn if any(gate.pools for gate in gates) else self.n_prompt - 1

    def begin(self, n_cached: int) -> None:
        """Start reading after `n_cached` tokens that the cache holds."""
        self.n_past = self.n_cached = n_cached
        self.clean = [end for end in self.ends if end <= n_cached]
        profiles = [steer.profile for steer in self.request.steer]
        if profiles:
            self._reading = PromptPass(
                profiles,
                self._starts,
                turn=self.turn,
                unsteered=self._unsteered,
                read_from=0 if any(profile.gate.whole for profile in profiles) else self.turn,
                known=[profile.gate.summary(_no_rows(profile)) for profile in profiles],
                n_past=n_cached,
                n_prompt=self.n_prompt,
                n_layer=self._n_layer,
                decide=self._decide,
            )

    def _decide(self, profile: Profile, h: Array, summary: Array, n_tokens: int) -> Decision:
        steer = self._steer_by_name[profile.name]
        return profile.decide_from(h, summary, strength=steer.strength, scope=steer.scope, n_tokens=n_tokens)

    @property
    def answering(self) -> bool:
        """Whether the prompt is read."""
        return self.n_past >= self.n_prompt and self._again is None

    @property
    def n_left(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return max(self.n_prompt - self.n_past, 0)

    @property
    def reading(self) -> PromptPass | None:
        """What reads the gates in the coming piece; None in a second reading, and without profiles."""
        return self._reading if self._again is None else None

    def piece(self) -> tuple[int, int]:
        """The tokens [start, stop) to read next."""
        ends = self.ends if self._again is None else self._again
        return self.n_past, next(end for end in ends if end > self.n_past)

    def additions(self, start: int, stop: int) -> list[Addition]:
        """What is added to the rows of a piece that is read for the second time."""
        found: list[Addition] = []
        limits = [*(segment.start for segment in self._plan), self.n_prompt][1:]
        for segment, limit in zip(self._plan, limits, strict=True):
            first, last = max(segment.start, start) - start, min(limit, stop) - start
            if first >= last:
                continue
            for layer, vector in segment.vectors.items():
                if layer < self._n_layer - 1 or self.request.prompt_logprobs:
                    found.append((layer, first, last, vector))
                elif last == self.n_prompt - start:
                    found.append((layer, 0, 1, vector))  # the last layer shows only the row that has logits
        return found

    def read(self, stop: int) -> bool:
        """Note that the piece up to `stop` was read. Returns whether that was the prompt's first reading's end.

        Raises:
            SteeringError: llama.cpp did not show what the profiles need.
        """
        first_reading = self._again is None
        self.n_past = stop
        if first_reading and stop < self.n_prompt:
            self.clean.append(stop)
        if stop < self.n_prompt:
            return False
        if not first_reading:
            self._again = None
            return False
        if self._reading is None:
            self.clean.append(stop)
            return True
        if not self._reading.complete:
            raise SteeringError("llama.cpp did not show the layers that the profiles use; nothing was generated")
        self.decisions = self._reading.decisions
        self._plan = segments(self.decisions, self._starts, self._unsteered)
        self._vectors = summed(decision.answer_vectors for decision in self.decisions)
        if self._vectors and self.request.skip_thinking:
            self._thinking = Thinking(opened=self._unsteered.thinking is not None)
        if self._plan:
            self.clean = [end for end in self.clean if end <= self._plan[0].start]
        else:
            self.clean.append(stop)
        return True

    @property
    def read_again_from(self) -> int | None:
        """Set by the first reading where its gate opened too late."""
        return self._reading.read_again_from if self._reading else None

    def begin_again(self, n_past: int) -> None:
        """Read the tokens from `n_past` on once more, steered."""
        self.n_past = n_past
        self.clean = [end for end in self.clean if end <= n_past]
        self._again = cuts_from(n_past, self.n_prompt, sizes=self._sizes)

    # --- the answer

    @property
    def vectors(self) -> Vectors:
        """What the answer's last token is steered by."""
        return {} if self._thinking is not None and self._thinking.open else self._vectors

    def answer(self, token: int, text_of: Callable[[int], bytes]) -> None:
        """Append a token; `text_of` gives a token's text, that of special ones too."""
        self.tokens.append(token)
        if self._thinking is not None:
            self._thinking.add(text_of(token))

    @property
    def n_answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.n_prompt

    def retained(self) -> tuple[list[int], list[int]]:
        """What the cache may serve later requests with: tokens, and the cuts in them."""
        n_clean = self.clean[-1] if self.clean else 0
        return self.tokens[:n_clean], list(self.clean)


def _no_rows(profile: Profile) -> Array:
    return np.empty((0, profile.model.n_embd), np.float32)
