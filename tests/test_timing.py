"""What is timed is what is meant: the same tokens, from an empty cache, and nothing stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp

from batching import tokens
from finesteer_local.errors import ModelError, PromptError
from finesteer_local.runtime import timing
from finesteer_local.runtime.batch.context import Streams
from finesteer_local.runtime.batch.timing import bare_tokens
from reference import answer, logits, plain_llama, read, steered_llama
from tiny import make_profile, write_tiny_model

PROMPT = tokens(20)


def sizes_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that llama.cpp decodes from here on."""
    sizes: list[int] = []
    real = llama_cpp.llama_decode

    def decode(ctx, batch):
        sizes.append(batch.n_tokens)
        return real(ctx, batch)

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)
    return sizes


@pytest.mark.parametrize("way", [timing.generated, timing.decoded])
def test_one_prompt_then_one_token_at_a_time(tiny: Path, way, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = plain_llama(tiny)
    answer(llama, PROMPT[:12])  # a beginning that could be reused
    sizes = sizes_of(monkeypatch)
    assert timing.first_seconds(way(llama, PROMPT)) > 0 and sizes == [20]
    sizes.clear()
    [each] = timing.token_seconds([way(llama, PROMPT)], 3)
    assert sizes == [20, 1, 1, 1] and each > 0
    assert answer(llama, PROMPT) == answer(plain_llama(tiny), PROMPT)  # and nothing of it stays


def test_answers_grow_by_turns() -> None:
    seen = []

    def stream(name: str):
        while True:
            seen.append(name)
            yield 0

    assert len(timing.token_seconds([stream("a"), stream("b")], 3)) == 2
    assert "".join(seen) == "ab" + "ab" + "ba" + "ab"


def test_a_prompt_longer_than_a_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = plain_llama(tiny, n_batch=64)
    sizes = sizes_of(monkeypatch)
    timing.token_seconds([timing.decoded(llama, tokens(150))], 1)
    assert sizes == [64, 64, 22, 1]


@pytest.mark.parametrize("way", [timing.generated, timing.decoded])
def test_what_does_not_fit(tiny: Path, way) -> None:
    llama = plain_llama(tiny, n_ctx=256)
    next(way(llama, tokens(255)))
    for prompt in (tokens(256), []):
        with pytest.raises(PromptError, match="raise --ctx"):
            next(way(llama, prompt))


def test_under_a_control_vector(tiny: Path) -> None:
    llama, vector = plain_llama(tiny), {2: np.full(64, 0.5, np.float32)}
    with timing.controlled(llama, vector):
        next(timing.generated(llama, PROMPT))
        steered = logits(llama)
    next(timing.generated(llama, PROMPT))
    np.testing.assert_array_equal(steered, read(plain_llama(tiny), PROMPT, [(0, vector)]))
    np.testing.assert_array_equal(logits(llama), read(plain_llama(tiny), PROMPT))
    assert list(timing.some_vector(llama)) == [2] and timing.some_vector(llama)[2].shape == (64,)


def test_ours_is_steered(tiny: Path) -> None:
    llama = steered_llama(tiny, profiles=[make_profile(tiny)])
    next(timing.generated(llama, PROMPT))
    assert llama.last_decision is not None and llama.last_decision.open


def test_a_model_that_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        timing.open_plain(tmp_path / "missing.gguf", n_ctx=64, n_threads=1)


def test_seconds_of_what_yields() -> None:
    done = []

    def work():
        for i in range(3):
            done.append(i)
            yield i

    assert timing.seconds_of(work) >= 0 and done == [0, 1, 2]
    assert timing.seconds_of(lambda: done.clear()) >= 0 and done == []


@pytest.mark.parametrize("together", [True, False])
def test_a_bare_batch_answers_each_prompt(tmp_path: Path, together: bool) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    llama, prompts, lengths = steered_llama(path), [tokens(n, n) for n in (9, 80, 30)], [2, 6, 4]
    streams = Streams(llama, n_sequences=3, n_ctx=100, n_ubatch=64, native_tap=True)
    found = bare_tokens(streams, prompts, lengths, together=together)
    streams.close()
    assert found == [answer(plain_llama(path), p, n) for p, n in zip(prompts, lengths, strict=True)]
