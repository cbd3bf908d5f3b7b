"""One answer from a model: streamed, timed, stoppable, with what the gates decided."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finesteer_local.cli._interrupt import interrupts_to
from finesteer_local.cli._options import Sampling
from finesteer_local.errors import ContextLengthError, FineSteerError, PromptError

if TYPE_CHECKING:
    from finesteer_local.profile import Profile
    from finesteer_local.runtime import SteeredLlama
    from finesteer_local.steering import Decision


Message = Mapping[str, Any]
OnText = Callable[[str], None]

STOP, LENGTH, INTERRUPTED = "stop", "length", "interrupted"


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and how it came about."""

    text: str
    readings: tuple[tuple[Profile, Decision], ...]  # one an active profile
    n_prompt: int  # tokens
    n_answer: int  # tokens
    prompt_seconds: float  # until the first token
    answer_seconds: float  # from the first token on
    finish: str  # "stop", "length" or "interrupted"

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


def answer_chat(
    llama: SteeredLlama, messages: Sequence[Message], sampling: Sampling, on_text: OnText | None = None
) -> Answer:
    """Answer a conversation; Ctrl-C ends the answer early, with `finish` saying so.

    Raises:
        PromptError: the model's template rejects the conversation, or it does not fit the context.
    """
    n_prompt = chat_length(llama, messages)
    return _answer(
        llama,
        n_prompt,
        lambda options: llama.create_chat_completion(list(messages), stream=True, **options),
        lambda choice: str(choice["delta"].get("content") or ""),
        sampling,
        on_text,
    )


def answer_raw(llama: SteeredLlama, prompt: str, sampling: Sampling, on_text: OnText | None = None) -> Answer:
    """Continue `prompt` as it is, without a chat template; otherwise as `answer_chat`."""
    n_prompt = len(llama.tokenize(prompt.encode(), special=True))
    _check_fits(llama, n_prompt)
    return _answer(
        llama,
        n_prompt,
        lambda options: llama.create_completion(prompt, stream=True, **options),
        lambda choice: str(choice["text"]),
        sampling,
        on_text,
    )


def answer_rows(
    llama: SteeredLlama, prompts: Sequence[str | Sequence[Message]], sampling: Sampling, parallel: int | None = None
) -> Iterator[Answer]:
    """Answer many prompts, several at a time; the answers come in the prompts' order.

    Args:
        prompts: each a conversation, or text that is continued as it is.
        parallel: prompts at a time; None leaves it to the engine.

    Raises:
        PromptError: as for `answer_chat`, with the row's number; nothing was answered then.
    """
    from finesteer_local.runtime.batch import active_steering, answers, chat_request, completion_request

    steer, requests = active_steering(llama), []
    for number, prompt in enumerate(prompts, 1):
        make: Any = completion_request if isinstance(prompt, str) else chat_request
        try:
            request = make(llama, prompt, steer=steer, **sampling.arguments())
            _check_fits(llama, len(request.prompt))
        except PromptError as error:
            raise PromptError(f"row {number}: {error}") from error
        requests.append(request)
    for answer in answers(llama, requests, n_parallel=parallel):
        done = answer.finished
        readings = tuple(zip(llama.profiles, answer.decisions, strict=True))
        yield Answer(
            answer.text, readings, done.n_prompt, done.n_answer, done.prompt_seconds, done.answer_seconds, done.reason
        )


def chat_length(llama: SteeredLlama, messages: Sequence[Message]) -> int:
    """Tokens of the prompt that a conversation becomes.

    Raises:
        PromptError: as for `answer_chat`.
    """
    from finesteer_local.runtime.prompt import chat_prompt

    try:
        n_prompt = len(chat_prompt(llama, messages))
    except FineSteerError:
        raise
    except Exception as error:  # a template is a program that came with the model
        raise PromptError(f"the model's chat template rejects this conversation: {error}") from error
    _check_fits(llama, n_prompt)
    return n_prompt


def _check_fits(llama: SteeredLlama, n_prompt: int) -> None:
    if n_prompt >= llama.n_ctx():
        raise ContextLengthError(n_prompt, llama.n_ctx(), "shorten it or make room with --ctx")


def _answer(
    llama: SteeredLlama,
    n_prompt: int,
    start: Callable[[dict[str, Any]], Iterator[Any]],
    text_of: Callable[[Any], str],
    sampling: Sampling,
    on_text: OnText | None,
) -> Answer:
    if sampling.seed is None:
        # llama-cpp-python's own default gives every request the same seed.
        sampling = replace(sampling, seed=secrets.randbits(31))
    text, finish = "", INTERRUPTED
    began = time.perf_counter()
    first = last = began
    stream = None
    interrupts = _Interrupts()
    with interrupts_to(interrupts.on_signal):
        try:
            stream = start(sampling.arguments())
            for chunk in stream:
                last = time.perf_counter()
                if not interrupts.gentle:
                    first, interrupts.gentle = last, True
                choice = chunk["choices"][0]
                piece = text_of(choice)
                text += piece
                if piece and on_text:
                    on_text(piece)
                finish = choice.get("finish_reason") or finish
                if interrupts.seen:
                    break
        except KeyboardInterrupt:
            finish = INTERRUPTED
            if not interrupts.gentle:  # the prompt was being read: nothing was decided
                return Answer(text, (), n_prompt, 0, last - began, 0.0, finish)
        finally:
            if stream is not None:
                stream.close()  # type: ignore[attr-defined]
    # The last token of an answer that was cut at its length was never fed back to the model.
    n_answer = llama.n_tokens - n_prompt + (finish == LENGTH)
    readings = tuple(zip(llama.profiles, llama.last_decisions, strict=True))
    return Answer(text, readings, n_prompt, n_answer, first - began, last - first, finish)


class _Interrupts:
    """Ctrl-C while a prompt is read raises at once; once the answer runs, the first one asks it to stop."""

    def __init__(self) -> None:
        self.gentle = False
        self.seen = False

    def on_signal(self) -> None:
        if self.seen or not self.gentle:
            raise KeyboardInterrupt
        self.seen = True
