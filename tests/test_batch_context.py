"""Streams of keys and values: rows that are rounded alike whatever else is there, and that cannot spoil each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from batching import tokens
from finesteer_local.errors import ModelError
from finesteer_local.runtime.batch.context import Streams, Token, bytes_per_token
from finesteer_local.runtime.tap import Rows
from reference import read, steered_llama
from tiny import PLACEHOLDER, vocabulary, write_tiny_model

pytestmark = pytest.mark.usefixtures("device")  # exact on every device


@pytest.fixture
def streams(tiny_model: Path) -> Iterator[Streams]:
    llama = steered_llama(tiny_model)
    streams = Streams(llama, n_sequences=4, n_ctx=100, n_ubatch=64, native_tap=True)
    yield streams
    streams.close()


def read_prompt(streams: Streams, sequence: int, prompt: Sequence[int], n_past: int = 0) -> np.ndarray:
    last = len(prompt) - 1
    streams.decode([Token(token, n_past + i, sequence, i == last) for i, token in enumerate(prompt)])
    return streams.logits(last).copy()


def test_a_prompt_is_read_as_alone(streams: Streams, tiny_model: Path) -> None:
    prompt = tokens(30)
    for sequence in (2, 0):
        assert np.array_equal(read_prompt(streams, sequence, prompt), read(steered_llama(tiny_model), prompt))


def test_the_rows_of_a_step_are_in_the_sequences_order(streams: Streams) -> None:
    """And each is what it is in another company, and after another history of its neighbours, bit for bit."""
    seen: list[np.ndarray] = []

    def look(_: int, rows: Rows) -> bool:
        seen.append(rows.read(0, rows.n_rows))
        return True

    def step(sequences: list[int]) -> None:
        streams.tap.arm({1: look})
        streams.decode([Token(10 + s, 20 + s, s, True) for s in sequences])
        streams.tap.disarm()
        found.append((seen.pop(), [streams.logits(row).copy() for row in range(len(sequences))]))

    found: list = []
    for history in (0, 1):
        streams.forget()
        for s in range(4):
            if history:
                read_prompt(streams, s, tokens(60, 9))
                streams.keep(s, 0)
            read_prompt(streams, s, tokens(20 + s, s))
        step([0, 1, 2, 3])
        for s in range(4):
            assert streams.keep(s, 20 + s) == 20 + s
        step([1, 2])
    (all_rows, all_logits), (two_rows, two_logits), *again = found
    assert np.array_equal(all_rows[1:3], two_rows)
    assert np.array_equal(all_logits[1:3], two_logits)
    assert np.array_equal(again[0][0], all_rows) and np.array_equal(again[0][1], all_logits)
    assert len({row.tobytes() for row in all_rows}) == 4


def test_nan_stays_in_its_sequence(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "nan.gguf", nan_token=True)
    streams = Streams(steered_llama(path), n_sequences=2, n_ctx=100, n_ubatch=64, native_tap=True)
    read_prompt(streams, 0, tokens(10))
    assert np.isnan(read_prompt(streams, 1, [*tokens(9), vocabulary().index(PLACEHOLDER)])).all()
    streams.decode([Token(5, 10, 0, True), Token(5, 10, 1, True)])
    assert np.isfinite(streams.logits(0)).all() and np.isnan(streams.logits(1)).all()
    streams.keep(1, 0)
    assert np.isnan(read_prompt(streams, 1, tokens(5))).any()  # its masked cells still do harm
    streams.forget()
    assert np.isfinite(read_prompt(streams, 1, tokens(5))).all()


def test_a_saved_sequence_is_the_same_bit_for_bit(streams: Streams) -> None:
    head, tail = tokens(40), tokens(20, 1)
    read_prompt(streams, 0, head)
    if not streams.restores_exactly:
        pytest.skip("a sliding window's cells move: the batch does not copy them")
    data = streams.save(0)
    expected = read_prompt(streams, 0, tail, 40)
    read_prompt(streams, 3, tokens(50, 2))
    assert streams.load(3, data)
    assert np.array_equal(read_prompt(streams, 3, tail, 40), expected)


def test_what_was_not_saved_is_not_loaded(streams: Streams) -> None:
    assert not streams.load(1, np.zeros(100, np.uint8))
    read_prompt(streams, 1, tokens(10))


def test_what_llama_cpp_cannot_decode(streams: Streams) -> None:
    read_prompt(streams, 0, tokens(10))
    with pytest.raises(ModelError, match="could not decode"):
        streams.decode([Token(5, 30, 0, True)])  # a gap
    read_prompt(streams, 0, tokens(10, 1), 10)


def test_a_context_that_cannot_be_made(tiny: Path) -> None:
    with pytest.raises(ModelError, match="ask for fewer"):
        Streams(steered_llama(tiny), n_sequences=300, n_ctx=100, n_ubatch=64, native_tap=True)


def test_the_size_of_the_cache(tiny: Path) -> None:
    assert bytes_per_token(steered_llama(tiny)) == 4 * (2 * 16) * 2 * 2  # layers, heads x width, keys and values, f16


def test_a_moved_sequence_goes_on_as_if_it_had_always_been_there(streams: Streams) -> None:
    prompt = tokens(30)
    read_prompt(streams, 3, prompt)
    read_prompt(streams, 1, tokens(50, 4))
    wanted = read_prompt(streams, 3, [7], 30)
    streams.keep(3, 30)
    assert streams.can_move
    streams.move(3, 1)
    np.testing.assert_array_equal(read_prompt(streams, 1, [7], 30), wanted)
    np.testing.assert_array_equal(read_prompt(streams, 3, [7], 30), wanted)  # and is still where it was
