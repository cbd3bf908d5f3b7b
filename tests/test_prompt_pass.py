"""What the tap's handlers do with the rows of one prompt, on an array instead of llama.cpp's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finesteer_local.errors import SteeringError
from finesteer_local.profile import ModelIdentity, Profile
from finesteer_local.runtime.prompt import Unsteered
from finesteer_local.runtime.prompt_pass import PromptPass, Segment, segments
from finesteer_local.runtime.tap import Rows
from finesteer_local.steering import AlwaysGate, Decision
from tiny import make_experts

pytestmark = pytest.mark.usefixtures("device")  # exact on every device

N_EMBD, N_LAYER = 8, 6
MODEL = ModelIdentity("a" * 64, "Fake", "llama", N_EMBD, N_LAYER, 100, "")


class FakeRows(Rows):
    def __init__(self, array: np.ndarray) -> None:
        self.array, self.n_rows = array, len(array)

    def read(self, start: int, stop: int) -> np.ndarray:
        assert 0 <= start <= stop <= self.n_rows
        return self.array[start:stop].copy()

    def write(self, start: int, rows: np.ndarray) -> None:
        assert 0 <= start <= start + len(rows) <= self.n_rows
        self.array[start : start + len(rows)] = rows


def profile(name: str, gate_layer: int, layers: Sequence[int]) -> Profile:
    rng = np.random.default_rng(0)
    return Profile(name, MODEL, AlwaysGate(), gate_layer, {layer: make_experts(N_EMBD, rng) for layer in layers})


def decision(name: str, layers: Sequence[int], seed: int, opened: bool = True) -> Decision:
    rng = np.random.default_rng(seed)
    vectors = {layer: rng.standard_normal(N_EMBD).astype(np.float32) for layer in layers} if opened else {}
    return Decision(name, float(opened), 0.0, 0.0, 1.0, "prompt", vectors=vectors)


def stream(n_tokens: int) -> np.ndarray:
    """A residual stream that tells its layer, token and place, (n_layer, n_tokens, n_embd)."""
    return np.arange(N_LAYER * n_tokens * N_EMBD, dtype=np.float32).reshape(N_LAYER, n_tokens, N_EMBD)


def new(profiles: Sequence[Profile], starts: Sequence[int], **kwargs: Any) -> PromptPass:
    known = [p.gate.summary(np.empty((0, N_EMBD), np.float32)) for p in profiles]
    return PromptPass(profiles, starts, **{"turn": 0, "known": known, "n_layer": N_LAYER, **kwargs})


def drive(reading: PromptPass, states: np.ndarray, n_past: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Run the handlers as llama.cpp does, micro-batch by micro-batch; where each ended early, (layer, first row)."""
    early = []
    first = n_past
    for i, size in enumerate(sizes):
        for layer in sorted(reading.handlers):
            rows = states[layer, first : first + size]
            if layer == N_LAYER - 1:
                rows = rows[size - (i == len(sizes) - 1) :]  # only the rows that have logits
            if not reading.handlers[layer](layer, FakeRows(rows)):
                early.append((layer, first))
                break
        first += size
    return early


def run(
    profiles: Sequence[Profile],
    decisions: Sequence[Decision],
    starts: Sequence[int],
    *,
    n_past: int = 0,
    sizes: Sequence[int] = (10,),
) -> tuple[PromptPass, np.ndarray, dict[str, np.ndarray], list[tuple[int, int]]]:
    seen: dict[str, np.ndarray] = {}
    by_name = {d.profile: d for d in decisions}

    def decide(p: Profile, h: np.ndarray, summary: np.ndarray, n_tokens: int) -> Decision:
        assert p.name not in seen, "decided twice"
        assert n_tokens == n_prompt - starts[profiles.index(p)]
        assert summary.shape[1] == 0
        seen[p.name] = h.copy()
        return by_name[p.name]

    n_prompt = n_past + sum(sizes)
    reading = new(profiles, starts, n_past=n_past, n_prompt=n_prompt, decide=decide)
    states = stream(n_prompt)
    return reading, states, seen, drive(reading, states, n_past, sizes)


def test_one_profile_in_one_pass() -> None:
    d = decision("p", [2, 3], 0)
    reading, states, seen, early = run([profile("p", 1, [2, 3])], [d], [4])
    wanted = stream(10)
    np.testing.assert_array_equal(seen["p"], wanted[1, -1])
    for layer in (2, 3):
        wanted[layer, 4:] += d.vectors[layer]
    np.testing.assert_array_equal(states, wanted)
    assert reading.read_again_from is None
    assert reading.complete
    assert reading.decisions == (d,)
    assert early == []


