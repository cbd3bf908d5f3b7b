"""Answers: the one place where an evaluation, and the tuning of its methods, lets the model generate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finesteer_local.errors import DataError
from finesteer_local.evaluation.interventions import UNSTEERED, Intervention, ProfileSteering, Reading
from finesteer_local.evaluation.journal import Journal, digest
from finesteer_local.jsonl import Messages
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import active_steering, answers, greedy_request
from finesteer_local.runtime.prompt import chat_prompt, greedy_answer
from finesteer_local.steering import Decision

TIMED = 8
"""One request of so many is asked alone and timed, the same ones for every method; the rest share the model."""
_TOGETHER = 16


@dataclass(frozen=True)
class Request:
    """One prompt, and how long its answer may be, in tokens."""

    messages: Messages
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        first, seconds: time until the first token, and for all of it; None where it was answered beside others.
        reading: what the method made of the prompt.
    """

    text: str
    first: float | None
    seconds: float | None
    reading: Reading


def check(llama: SteeredLlama, what: str, messages: Messages) -> None:
    """Raise `DataError` for a prompt that cannot be asked: better now than after minutes of answering."""
    what = f"{what}, {messages[-1]['content'][:60]!r}"
    try:
        n_tokens = len(chat_prompt(llama, messages))
    except Exception as error:  # a template is a program that came with the model
        raise DataError(f"{what}: the model's chat template rejects it: {error}") from error
    if n_tokens >= llama.n_ctx():
        raise DataError(
            f"{what}: {n_tokens:,} tokens do not fit the context of {llama.n_ctx():,}; drop it or use --ctx"
        )


def answer_all(
    llama: SteeredLlama,
    intervention: Intervention,
    requests: Sequence[Request],
    journal: Journal,
    *,
    timed: bool = True,
    on_answer: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Answer every request under `intervention`, greedily, each from an empty cache.

    Profiles, and the unsteered model, answer several requests at a time; the first and every TIMED-th is asked alone
    and timed, unless nobody asks how long it takes.
    Where the method leaves a prompt untouched its answer is the unsteered one (rule 2 of the runtime) and is not
    generated again. What the journal knows is not generated at all.
    """
    keys = [digest("answer", intervention.digest, vars(request)) for request in requests]
    missing = [i for i, key in enumerate(keys) if key not in journal]
    one_by_one = not isinstance(intervention, ProfileSteering)
    alone = {i for i in missing if one_by_one or (timed and (i == 0 or _timed(requests[i])))}
    with intervention.applied(llama):
        for i in sorted(alone):
            journal[keys[i]] = _ask(llama, intervention, requests[i])
            on_answer()
        together = [i for i in missing if i not in alone]
        found_together = _ask_together(llama, intervention, [requests[i] for i in together])
        for i, stored in zip(together, found_together, strict=True):
            journal[keys[i]] = stored
            on_answer()
    found = [_answer(journal[key]) for key in keys]
    for _ in range(len(requests) - len(missing)):
        on_answer()
    untouched = [i for i, answer in enumerate(found) if answer is None]
    if not untouched:
        return [answer for answer in found if answer is not None]
    plain = answer_all(llama, UNSTEERED, [requests[i] for i in untouched], journal, timed=timed)
    own = dict(zip(untouched, plain, strict=True))
    return [answer or _borrowed(own[i], journal[keys[i]]) for i, answer in enumerate(found)]


def _ask(llama: SteeredLlama, intervention: Intervention, request: Request) -> dict[str, Any]:
    """Text None means: as the unsteered model answers."""
    llama.forget()
    intervention.expect(len(chat_prompt(llama, request.messages)))
    started = time.perf_counter()
    text: str | None = greedy_answer(llama, request.messages, 1)
    first = time.perf_counter() - started
    reading = intervention.reading(llama)
    if intervention.digest != UNSTEERED.digest and not reading.steers:
        text = None
    else:
        # The prompt and its logits are still there, so this goes on where the first token was drawn.
        text = greedy_answer(llama, request.messages, request.max_tokens)
        llama.tap.check()
    seconds = time.perf_counter() - started
    return {"text": text, "first": round(first, 4), "seconds": round(seconds, 4), "reading": asdict(reading)}


def _timed(request: Request) -> bool:
    """Whether a request is asked alone: told by itself, so that a suite is timed by the same prompts every time."""
    return int(digest("timed", vars(request)), 16) % TIMED == 0


def _ask_together(
    llama: SteeredLlama, intervention: Intervention, requests: Sequence[Request]
) -> Iterator[dict[str, Any]]:
    """As `_ask`, under the active profiles, in the requests' order."""
    steered = intervention.digest != UNSTEERED.digest
    steer = active_steering(llama)
    asked = [greedy_request(llama, request.messages, request.max_tokens, steer) for request in requests]

    def steers(decisions: Sequence[Decision]) -> bool:
        return not steered or Reading.of(decisions).steers

    for answer in answers(llama, asked, at_most=_TOGETHER, wanted=steers):
        text = answer.text if steers(answer.decisions) else None
        yield {"text": text, "first": None, "seconds": None, "reading": asdict(Reading.of(answer.decisions))}


def _answer(stored: dict[str, Any]) -> Answer | None:
    if stored["text"] is None:
        return None
    return Answer(stored["text"], stored["first"], stored["seconds"], Reading.stored(stored["reading"]))


def _borrowed(plain: Answer, stored: dict[str, Any]) -> Answer:
    """The unsteered answer, with the method's own reading, and the time that its reading of the prompt took."""
    first, seconds = stored["first"], None
    if first is not None and plain.first is not None and plain.seconds is not None:
        seconds = first + plain.seconds - plain.first
    return replace(plain, first=first, seconds=seconds, reading=Reading.stored(stored["reading"]))
