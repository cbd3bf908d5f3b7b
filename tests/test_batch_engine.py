"""The engine's thread: submitting from anywhere, events in threads and event loops, limits, closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batching import alone, request, same_decisions, tokens
from finesteer_local.errors import (
    EngineClosedError,
    EngineError,
    ProfileError,
    ProfileMismatchError,
    PromptError,
    QueueFullError,
    SteeringError,
)
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.batch import BatchEngine, Decided, Finished, Load, Request, Sampling, Steer
from finesteer_local.runtime.batch.answer import CANCELLED
from reference import steered_llama
from tiny import make_profile, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device


@pytest.fixture
def llama(tiny: Path) -> Iterator[SteeredLlama]:
    llama = steered_llama(tiny)
    yield llama
    llama.close()


def test_requests_from_many_threads(llama: SteeredLlama, tiny: Path) -> None:
    profile = make_profile(tiny, gate="selective", scope="turn")
    requests = [request(tokens(8 + i, i), *([profile] if i % 3 else []), turn=i % 5) for i in range(24)]
    found: dict[int, object] = {}
    with BatchEngine(llama, n_parallel=3) as engine:

        def ask(i: int) -> None:
            found[i] = engine.submit(requests[i]).result()

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.load == Load(0, 0, 3)
    for i, wanted in enumerate(requests):
        text, decisions = alone(llama, wanted)
        assert found[i].text == text
        assert same_decisions(found[i].decisions, decisions)


def test_events_in_an_event_loop(llama: SteeredLlama, tiny: Path) -> None:
    profile = make_profile(tiny, scope="turn")
    requests = [request(tokens(10, i), profile, max_tokens=9) for i in range(6)]

    async def ask(engine: BatchEngine, wanted: Request) -> tuple[str, list[object]]:
        text, kinds = "", []
        async for event in engine.submit(wanted):
            kinds.append(type(event))
            text += getattr(event, "text", "")
        return text, kinds

    async def main(engine: BatchEngine) -> list[tuple[str, list[object]]]:
        return await asyncio.gather(*(ask(engine, wanted) for wanted in requests))

    with BatchEngine(llama, n_parallel=2) as engine:
        found = asyncio.run(main(engine))
    for wanted, (text, kinds) in zip(requests, found, strict=True):
        assert text == alone(llama, wanted)[0]
        assert kinds[0] is Decided and kinds[-1] is Finished


def test_cancel_from_another_thread_frees_the_place(llama: SteeredLlama) -> None:
    with BatchEngine(llama, n_parallel=1) as engine:
        endless = engine.submit(request(tokens(10), max_tokens=None))
        events = iter(endless)
        next(events)  # it runs
        waiting = engine.submit(request(tokens(12, 2)))
        endless.cancel()
        assert list(events)[-1].reason == CANCELLED
        assert waiting.result().text == alone_later(llama, request(tokens(12, 2)))
        endless.cancel()  # once more does nothing


def alone_later(llama: SteeredLlama, wanted: Request) -> str:
    """The engine leaves the model's own context alone: it can be used beside it."""
    return alone(llama, wanted)[0]


def test_an_event_loop_that_leaves_cancels(llama: SteeredLlama) -> None:
    async def main(engine: BatchEngine) -> None:
        stream = engine.submit(request(tokens(10), max_tokens=None))
        async for _ in stream:
            break
        stream.cancel()
        assert (await asyncio.to_thread(lambda: list(stream)))[-1].reason == CANCELLED

    with BatchEngine(llama, n_parallel=1) as engine:
        asyncio.run(main(engine))
        assert engine.submit(request(tokens(5))).result().finished.n_answer == 12


