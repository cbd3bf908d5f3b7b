"""Many requests at once: what together gains over one after the other, and what a decision of its own for each costs.

All answers have one length, so that every way does the same work: the questions are those whose answers reach it,
steered and unsteered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from finesteer_local.bench.profiles import opened
from finesteer_local.bench.series import Series, Way, alternate
from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import BatchEngine, Request, Steer, answers, chat_request
from finesteer_local.runtime.batch.context import Streams
from finesteer_local.runtime.batch.timing import bare_tokens
from finesteer_local.runtime.prompt import Message
from finesteer_local.runtime.threads import release_workers

SUBJECTS = (
    "how a bicycle stays upright", "why bread rises in the oven", "what makes a good neighbour",
    "the history of the lighthouse", "how to plan a small garden", "why cats sleep so much",
    "the difference between weather and climate", "how a piano makes its sound", "what a census is for",
    "how to repair a wooden chair", "why the sea is salty", "how a library orders its books",
    "what happens during a lunar eclipse", "how to prepare for a job interview", "why onions make us cry",
    "how trains change tracks",
)  # fmt: skip
TASKS = (
    "I have to give a talk tomorrow. Its subject is {}. Write its first paragraph.",
    "Explain {}, in your own words and in great detail.",
    "My grandmother asked me about {} and I did not know what to say. What should I tell her?",
    "Write a long poem. Its subject: {}.",
)
BARE, UNSTEERED, STEERED = "llama.cpp alone", "unsteered", "steered"
ALONE, TOGETHER = "one after the other", "together"
GAIN = {what: f"{what}: together / one after the other" for what in (BARE, UNSTEERED, STEERED)}
COST = "together: each with its own decision / unsteered"


def conversations(n: int) -> list[list[Message]]:
    """The first `n` of all tasks for all subjects; they differ."""
    questions = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    return [[{"role": "user", "content": question}] for question in questions[:n]]


class BatchBench:
    """Requests that are answered in full length, and the places to answer them in.

    Args:
        n: requests at a time, at most.
        n_answer: tokens of every answer.
        look_at: questions to choose from.

    Raises:
        DataError: the model ends nearly all of its answers early.
    """

    def __init__(self, llama: SteeredLlama, profile: Profile, *, n: int, n_answer: int, look_at: int) -> None:
        self.llama, self.profile, self.n_answer = llama, opened(profile), n_answer
        llama.set_profiles([])
        chats = conversations(look_at)
        plain = [chat_request(llama, chat, max_tokens=n_answer, temperature=0.0) for chat in chats]
        steered = [replace(request, steer=(Steer(self.profile),)) for request in plain]
        whole = [
            i
            for i, pair in enumerate(zip(answers(llama, plain), answers(llama, steered), strict=True))
            if all(answer.finished.n_answer == n_answer for answer in pair)
        ][:n]
        if len(whole) < n:
            raise DataError(
                f"only {len(whole)} of {look_at} answers reach {n_answer} tokens, so {n} at a time cannot be compared: "
                "leave out --what batch"
            )
        self.chats = [chats[i] for i in whole]
        self.requests = {UNSTEERED: [plain[i] for i in whole], STEERED: [steered[i] for i in whole]}
        n_ctx = max(len(request.prompt) for request in plain) + n_answer + 1
        self.streams = Streams(llama, n_sequences=n, n_ctx=n_ctx, n_ubatch=512, native_tap=True)
        self.engine = BatchEngine(llama, n_parallel=n, n_ctx=n_ctx)

    def close(self) -> None:
        self.engine.close()
        self.streams.close()

    def ways(self, n: int, lengths: Sequence[int] | None = None) -> dict[str, Way]:
        """Tokens a second, prompts and answers, of answering the first `n` requests.

        Args:
            lengths: tokens of each answer instead of the full length.
        """
        limits = list(lengths) if lengths else [self.n_answer] * n
        requests = {
            name: [replace(r, max_tokens=limit) for r, limit in zip(found[:n], limits, strict=True)]
            for name, found in self.requests.items()
        }
        n_tokens = sum(len(r.prompt) + limit for r, limit in zip(self.requests[UNSTEERED][:n], limits, strict=True))

        def timed(work: Callable[[], object]) -> Way:
            def way() -> float:
                started = time.perf_counter()
                work()
                seconds = time.perf_counter() - started
                release_workers()  # the next way may compute in another thread
                return n_tokens / seconds

            return way

        prompts = [request.prompt for request in requests[UNSTEERED]]
        return {
            f"{BARE}, {ALONE}": timed(lambda: bare_tokens(self.streams, prompts, limits, together=False)),
            f"{BARE}, {TOGETHER}": timed(lambda: bare_tokens(self.streams, prompts, limits, together=True)),
            f"{UNSTEERED}, {ALONE}": timed(lambda: self._one_by_one(n, limits, [])),
            f"{UNSTEERED}, {TOGETHER}": timed(lambda: self._together(requests[UNSTEERED])),
            f"{STEERED}, {ALONE}": timed(lambda: self._one_by_one(n, limits, [self.profile])),
            f"{STEERED}, {TOGETHER}": timed(lambda: self._together(requests[STEERED])),
        }

    def _one_by_one(self, n: int, limits: Sequence[int], profiles: list[Profile]) -> None:
        self.llama.set_profiles(profiles)
        self.llama.forget()
        for chat, limit in zip(self.chats[:n], limits, strict=True):
            self.llama.create_chat_completion(chat, max_tokens=limit, temperature=0.0)

    def _together(self, requests: Sequence[Request]) -> None:
        for stream in [self.engine.submit(request) for request in requests]:
            stream.result()


def batch_series(series: Series, ways: dict[str, Way], rounds: int, advance: Callable[[], None]) -> None:
    """The ways of answering some requests, and what together gains."""
    alternate(series, ways, rounds, advance)
    series.pairs = [
        *((GAIN[what], f"{what}, {TOGETHER}", f"{what}, {ALONE}") for what in (BARE, UNSTEERED, STEERED)),
        (COST, f"{STEERED}, {TOGETHER}", f"{UNSTEERED}, {TOGETHER}"),
        ("together: unsteered / llama.cpp alone", f"{UNSTEERED}, {TOGETHER}", f"{BARE}, {TOGETHER}"),
    ]
