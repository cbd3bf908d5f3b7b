"""One running request: how far its prompt is read, and its answer so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from finesteer_local.runtime.batch.answer import AnswerStream, TokenScore
from finesteer_local.runtime.batch.pieces import Sizes, cuts, cuts_from
from finesteer_local.runtime.batch.request import Request
from finesteer_local.runtime.batch.sampler import Sampler
from finesteer_local.runtime.batch.shown import Shown
from finesteer_local.runtime.steered_request import Seen, SteeredRequest


@dataclass
class Waiting:
    """A request that was accepted."""

    request: Request
    stream: AnswerStream
    sampler: Sampler
    seed: int
    submitted: float = field(default_factory=time.perf_counter)


class Sequence(SteeredRequest):
    """A request in its place.

    Its prompt is read in pieces, ended by `ends`. `n_past` tokens are in the cache; the last token of an answer that
    goes on is not yet. A prompt whose gate opened too late is read once more from `begin_again` on, steered; after that
    of a request that checks comes what was answered.
    """

    def __init__(self, waiting: Waiting, slot: int, n_layer: int, sizes: Sizes) -> None:
        self.request, self.stream, self.sampler = waiting.request, waiting.stream, waiting.sampler
        super().__init__(self.request.prompt, self.request.steering, n_layer, self.request.answered)
        if self.request.prompt_logprobs:
            sizes = replace(sizes, whole=sizes.chunk)  # a row of logits is a thousand times one of the hidden states
        self.waiting, self.slot, self._sizes = waiting, slot, sizes
        shares = all(steer.effective_scope != "prompt" for steer in self.request.steer)
        self.ends = cuts(self.n_prompt, self.turn, sizes=sizes, shares=shares)
        self.n_past = self.n_cached = 0
        self.clean: list[int] = []  # cuts up to which the cache holds what any request would put there
        self.shown = Shown(self.request.stop)
        self.prompt_scores: dict[int, TokenScore] = {}  # by the token's place
        self.started = time.perf_counter()
        self.first_token: float | None = None
        self._again: list[int] | None = None  # ends of the pieces of the second reading, or of what was answered

    def may_reuse(self, seen: Seen | None = None) -> int:
        """As `SteeredRequest.may_reuse`; nothing where every token of the prompt is to be scored."""
        return 0 if self.request.prompt_logprobs else super().may_reuse(seen)

    def begin(self, n_past: int, seen: Seen | None = None, *, steers: bool = True) -> None:
        """Start reading after `n_past` tokens that the cache holds."""
        super().begin(n_past, seen, steers=steers and not self.request.checks)
        self.n_past = self.n_cached = n_past
        self.clean = [end for end in self.ends if end <= n_past]

    @property
    def read_again_from(self) -> int | None:
        """As `SteeredRequest.read_again_from`; None for a request that only checks."""
        return None if self.request.checks else super().read_again_from

    @property
    def answering(self) -> bool:
        """Whether all is read that comes before the next token."""
        return self.n_past >= self.n_prompt and self._again is None

    @property
    def n_left(self) -> int:
        """Tokens that are still to be read before the answer goes on."""
        return max(self.end - self.n_past, 0)

    @property
    def reads_again(self) -> bool:
        """Whether the coming piece is read for the second time."""
        return self._again is not None and not self.request.checks

    @property
    def reads_given(self) -> bool:
        """Whether the coming piece is of what was answered to a request that checks."""
        return self._again is not None and self.request.checks

    def piece(self) -> tuple[int, int]:
        """The tokens [start, stop) to read next."""
        ends = self.ends if self._again is None else self._again
        return self.n_past, next(end for end in ends if end > self.n_past)

    def read(self, stop: int) -> bool:
        """Note that the piece up to `stop` was read. Returns whether the first reading of the prompt ended with it.

        Raises:
            SteeringError: llama.cpp did not show what the profiles need.
        """
        self.n_past, done = stop, stop == self.end
        if self._again is not None:
            self._again = None if done else self._again
            if done and self.request.checks:
                self.given.check()
            return False
        if done:
            self.decided()
            if self.n_left:
                self._again = cuts_from(stop, self.end, sizes=self._sizes)
        if not self.request.checks:  # the upper layers' keys and values are missing else
            self.clean = [end for end in [*self.clean, stop] if not self.plan or end <= self.plan[0].start]
        return done

    def begin_again(self, n_past: int) -> None:
        """Read the tokens from `n_past` on once more, steered."""
        self.n_past = n_past
        self.clean = [end for end in self.clean if end <= n_past]
        self._again = cuts_from(n_past, self.end, sizes=self._sizes)

    @property
    def n_held(self) -> int:
        """Tokens of the answer to hold back now."""
        wanted = self.look_ahead
        return wanted if self.request.look_ahead is None or not wanted else self.request.look_ahead

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are still to be scored."""
        return self.request.prompt_logprobs and not self.showed

    def go_back(self, text_of: Callable[[int], bytes]) -> None:
        """The answer has become shorter: forget what was not shown of the rest."""
        answer = self.tokens[self.n_prompt :]
        self.shown.cut([text_of(token) for token in answer])
        self.sampler.go_back(answer)

    def unsteered(self) -> list[int]:
        """The tokens in the cache, of the prompt and the answer, up to the first that was steered."""
        n_clean = self.plan[0].start if self.plan else self.n_prompt if self._vectors else self.n_past
        if self.request.checks:
            n_clean = self.n_cached
        return self.tokens[: min(n_clean, self.n_past)]

    def retained(self) -> tuple[list[int], list[int]]:
        """What the cache may serve later requests with: tokens, and the cuts in them."""
        n_clean = self.clean[-1] if self.clean else 0
        return self.tokens[:n_clean], list(self.clean)
