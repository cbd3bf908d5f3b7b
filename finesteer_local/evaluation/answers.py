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
from finesteer_local.runtime.batch import answers, chat_request
from finesteer_local.runtime.batch.answer import STOP
from finesteer_local.runtime.prompt import chat_prompt
from finesteer_local.steering import Decision

TIMED = 8
"""Every so many requests, one is answered alone and timed, the same ones for every method; the rest share the model."""
_TOGETHER = 16


@dataclass(frozen=True)
class EvalRequest:
    """One prompt, and how it is answered.

    Attributes:
        max_tokens: longest answer, in tokens.
        temperature: 0 is greedy. Everything else is chosen as `chat` chooses it.
        seed: of a sampled answer. Each prompt draws numbers of its own (`drawn`), so that a seed is no luck that all
            prompts share.
    """

    messages: Messages
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0

    @property
    def drawn(self) -> int | None:
        """What llama.cpp's sampler is seeded with, and `run --seed` takes; None where nothing is drawn."""
        return int(digest("seed", self.seed, self.messages)[:7], 16) if self.temperature else None

    def options(self, max_tokens: int | None = None) -> dict[str, Any]:
        """What `create_chat_completion` takes, the messages left out; `max_tokens` may be another."""
        return {
            "max_tokens": self.max_tokens if max_tokens is None else max_tokens,
            "temperature": self.temperature,
            "repeat_penalty": 1.0,
            "seed": self.drawn,
        }


@dataclass(frozen=True)
class EvalAnswer:
    """An answer.

    Attributes:
        ended: whether the model ended it by itself, and was not cut off.
        n_tokens: its length; the end of turn does not count.
        first, seconds: time until the first token, and for all of it; None where it was answered beside others.
        reading: what the method made of the prompt.
    """

    text: str
    ended: bool
    n_tokens: int
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
    requests: Sequence[EvalRequest],
    journal: Journal,
    *,
    timed: bool = True,
    on_answer: Callable[[], None] = lambda: None,
) -> list[EvalAnswer]:
    """Answer every request under `intervention`, each from an empty cache.

    Profiles, and the unsteered model, answer several requests at a time; the first and every TIMED-th is asked alone
    and timed, unless nobody asks how long it takes. Sampled answers are never timed.
    Where the method leaves a prompt untouched its answer is the unsteered one (rule 2 of the runtime) and is not
    generated again, unless the method reads answers. What the journal knows is not generated at all.
    """
    keys = [digest("whole answer", intervention.digest, vars(request)) for request in requests]
    missing = [i for i, key in enumerate(keys) if key not in journal]
    one_by_one = not isinstance(intervention, ProfileSteering)
    alone = {i for i in missing if one_by_one or (timed and _timed(requests[i], first=i == 0))}
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


def _ask(llama: SteeredLlama, intervention: Intervention, request: EvalRequest) -> dict[str, Any]:
    """Text None means: as the unsteered model answers."""
    llama.forget()
    intervention.expect(len(chat_prompt(llama, request.messages)))
    started = time.perf_counter()
    said = _chat(llama, request, max_tokens=1)
    first = time.perf_counter() - started
    reading = intervention.reading(llama)
    if intervention.digest != UNSTEERED.digest and not (reading.steers or reading.watched):
        said = _NOTHING
    else:
        # The prompt and its logits are still there, so this goes on where the first token was drawn.
        said = _chat(llama, request)
        llama.tap.check()
        reading = intervention.reading(llama) if reading.watched else reading
    seconds = time.perf_counter() - started
    return {**said, "first": round(first, 4), "seconds": round(seconds, 4), "reading": asdict(reading)}


_NOTHING: dict[str, Any] = {"text": None, "ended": False, "n_tokens": 0}


def _chat(llama: SteeredLlama, request: EvalRequest, max_tokens: int | None = None) -> dict[str, Any]:
    """Ask one request alone."""
    answer: Any = llama.create_chat_completion(list(request.messages), **request.options(max_tokens))
    [choice] = answer["choices"]
    return {
        "text": str(choice["message"]["content"] or ""),
        "ended": choice["finish_reason"] == STOP,
        "n_tokens": answer["usage"]["completion_tokens"],
    }


def _timed(request: EvalRequest, *, first: bool) -> bool:
    """Whether a request is answered alone. The request itself decides, so that every run times the same prompts."""
    return not request.temperature and (first or int(digest("timed", vars(request)), 16) % TIMED == 0)


def _ask_together(
    llama: SteeredLlama, intervention: Intervention, requests: Sequence[EvalRequest]
) -> Iterator[dict[str, Any]]:
    """As `_ask`, under the active profiles, in the requests' order."""
    steered = intervention.digest != UNSTEERED.digest
    asked = [chat_request(llama, request.messages, steer=llama.steer, **request.options()) for request in requests]

    def wanted(decisions: Sequence[Decision]) -> bool:
        reading = Reading.of(decisions)
        return not steered or reading.steers or reading.watched

    for answer in answers(llama, asked, at_most=_TOGETHER, wanted=wanted):
        reading = Reading.of(answer.decisions)
        ended, n_tokens = answer.finished.reason == STOP, answer.finished.n_answer
        said = {"text": answer.text, "ended": ended, "n_tokens": n_tokens}
        said = said if not steered or reading.differs else _NOTHING
        yield {**said, "first": None, "seconds": None, "reading": asdict(reading)}


def _answer(stored: dict[str, Any]) -> EvalAnswer | None:
    if stored["text"] is None:
        return None
    return EvalAnswer(**{**stored, "reading": Reading.stored(stored["reading"])})


def _borrowed(plain: EvalAnswer, stored: dict[str, Any]) -> EvalAnswer:
    """The unsteered answer, with the method's own reading, and the time that its reading of the prompt took."""
    first, seconds = stored["first"], None
    if first is not None and plain.first is not None and plain.seconds is not None:
        seconds = first + plain.seconds - plain.first
    return replace(plain, first=first, seconds=seconds, reading=Reading.stored(stored["reading"]))
