"""Beginnings are kept when they come again, and within their limit."""

from __future__ import annotations

import numpy as np

from finesteer_local.runtime.batch.prefix import PrefixStore


def data(n: int = 100) -> np.ndarray:
    return np.zeros(n, np.uint8)


def test_a_beginning_is_kept_the_second_time() -> None:
    store, saved = PrefixStore(1000), []
    head = [1, 2, 3]

    def save() -> np.ndarray:
        saved.append(1)
        return data()

    store.offer(head, [3], save)
    assert not saved and store.find([*head, 4, 5], [3, 5], 5) is None
    store.offer(head, [3], save)
    store.offer(head, [3], save)
    assert len(saved) == 1
    found = store.find([*head, 4, 5], [3, 5], 5)
    assert found is not None and found.tokens == head


def test_only_where_it_fits() -> None:
    store = PrefixStore(1000)
    for head, cuts in (([1, 2], [2]), ([1, 2, 3, 4], [2, 4])):
        for _ in range(2):
            store.offer(head, cuts, data)

    def length(prompt: list[int], ends: list[int], limit: int = 9) -> int:
        found = store.find(prompt, ends, limit)
        return len(found.tokens) if found else 0

    assert length([1, 2, 3, 4, 5], [2, 4, 5]) == 4
    assert length([1, 2, 3, 4, 5], [4, 5]) == 0  # cut otherwise
    assert length([1, 2, 3, 4, 5], [2, 4, 5], limit=3) == 2
    assert length([1, 2, 3, 9, 5], [2, 4, 5]) == 2
    assert length([1, 2, 3, 4], [2, 4]) == 2  # one token is left to read
    assert length([9, 2, 3, 4], [2, 4]) == 0


def test_the_longest_unused_goes_first() -> None:
    store = PrefixStore(250)
    for head in ([1, 1], [2, 2], [3, 3]):
        for _ in range(2):
            store.offer(head, [2], data)
        store.find([1, 1, 5], [2, 3], 3)  # the first is in use
    assert [bool(store.find([i, i, 5], [2, 3], 3)) for i in (1, 2, 3)] == [True, False, True]
    store.clear()
    assert store.find([1, 1, 5], [2, 3], 3) is None


def test_what_is_greater_than_the_limit_is_not_kept() -> None:
    store = PrefixStore(50)
    for _ in range(3):
        store.offer([1, 2], [2], data)
    assert store.find([1, 2, 3], [2, 3], 3) is None
