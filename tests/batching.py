"""Requests for the batch, and what they give alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import GREEDY, Answer, AnswerStream, Request, Sizes, Steer
from finesteer_local.runtime.batch.context import Streams
from finesteer_local.runtime.batch.sampler import Sampler
from finesteer_local.runtime.batch.scheduler import Scheduler
from finesteer_local.runtime.batch.sequence import Waiting
from finesteer_local.steering import Decision


def tokens(n: int, seed: int = 0) -> list[int]:
    """A prompt of printable letters for the tiny models."""
    return np.random.default_rng(seed).integers(3, 90, n).tolist()


def request(prompt: Sequence[int], *profiles: Profile, turn: int = 0, max_tokens: int = 12, **options: Any) -> Request:
    steer = tuple(Steer(profile) for profile in profiles)
    return Request(prompt, **{"turn": turn, "steer": steer, "sampling": GREEDY, "max_tokens": max_tokens, **options})


def alone(llama: SteeredLlama, wanted: Request) -> tuple[str, tuple[Decision, ...]]:
    """Greedy text and decisions of `wanted` from `SteeredLlama`, with nothing in the cache."""
    llama.set_profiles([steer.profile for steer in wanted.steer])
    llama.forget()
    llama.expect(wanted.turn)
    answer: list[int] = []
    for token in llama.generate(list(wanted.prompt), temp=0.0):
        answer.append(token)
        if len(answer) == wanted.max_tokens:
            break
    return llama.detokenize(answer).decode(errors="ignore"), llama.last_decisions


class Batch:
    """A scheduler that a test drives itself: what happens in which step is not left to chance."""

    def __init__(self, llama: SteeredLlama, n_parallel: int = 4, native_tap: bool = True, **sizes: int) -> None:
        sizes.setdefault("between", sizes.get("chunk", Sizes.between))
        self.sizes = Sizes(**sizes)
        self.streams = Streams(
            llama, n_sequences=n_parallel, n_ctx=llama.n_ctx(), n_ubatch=self.sizes.whole + 1, native_tap=native_tap
        )
        self.scheduler = Scheduler(llama, self.streams, n_slots=n_parallel, sizes=self.sizes, prefix_bytes=1 << 20)

    def submit(self, wanted: Request) -> AnswerStream:
        stream, seed = AnswerStream(), wanted.sampling.seed or 0
        self.scheduler.queue.append(Waiting(wanted, stream, Sampler(self.scheduler.llama, wanted.sampling, seed), seed))
        return stream

    def run(self, *wanted: Request) -> list[Answer]:
        """All answers; raises the first error."""
        streams = [self.submit(one) for one in wanted]
        self.finish()
        return [stream.result() for stream in streams]

    def finish(self) -> None:
        while not self.scheduler.idle:
            self.scheduler.step()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.streams.close()


def same_decisions(a: Sequence[Decision], b: Sequence[Decision]) -> bool:
    """Whether two requests were decided alike, bit for bit."""
    return len(a) == len(b) and all(
        (x.profile, x.g, x.score, x.scope, x.strength) == (y.profile, y.g, y.score, y.scope, y.strength)
        and x.vectors.keys() == y.vectors.keys()
        and all(np.array_equal(x.vectors[layer], y.vectors[layer]) for layer in x.vectors)
        for x, y in zip(a, b, strict=True)
    )