@pytest.mark.parametrize(
    ("n_past", "sizes", "start", "again"),
    [
        (0, (4, 4, 2), 8, None),
        (0, (4, 4, 2), 9, None),
        (0, (4, 4, 2), 7, 7),
        (0, (4, 4, 2), 0, 0),
        (6, (4,), 6, None),
        (6, (4,), 5, 5),
        (6, (4,), 0, 0),
        (6, (4, 1), 10, None),
        (6, (4, 1), 9, 9),
        (6, (4, 1), 3, 3),
        (9, (1,), 9, None),
        (9, (1,), 8, 8),
    ],
)
def test_what_had_passed_is_read_again(n_past: int, sizes: tuple[int, ...], start: int, again: int | None) -> None:
    d = decision("p", [2], 0)
    reading, states, seen, early = run([profile("p", 1, [2])], [d], [start], n_past=n_past, sizes=sizes)
    n_prompt = n_past + sum(sizes)
    wanted = stream(n_prompt)
    np.testing.assert_array_equal(seen["p"], wanted[1, -1])
    assert reading.complete
    assert reading.read_again_from == again
    if again is None:
        wanted[2, start:] += d.vectors[2]
        assert early == []
    else:
        assert early == [(1, n_prompt - sizes[-1])]
    np.testing.assert_array_equal(states, wanted)


def test_a_closed_gate_writes_nothing_and_ends_nothing() -> None:
    d = decision("p", [2], 0, opened=False)
    reading, states, _, early = run([profile("p", 1, [2])], [d], [0], sizes=(4, 3))
    np.testing.assert_array_equal(states, stream(7))
    assert early == []
    assert reading.complete
    assert reading.read_again_from is None


def test_a_gate_above_anothers_first_layer_needs_two_readings() -> None:
    profiles = [profile("low", 0, [1]), profile("high", 3, [4])]
    opened = [decision("low", [1], 0), decision("high", [4], 1)]
    reading, states, seen, early = run(profiles, opened, [7, 9])
    np.testing.assert_array_equal(seen["high"], stream(10)[3, -1])  # not steered by the other
    np.testing.assert_array_equal(states, stream(10))
    assert reading.read_again_from == 0  # the micro-batch was not finished
    assert early == [(3, 0)]
    closed = [decision("low", [1], 0, opened=False), decision("high", [4], 1, opened=False)]
    reading, states, _, early = run(profiles, closed, [7, 9])
    assert reading.read_again_from is None
    assert early == []


@pytest.mark.parametrize("sizes", [(10,), (4, 4, 2)], ids=str)
def test_the_last_layer_shows_only_the_rows_that_have_logits(sizes: tuple[int, ...]) -> None:
    last = N_LAYER - 1
    for shape in ((last, [last]), (2, [3, last]), (2, [last])):
        d = decision("p", shape[1], 0)
        reading, states, seen, _ = run([profile("p", *shape)], [d], [9], sizes=sizes)
        np.testing.assert_array_equal(seen["p"], stream(10)[shape[0], -1])
        np.testing.assert_array_equal(states, stream(10))
        assert reading.read_again_from == 10 - sizes[-1]
        assert reading.complete
        d = decision("p", shape[1], 0, opened=False)
        reading, _, _, early = run([profile("p", *shape)], [d], [9], sizes=sizes)
        assert reading.complete
        assert early == []


def test_tokens_in_scope_are_counted_without_those_that_stay_unsteered() -> None:
    counted = []

    def decide(p: Profile, h: np.ndarray, summary: np.ndarray, n_tokens: int) -> Decision:
        counted.append(n_tokens)
        return decision(p.name, [2], 0, opened=False)

    profiles = [profile("a", 1, [2]), profile("b", 1, [2]), profile("c", 1, [2])]
    unsteered = Unsteered(tools=((2, 5), (7, 8)), thinking=9)
    reading = new(profiles, [0, 4, 9], n_past=0, n_prompt=10, decide=decide, unsteered=unsteered)
    drive(reading, stream(10), 0, (10,))
    assert counted == [9 - 3 - 1, 9 - 4 - 1 - 1, 0]


