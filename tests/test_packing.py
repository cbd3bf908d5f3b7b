"""Every prompt keeps exactly its own past, and what prompts share stands once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finesteer_local.runtime.packing import Batch, Plan, StatesRequest, shared_length


def pasts(plan: Plan, batch: Batch) -> dict[int, list[list[tuple[int, int]]]]:
    """For each request the tokens and positions that each of the rows read for it can look back at."""
    seen: dict[int, list[list[tuple[int, int]]]] = {}
    for index, rows in batch.reads:
        seen[index] = []
        for row in rows:
            # llama.cpp looks at the first sequence of a row, and at every cell that belongs to it
            own = batch.sequences[row][0]
            cells = [(i, int(token)) for i, token in enumerate(plan.root)]
            cells += [
                (batch.positions[i], batch.tokens[i])
                for i, members in enumerate(batch.sequences)
                if own in members and batch.positions[i] <= batch.positions[row]
            ]
            seen[index].append(sorted(cells))
    return seen


def check(plan: Plan, requests: list[StatesRequest]) -> list[Batch]:
    batches = list(plan.batches())
    read: list[int] = []
    for batch in batches:
        assert len(batch.tokens) == len(batch.positions) == len(batch.sequences)
        assert len(plan.root) + len(batch.tokens) <= plan.n_cells
        assert 1 <= batch.n_sequences <= plan.n_sequences
        assert all(members == sorted(set(members)) for members in batch.sequences)
        assert max(member for members in batch.sequences for member in members) == batch.n_sequences - 1
        for index, cells in pasts(plan, batch).items():
            tokens, first = requests[index]
            assert cells == [list(enumerate(tokens[: n + 1])) for n in range(first, len(tokens))]
            read.append(index)
    assert sorted(read) == list(range(len(requests)))
    return batches


prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 11)), min_size=1, max_size=24
)


@settings(max_examples=200, deadline=None)
@given(prompts, st.integers(1, 20), st.integers(1, 5), st.booleans())
def test_any_requests(drawn: list[tuple[list[int], int]], n_tokens: int, n_sequences: int, shared: bool) -> None:
    requests = [StatesRequest(tokens, first % len(tokens)) for tokens, first in drawn]
    batches = check(Plan(requests, n_tokens=n_tokens, n_sequences=n_sequences, shared=shared), requests)
    if not shared:
        assert [len(batch.reads) for batch in batches] == [1] * len(requests)
        assert all(batch.n_sequences == 1 for batch in batches)


def test_the_plan_follows_from_the_requests_alone() -> None:
    rng = np.random.default_rng(0)
    requests = [StatesRequest(rng.integers(0, 3, rng.integers(2, 20)).tolist(), 1) for _ in range(60)]
    first, second = ([vars(batch) for batch in Plan(requests, n_tokens=40, n_sequences=9).batches()] for _ in range(2))
    np.testing.assert_equal(first, second)


def test_a_shared_beginning_stands_once() -> None:
    template, wrapper = list(range(100, 110)), list(range(200, 230))
    requests = [StatesRequest([*template, *wrapper, 7, i], 12) for i in range(5)]
    requests += [StatesRequest([*template, 9, i], 11) for i in range(4)]
    plan = Plan(requests, n_tokens=512, n_sequences=16)
    assert plan.root.tolist() == template
    [batch] = check(plan, requests)
    assert len(batch.tokens) == (30 + 1 + 5) + (1 + 4)
    assert batch.n_sequences == 9


def test_the_root_holds_nothing_that_is_asked_for() -> None:
    requests = [StatesRequest([1, 2, 3, 4, i], first) for i, first in enumerate([4, 2, 3])]
    assert Plan(requests, n_tokens=8, n_sequences=4).root.tolist() == [1, 2]
    assert not len(Plan(requests[:1], n_tokens=8, n_sequences=4).root)  # one prompt is read in one go
    assert not len(Plan(requests, n_tokens=8, n_sequences=4, shared=False).root)
    assert not len(Plan([], n_tokens=8, n_sequences=4).root) and not list(Plan([], n_tokens=8, n_sequences=4).batches())


def test_a_prompt_and_its_answers_share_a_sequence_as_far_as_they_go() -> None:
    prompt = [5, 6, 7]
    requests = [
        StatesRequest([*prompt, 1, 2], 3),
        StatesRequest(prompt, 2),
        StatesRequest([*prompt, 8], 3),
        StatesRequest(prompt, 2),
    ]
    [batch] = check(Plan(requests, n_tokens=64, n_sequences=4), requests)
    assert batch.n_sequences == 2  # one for each answer; the prompt needs none of its own
    assert len(batch.tokens) == 1 + 2 + 1  # after the root


def test_batches_are_filled() -> None:
    rng = np.random.default_rng(1)
    requests = [StatesRequest([1, 1000 + i, *rng.integers(10, 1000, 8).tolist()], 5) for i in range(100)]
    sizes = [len(batch.tokens) for batch in check(Plan(requests, n_tokens=45, n_sequences=99), requests)]
    assert sizes == [45] * 20
    by_sequence = check(Plan(requests, n_tokens=45, n_sequences=3), requests)
    assert [batch.n_sequences for batch in by_sequence] == [3] * 33 + [1]


def test_a_long_prompt_is_not_read_again_for_its_second_answer() -> None:
    long = list(range(1000))
    requests = [
        StatesRequest([*long, 1, 2], 1000),
        StatesRequest([*long, 3], 1000),
        StatesRequest([2000, 1], 1),
        StatesRequest([3000, 1], 1),
    ]
    batches = check(Plan(requests, n_tokens=100, n_sequences=8), requests)
    assert [len(batch.tokens) for batch in batches] == [1003, 4]


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([4, 2], [1, 2], 0)]
)
def test_shared_length(a: list[int], b: list[int], n: int) -> None:
    assert shared_length(np.array(a, np.int32), np.array(b, np.int32)) == n
