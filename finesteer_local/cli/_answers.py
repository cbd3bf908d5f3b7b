"""One answer from a model: streamed, timed, stoppable, with what the gates decided."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finesteer_local.cli._options import Sampling
from finesteer_local.errors import ContextLengthError, PromptError
from finesteer_local.signals import handled_by

if TYPE_CHECKING:
    from finesteer_local.profile import Profile
    from finesteer_local.runtime import SteeredLlama
    from finesteer_local.runtime.batch import Answer as Whole
    from finesteer_local.runtime.batch import AnswerStream, BatchEngine, Request
    from finesteer_local.steering import Decision


Message = Mapping[str, Any]
OnText = Callable[[str], None]

LENGTH, INTERRUPTED, FILTERED = "length", "cancelled", "content_filter"  # as the engine says it
_PATIENCE = 86400.0  # seconds: whoever waits at a terminal decides himself how long


@dataclass(frozen=True)
class TimedAnswer:
    """What the model wrote, and how it came about."""

    text: str
    readings: tuple[tuple[Profile, Decision], ...]  # one an active profile
    n_prompt: int  # tokens
    n_answer: int  # tokens
    prompt_seconds: float  # until the first token
    answer_seconds: float  # from the first token on
    finish: str  # "stop", "length", "content_filter" or "cancelled"

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed; None where the answer is too short to tell."""
        return (self.n_answer - 1) / self.answer_seconds if self.n_answer > 2 and self.answer_seconds > 0 else None

    def to_json(self) -> dict[str, Any]:
        """For programs; `usage` and `timings` have the names that OpenAI's API and llama.cpp's server use."""
        speed = self.tokens_per_second
        return {
            "answer": self.text,
            "finish_reason": self.finish,
            "decisions": [profile.decision_json(decision) for profile, decision in self.readings],
            "usage": {
                "prompt_tokens": self.n_prompt,
                "completion_tokens": self.n_answer,
                "total_tokens": self.n_prompt + self.n_answer,
            },
            "timings": {
                "prompt_ms": round(1000 * self.prompt_seconds, 2),
                "predicted_ms": round(1000 * self.answer_seconds, 2),
                "predicted_per_second": None if speed is None else round(speed, 2),
            },
        }


def engine_of(llama: SteeredLlama) -> BatchEngine:
    """An engine with one place, in the model's own context; to be closed."""
    from finesteer_local.runtime.batch import BatchEngine

    return BatchEngine(llama, own_context=True, stall_seconds=_PATIENCE)


def answer(
    engine: BatchEngine, prompt: str | Sequence[Message], sampling: Sampling, on_text: OnText | None = None
) -> TimedAnswer:
    """Answer a conversation, or continue text as it is, steered as the engine's model is now.

    Ctrl-C ends the answer early, with `finish` saying so; a second one raises `KeyboardInterrupt`.

    Raises:
        PromptError: the model's template rejects the conversation, or it does not fit the context.
    """
    from finesteer_local.runtime.batch import WHOLE, Piece
    from finesteer_local.runtime.batch import Answer as Whole
    from finesteer_local.runtime.rpc import check_workers

    check_workers()
    request = _request(engine.llama, prompt, sampling)
    if on_text is None:
        request = replace(request, look_ahead=WHOLE)
    stream = engine.submit(request)
    events = []
    with _cancelling(stream):
        for event in stream:
            events.append(event)
            if on_text and isinstance(event, Piece) and event.text:
                on_text(event.text)
    return _answer(engine.llama, Whole.of(events))


def whole_answer(
    engine: BatchEngine, prompt: str | Sequence[Message], sampling: Sampling, on_text: OnText | None = None
) -> TimedAnswer:
    """As `answer`, for those who have no use for half of one: Ctrl-C raises `KeyboardInterrupt`."""
    found = answer(engine, prompt, sampling, on_text)
    if found.finish == INTERRUPTED:
        raise KeyboardInterrupt
    return found


def answer_rows(
    llama: SteeredLlama, prompts: Sequence[str | Sequence[Message]], sampling: Sampling, parallel: int | None = None
) -> Iterator[TimedAnswer]:
    """Answer many prompts, several at a time; the answers come in the prompts' order.

    Args:
        prompts: each a conversation, or text that is continued as it is.
        parallel: prompts at a time; None leaves it to the engine.

    Raises:
        PromptError: as for `answer`, with the row's number; nothing was answered then.
    """
    from finesteer_local.runtime.batch import answers

    requests = []
    for number, prompt in enumerate(prompts, 1):
        try:
            requests.append(_request(llama, prompt, sampling))
        except PromptError as error:
            raise PromptError(f"row {number}: {error}") from error
    for whole in answers(llama, requests, n_parallel=parallel):
        yield _answer(llama, whole)


def _request(llama: SteeredLlama, prompt: str | Sequence[Message], sampling: Sampling) -> Request:
    from finesteer_local.runtime.batch import chat_request, completion_request

    make: Any = completion_request if isinstance(prompt, str) else chat_request
    request: Request = make(llama, prompt, steer=llama.steer, **sampling.arguments())
    if len(request.prompt) >= llama.n_ctx():
        raise ContextLengthError(len(request.prompt), llama.n_ctx(), "shorten it or make room with --ctx")
    return request


def _answer(llama: SteeredLlama, whole: Whole) -> TimedAnswer:
    done = whole.finished
    readings = tuple(zip(llama.profiles, whole.decisions, strict=False))  # none where it was cancelled before
    return TimedAnswer(
        whole.text, readings, done.n_prompt, done.n_answer, done.prompt_seconds, done.answer_seconds, done.reason
    )


@contextmanager
def _cancelling(stream: AnswerStream) -> Iterator[None]:
    """The first Ctrl-C in the block cancels `stream`. Nothing may be raised while this thread waits for an event."""

    def on_signal(*_: object) -> None:
        if stream.cancelled:
            raise KeyboardInterrupt
        stream.cancel()

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield  # the program was started with nohup or &
        return
    with handled_by(on_signal, signal.SIGINT):
        yield