def test_a_layer_that_is_not_shown_is_noticed() -> None:
    d = decision("p", [2, 3], 0)
    for hidden in (1, 2, 3):
        reading = new([profile("p", 1, [2, 3])], [0], n_past=0, n_prompt=5, decide=lambda p, *_: d)
        states = stream(5)
        for layer, handler in sorted(reading.handlers.items()):
            if layer != hidden:
                handler(layer, FakeRows(states[layer]))
        assert not reading.complete


def test_more_rows_than_tokens_are_an_error() -> None:
    reading = new([profile("p", 1, [2])], [0], n_past=2, n_prompt=5, decide=lambda p, *_: decision("p", [2], 0))
    with pytest.raises(SteeringError, match="more rows"):
        reading.handlers[1](1, FakeRows(stream(4)[1]))


class TestSegments:
    def test_starts_are_merged_and_sorted(self) -> None:
        a, b, c, d = (
            decision(name, [layer], i) for i, (name, layer) in enumerate(zip("abcd", (1, 2, 1, 3), strict=True))
        )
        shut = decision("e", [1], 9, opened=False)
        got = segments([a, b, shut, c, d], [7, 3, 0, 3, 9])
        assert [s.start for s in got] == [3, 7, 9]
        np.testing.assert_array_equal(got[0].vectors[1], c.vectors[1])
        np.testing.assert_array_equal(got[1].vectors[1], a.vectors[1] + c.vectors[1])
        assert [sorted(s.vectors) for s in got] == [[1, 2], [1, 2], [1, 2, 3]]

    def test_nothing_open(self) -> None:
        assert segments([], []) == []
        assert segments([decision("a", [1], 0, opened=False)], [4]) == []

    def test_the_decisions_are_left_alone(self) -> None:
        a, b = decision("a", [1], 0), decision("b", [1], 1)
        before = a.vectors[1].copy()
        segments([a, b], [0, 0])
        np.testing.assert_array_equal(a.vectors[1], before)


@st.composite
def situations(draw: st.DrawFn) -> dict:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    n_past = draw(st.integers(0, 6))
    shapes = []
    for i in range(draw(st.integers(1, 4))):
        gate_layer = draw(st.integers(0, N_LAYER - 1))
        layers = draw(st.sets(st.integers(max(gate_layer, 1), N_LAYER - 1), min_size=1, max_size=3))
        start = draw(st.integers(0, n_past + sum(sizes) - 1))
        shapes.append((f"p{i}", gate_layer, sorted(layers), start, draw(st.booleans())))
    return {"sizes": sizes, "n_past": n_past, "shapes": shapes}


@given(situations())
def test_every_situation_ends_with_each_row_steered_once(situation: dict) -> None:
    """In one pass, or with what `_read_again` then adds: the sum of the open vectors, from their starts on."""
    sizes, n_past = situation["sizes"], situation["n_past"]
    profiles = [profile(name, gate, layers) for name, gate, layers, _, _ in situation["shapes"]]
    starts = [start for *_, start, _ in situation["shapes"]]
    decisions = [decision(name, layers, i, o) for i, (name, _, layers, _, o) in enumerate(situation["shapes"])]
    reading, states, seen, early = run(profiles, decisions, starts, n_past=n_past, sizes=sizes)
    n_prompt = n_past + sum(sizes)
    untouched = stream(n_prompt)
    assert reading.complete
    assert reading.decisions == tuple(decisions)
    for p in profiles:
        np.testing.assert_array_equal(seen[p.name], untouched[p.gate_layer, -1])
    wanted = stream(n_prompt)
    for segment, stop in boundaries(segments(decisions, starts), n_prompt):
        for layer, vector in segment.vectors.items():
            wanted[layer, segment.start : stop] += vector
    first_change = min((s for s, d in zip(starts, decisions, strict=True) if d.open), default=n_prompt)
    if reading.read_again_from is None:
        np.testing.assert_array_equal(states, wanted)
        assert early == []
    else:
        np.testing.assert_array_equal(states, untouched)
        assert reading.read_again_from <= first_change
        assert reading.read_again_from <= n_prompt - sizes[-1]
        assert [first for _, first in early] == [n_prompt - sizes[-1]]


def boundaries(plan: list[Segment], stop: int) -> list[tuple[Segment, int]]:
    return [(segment, after.start if after else stop) for segment, after in zip(plan, [*plan[1:], None], strict=False)]