def test_the_queue_has_an_end(llama: SteeredLlama) -> None:
    with BatchEngine(llama, n_parallel=1, max_queue=2) as engine:
        running = engine.submit(request(tokens(10), max_tokens=None))
        next(iter(running))
        waiting = [engine.submit(request(tokens(10, i))) for i in range(2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            engine.submit(request(tokens(10)))
        waiting[0].cancel()
        waiting[0].result()
        engine.submit(request(tokens(10))).cancel()  # there is room again
        running.cancel()
        assert waiting[1].result().finished.n_answer == 12


def test_closing_ends_what_runs_and_what_waits(llama: SteeredLlama) -> None:
    engine = BatchEngine(llama, n_parallel=1)
    streams = [engine.submit(request(tokens(10), max_tokens=None)) for _ in range(3)]
    engine.close()
    for stream in streams:
        with pytest.raises(EngineClosedError, match="closed"):
            stream.result()
    with pytest.raises(EngineClosedError, match="closed"):
        engine.submit(request(tokens(10)))
    engine.close()
    assert alone(llama, request(tokens(10)))[0]  # the model lives on


def test_draining_answers_what_was_accepted(llama: SteeredLlama) -> None:
    engine = BatchEngine(llama, n_parallel=1)
    streams = [engine.submit(request(tokens(10, i))) for i in range(3)]
    engine.close(drain=True)
    assert [stream.result().finished.n_answer for stream in streams] == [12, 12, 12]


def test_an_unexpected_failure_of_the_engine_reaches_every_request(
    llama: SteeredLlama, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = BatchEngine(llama, n_parallel=1)
    monkeypatch.setattr(engine._scheduler, "step", lambda: 1 / 0)
    stream = engine.submit(request(tokens(10)))
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        stream.result()
    engine.close()
    assert "ZeroDivisionError" in caplog.text


BAD = {
    "empty": ({"prompt": []}, PromptError, "empty"),
    "too long": ({"prompt": tokens(600)}, PromptError, "600 tokens, the context only 512"),
    "unknown token": ({"prompt": [1, 100_000]}, PromptError, "vocabulary"),
    "turn": ({"turn": 10}, PromptError, "outside"),
    "max_tokens": ({"max_tokens": -1}, PromptError, "negative"),
    "logprobs": ({"logprobs": -1}, PromptError, "negative"),
    "stop": ({"stop": ("a", "")}, PromptError, "stop word"),
    "seed": ({"sampling": Sampling(seed=-1)}, PromptError, "seed"),
    "bias": ({"sampling": Sampling(logit_bias={-1: 1.0})}, PromptError, "vocabulary"),
    "grammar": ({"sampling": Sampling(grammar="root ::= (")}, PromptError, "grammar"),
    "no root": ({"sampling": Sampling(grammar='a ::= "b"')}, PromptError, "grammar"),
    "left recursion": ({"sampling": Sampling(grammar="root ::= root")}, PromptError, "grammar"),
    "endless grammar": ({"sampling": Sampling(grammar="a" * (1 << 19))}, PromptError, "longer"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_the_caller_got_wrong_is_said_at_once(llama: SteeredLlama, what: str) -> None:
    changes, kind, message = BAD[what]
    with BatchEngine(llama, n_parallel=1) as engine:
        with pytest.raises(kind, match=message):
            engine.submit(Request(**{"prompt": tokens(10), **changes}))
        assert engine.submit(request(tokens(10))).result().finished.n_answer == 12


def test_profiles_are_checked(llama: SteeredLlama, tiny: Path, tmp_path: Path) -> None:
    profile = make_profile(tiny)
    other = make_profile(write_tiny_model(tmp_path / "other.gguf", nudge=0.1))
    with BatchEngine(llama, n_parallel=1) as engine:
        for steer, kind in (
            ((Steer(other),), ProfileMismatchError),
            ((Steer(profile), Steer(profile)), ProfileError),
            ((Steer(profile, strength=-1.0),), ProfileError),
            ((Steer(profile, strength=float("nan")),), ProfileError),
            ((Steer(profile, scope="answer"),), ProfileError),
        ):
            with pytest.raises(kind):
                engine.submit(Request(tokens(10), steer=steer))


def test_a_model_that_cannot_be_steered_still_answers(
    llama: SteeredLlama, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise SteeringError("no steering")

    monkeypatch.setattr(llama, "check_steerable", refuse)
    with BatchEngine(llama, n_parallel=1) as engine:
        with pytest.raises(SteeringError, match="no steering"):
            engine.submit(request(tokens(10), make_profile(tiny)))
        assert engine.submit(request(tokens(10))).result().text


def test_a_seed_that_was_drawn_is_told(llama: SteeredLlama) -> None:
    hot = Sampling(temperature=2.0, min_p=0.0, top_p=1.0)
    with BatchEngine(llama, n_parallel=2) as engine:
        first, second = (engine.submit(request(tokens(10), sampling=hot)).result() for _ in range(2))
        assert first.finished.seed != second.finished.seed
        again = Sampling(temperature=2.0, min_p=0.0, top_p=1.0, seed=first.finished.seed)
        assert engine.submit(request(tokens(10), sampling=again)).result().text == first.text


def test_the_number_of_places_is_checked(llama: SteeredLlama) -> None:
    for n in (0, 257):
        with pytest.raises(ValueError, match="1 to 256"):
            BatchEngine(llama, n_parallel=n)
