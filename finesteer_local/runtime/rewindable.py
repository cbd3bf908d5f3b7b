"""Answers of which some may be taken back: tokens are held until they are sure, completions are begun anew."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.chat import ChatLlama
from finesteer_local.runtime.compat import without_reset
from finesteer_local.runtime.constrained import ConstrainedLlama
from finesteer_local.runtime.steered_request import SteeredRequest
from finesteer_local.runtime.tokens import ends_answer, vocab_of

CONTENT_FILTER = "content_filter"
"""The finish reason of an answer that a gate has ended."""


class TakenBack(Exception):
    """Some of the answer is gone: `request.tokens` has what is left."""


class RewindableLlama(ConstrainedLlama, ChatLlama):
    """A `Llama` whose answers may become shorter again (`TakenBack`), which `eval` decides.

    Attributes:
        look_ahead: tokens of a stream that are held back, so that they can be taken back; None is what one reading
            needs.
    """

    look_ahead: int | None = None
    _request: SteeredRequest | None = None  # the one read last
    _answering: object = None  # the stream whose answer goes on
    _stepping = False  # while it computes
    _n_given = 0  # of its tokens, those that were handed out
    _whole = False  # a completion is being made that nobody reads before its end
    _goes_on: list[int] | None = None  # its tokens so far, where it is made anew because some were taken back

    def completion(self, prompt: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """As `Llama.create_completion`; begun anew, with what is left of the answer, whenever some was taken back."""
        begun: list[int] | None = None
        while True:
            self._whole, self._goes_on = True, begun  # a stream begins after this
            try:
                return self.told(super().create_completion(prompt, *args, **kwargs))
            except TakenBack:
                assert self._request is not None
                begun = self._request.tokens[self._request.n_prompt :]
            finally:
                self._whole, self._goes_on = False, None

    def told(self, completion: Any) -> Any:
        """A completion, or a piece of one, that says where a gate has ended it."""
        if isinstance(completion, dict) and self._request is not None and self._request.stopped:
            for choice in completion["choices"]:
                if choice["finish_reason"] is not None:
                    choice["finish_reason"] = CONTENT_FILTER
        return completion

    def answer_tokens(
        self,
        answer: Generator[int, Sequence[int] | None, None] | None,
        begun: list[int],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        whole: bool,
    ) -> Generator[int, Sequence[int] | None, None]:
        """The tokens of an answer, which is `begun`; `answer` gives the others, None goes on from what is read.

        Raises:
            TakenBack: some of them were taken back, and `whole`: nobody has read them.
        """
        this = self._answering = object()
        held, ended, more = deque(begun), False, None
        self._n_given = 0
        try:
            while True:
                while not ended and (not held or self._looks_ahead(len(held), whole)):
                    if answer is None:
                        assert self._request is not None
                        self.accepted = self._request.tokens[self._request.n_prompt :]
                        if self._request.stopped:
                            held.append(self.token_eos())
                            ended = True
                            break
                        given, named = without_reset(args, kwargs)
                        answer = super().generate([], *given, **named)
                    self._stepping = True
                    try:
                        held.append(answer.send(more))
                        more = None
                    except StopIteration:
                        ended = True
                    except TakenBack:
                        assert self._request is not None
                        if whole:
                            raise
                        while len(held) > self._request.n_answer - self._n_given:
                            held.pop()
                        answer = None
                    finally:
                        self._stepping, self.accepted = False, ()
                    if held and self._request is not None and self._request.words is not None:
                        held = deque(self.tokenize(self._request.words.encode(), add_bos=False, special=False))
                        held.append(self.token_eos())  # in place of the one that was chosen
                    ended = ended or bool(held and ends_answer(vocab_of(self), held[-1]))
                if not held:
                    return
                self._n_given += not whole
                more = yield held.popleft()
                if more is not None and held:
                    raise SteeringError("tokens cannot be sent into an answer that is read; set on_answer='off'")
        finally:
            if answer is not None:
                answer.close()
            if self._answering is this:
                self._answering = None

    def _looks_ahead(self, n_held: int, whole: bool) -> bool:
        """Whether a further token is computed before the next is given."""
        if whole or self._request is None or not self._request.look_ahead or self.n_tokens >= self.n_ctx():
            return False
        return n_held <= (self._request.look_ahead if self.look_ahead is None else self.look_ahead)
