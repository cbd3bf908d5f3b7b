"""What the gates on one answer read, when they open, where an answer is taken back to; nothing here runs a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.answer_watch import NEAR, AnswerWatches, StatesOf, sentence_start
from finesteer_local.steering import AnswerGate, AnswerReading
from test_steered_request import FakeRows

GATE = AnswerGate(2, np.array([1, 0], np.float32), bias=0.0, decay=0.0, threshold=1.0, first=2)


def states(*numbers: float) -> dict[int, np.ndarray]:
    rows = np.array([[number, 7] for number in numbers], np.float32)
    return {2: rows, 1: rows}


def back_to(first: int, at: int) -> int:
    return first + (at - first) // 2


def test_what_is_read_and_what_opens() -> None:
    watches = AnswerWatches({1: (replace(GATE, every=2), "rewind"), 3: (replace(GATE, layer=1), "report")})
    assert (watches.layers(1), watches.layers(2), watches.look_ahead) == ({1}, {1, 2}, 2)
    assert watches.read(1, states(0), back_to) == []
    assert watches.layers(1) == {1, 2}
    assert watches.read(2, states(0.25, 9), back_to) == [(3, "report", 3)]
    assert watches.reading(3) == AnswerReading("report", 1.0, 9.0, 3)
    assert watches.reading(1) == AnswerReading("rewind", 1.0, 0.25)
    assert watches.reading(0) is None
    assert list(watches.shut) == [1]
    assert watches.read(1, states(5), back_to) == [(1, "rewind", 1)]  # it began after the second
    watches.took_back(1, "steer", 3)
    assert watches.reading(1) == AnswerReading("steer", 1.0, 5.0, 4, 3)
    assert not watches.shut and watches.look_ahead == 0 and not watches.layers(99)


def test_the_strictest_comes_last() -> None:
    actions = ("stop", "report", "rewind", "steer")
    watches = AnswerWatches({i: (replace(GATE, first=1), action) for i, action in enumerate(actions)})
    found = [opening.action for opening in watches.read(1, states(9), back_to)]
    assert found == ["report", "steer", "rewind", "stop"]


def test_thoughts_do_not_count_and_are_not_taken_back() -> None:
    watches = AnswerWatches({0: (GATE, "rewind")})
    watches.skip(10)
    watches.read(1, states(9), back_to)
    assert watches.read(1, states(9), lambda first, at: first) == [(0, "rewind", 10)]
    assert watches.reading(0) == AnswerReading("rewind", 1.0, 9.0, 12)


def test_guesses_are_forgotten() -> None:
    watches = AnswerWatches({0: (GATE, "steer")})
    watches.skip(3)
    watches.read(1, states(9), back_to)
    watches.cut(3)
    assert watches.reading(0) == AnswerReading("steer", 1.0)
    watches.cut(1)
    assert watches.n_before == 1
    watches.read(1, states(9), back_to)
    assert [opening.keep for opening in watches.read(1, states(9), back_to)] == [3]


def test_a_layer_that_was_not_shown_is_an_error() -> None:
    with pytest.raises(SteeringError, match="did not show"):
        AnswerWatches({0: (GATE, "steer")}).read(1, {}, back_to)
    with pytest.raises(SteeringError, match="did not show"):
        AnswerWatches({0: (GATE, "steer")}).read(2, states(1), back_to)


@pytest.mark.parametrize(
    ("end", "next_", "starts"),
    [
        (b".", b" The", True),
        (b". ", b"The", True),
        (b"!\n", b"The", True),
        (b"\n\n", b"-", True),
        (b'."', b" The", True),
        (b"**.**", b" The", True),
        ("。".encode(), "那".encode(), True),
        (b"3.", b" The", False),
        (b".", b"5", False),
        (b",", b" and", False),
        (b"a", b" b", False),
    ],
)
def test_where_a_sentence_begins(end: bytes, next_: bytes, starts: bool) -> None:
    texts = [b" word"] * (NEAR + 4) + [end] + [next_] + [b" word"] * 5
    begins = NEAR + 5
    assert sentence_start(texts, 0, len(texts)) == (begins if starts else 0)
    assert sentence_start(texts, 0, begins) == (begins if starts else 0)
    assert sentence_start(texts, 0, begins - 1) == 0
    assert sentence_start(texts, 3, len(texts)) == (begins if starts else 3)


def test_what_is_near_the_beginning_goes_with_it() -> None:
    texts = [b" a", b"."] * 40
    assert sentence_start(texts, 0, NEAR - 1) == 0
    assert sentence_start(texts, 0, NEAR) == NEAR
    assert sentence_start(texts, 2, NEAR + 1) == 2
    assert sentence_start(texts, 0, 79) == 78


def test_states_may_come_in_pieces() -> None:
    seen = StatesOf({2, 3})
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert all(seen.handlers[2](2, FakeRows(rows[start:stop])) for start, stop in ((0, 4), (4, 6)))
    assert list(seen.rows) == [2]
    np.testing.assert_array_equal(seen.rows[2], rows)
    assert StatesOf(set()).handlers == {}
