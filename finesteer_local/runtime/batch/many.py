"""Many prompts, one call: for files of prompts, evaluation and tuning."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from finesteer_local.runtime.batch.answer import Answer, AnswerStream, Decided, Event
from finesteer_local.runtime.batch.context import bytes_per_token
from finesteer_local.runtime.batch.engine import BatchEngine, default_sizes
from finesteer_local.runtime.batch.request import WHOLE, Request, chat_request
from finesteer_local.runtime.check import Check
from finesteer_local.runtime.prompt import Message
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.steering import Decision

MAX_PARALLEL = 8
_CACHE_BYTES = 1 << 30  # keys and values of all sequences together
_AHEAD = 4  # requests that wait, for each that runs


def greedy_answers(
    llama: SteeredLlama,
    conversations: Sequence[Sequence[Message]],
    max_tokens: int,
    *,
    at_most: int = MAX_PARALLEL,
) -> Iterator[Answer]:
    """The model's greedy answers to many chats, as it is steered now: `prompt.greedy_answer` for each, only faster.

    The profiles, strength and scope are those that `llama` has when the first answer is read. The context of `llama`
    is not used: nothing that it read before matters, and it stays as it was.

    Args:
        conversations: messages of each chat.
        max_tokens: longest answer.
        at_most: as for `answers`.

    Yields:
        One answer a conversation, in their order, with `text` and `decisions`, as soon as all before it are done.

    Raises:
        PromptError: a conversation does not fit the context, or the model's template rejects it; nothing is answered.
        SteeringError: a hidden state is not finite.
    """
    options: dict[str, Any] = {
        "steer": llama.steer,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "repeat_penalty": 1.0,
    }
    requests = [chat_request(llama, messages, **options) for messages in conversations]
    yield from answers(llama, requests, at_most=at_most)


def answers(
    llama: SteeredLlama,
    requests: Sequence[Request],
    *,
    n_parallel: int | None = None,
    at_most: int = MAX_PARALLEL,
    wanted: Callable[[tuple[Decision, ...]], bool] = lambda decisions: True,
) -> Iterator[Answer]:
    """Answer all requests, several at a time; the answers come in the requests' order.

    Args:
        wanted: whether a request with such decisions is to be answered; if not, it is cancelled once they are known.
        n_parallel: requests at a time; None takes `at_most`, or fewer where their keys and values would take more
            than a GiB.

    Raises:
        FineSteerError: the first request that fails; all are checked before the first is answered.
    """
    requests = [replace(request, look_ahead=WHOLE) for request in requests]  # nobody reads them before their end
    for request in requests:
        request.check(llama, llama.n_ctx())
    if not requests:
        return
    n_ctx = max(_length(llama, request) for request in requests)
    fits = _CACHE_BYTES // max(bytes_per_token(llama) * n_ctx, 1)
    n_parallel = min(n_parallel or max(min(at_most, fits), 1), len(requests))
    # Nobody waits for the next token here: prompts are read first, so that as many answers as can be grow together.
    sizes = replace(default_sizes(llama), between=n_parallel * n_ctx)
    with BatchEngine(llama, n_parallel=n_parallel, n_ctx=n_ctx, max_queue=_AHEAD * n_parallel, sizes=sizes) as engine:
        asked: deque[AnswerStream] = deque()
        running: deque[Iterator[Event]] = deque()
        for request in requests:
            if len(asked) + len(running) > _AHEAD * n_parallel:
                if not running:
                    running.append(_decided(asked.popleft(), wanted))
                yield Answer.of(running.popleft())
            asked.append(engine.submit(request))
            # Each decision is checked as soon as it is there, so that no unwanted request is answered for long.
            while asked and len(asked) + len(running) > n_parallel:
                running.append(_decided(asked.popleft(), wanted))
        while asked:
            running.append(_decided(asked.popleft(), wanted))
        while running:
            yield Answer.of(running.popleft())


def checks(llama: SteeredLlama, requests: Sequence[Request], *, n_parallel: int | None = None) -> Iterator[Check]:
    """The result of each `check_request`, in their order; arguments and errors as for `answers`."""
    for request, answer in zip(requests, answers(llama, requests, n_parallel=n_parallel), strict=True):
        yield check_of(request, answer)


def check_of(request: Request, answer: Answer) -> Check:
    """The result of a `check_request`, from its answer."""
    done = answer.finished
    return Check(tuple(one.profile for one in request.steer), answer.decisions, done.n_prompt, done.n_answer)


def _decided(stream: AnswerStream, wanted: Callable[[tuple[Decision, ...]], bool]) -> Iterator[Event]:
    """Wait for the first event of `stream`; returns all of its events. An unwanted request is cancelled."""
    events = iter(stream)
    first = next(events)
    if isinstance(first, Decided) and not wanted(first.decisions):
        stream.cancel()
    return chain([first], events)


def _length(llama: SteeredLlama, request: Request) -> int:
    """Tokens that a request has with the longest answer that it may get."""
    n_ctx, n_read = llama.n_ctx(), len(request.prompt) + len(request.answered)
    return n_ctx if request.max_tokens is None else min(n_read + max(request.max_tokens, 1), n_ctx)
