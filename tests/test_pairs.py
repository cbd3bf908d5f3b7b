"""Pairs for the other methods, prepared as ours are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.evaluation.pairs import prepared, sampled
from finesteer_local.training.data import FOREIGN, MIN_PAIRS, PAGE, PLAIN, WRAPPED, Pair, TrainingData
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.pairs import (
    DELTA_TOKENS,
    HANDFUL,
    LESSON,
    MAX_PAIRS,
    NATURAL,
    decline_alike,
    held_out,
    lesson,
    sample,
)
from material import prompt, small_data
from reference import steered_llama


def test_a_sample_of_every_kind() -> None:
    pairs = [Pair(prompt(f"p{i}", kind="rare" if i % 10 == 0 else "usual"), "no", "yes") for i in range(500)]
    data = TrainingData("many", pairs, [prompt("hello")], own_replies=True)
    chosen, learn, held = sampled(data, 0)
    assert len(chosen) == MAX_PAIRS and sum(p.prompt.kind == "rare" for p in chosen) == MAX_PAIRS // 10
    assert sorted([*learn, *held]) == list(range(MAX_PAIRS)) and len(held) == MAX_PAIRS // 5
    assert {chosen[i].prompt.kind for i in held} == {"rare", "usual"}
    assert sampled(data, 0) == (chosen, learn, held) != sampled(data, 1)


def test_it_is_the_sample_that_training_takes() -> None:
    kinds = [f"kind {i % 7}" for i in range(400)]
    data = TrainingData(
        "many", [Pair(prompt(f"p{i}", kind=kinds[i]), "no", "yes") for i in range(400)], [prompt("x")], own_replies=True
    )
    chosen, learn, held = sampled(data, 3)
    assert chosen == sample(data, 3)
    assert (learn, held) == held_out([pair.prompt for pair in chosen], 3)


def test_many_small_groups() -> None:
    pairs = [Pair(prompt(f"p{i}", kind=str(i)), "no", "yes") for i in range(400)]
    chosen, learn, held = sampled(TrainingData("many", pairs, [prompt("hello")], own_replies=True), 0)
    assert len(chosen) == MAX_PAIRS and learn and held


def test_small_data_is_used_whole() -> None:
    data = small_data()
    chosen, learn, held = sampled(data, 0)
    assert chosen == list(data.pairs) and sorted([*learn, *held]) == list(range(len(chosen)))
    alone = [prompt(str(i), kind=str(i)) for i in range(10)]
    assert held_out(alone, 0) == ([1, 2, 3, 4, 6, 7, 8, 9], [0, 5])


class Harvest:
    """Replies and likelihoods from tables."""

    def __init__(self, llama: Any, replies: list[str]) -> None:
        self.llama, self._replies = llama, replies

    def replies(self, pairs: Any, max_tokens: int) -> list[str]:
        return self._replies

    def likelihood(self, prompts: Any, answers: list[str], n_tokens: int) -> np.ndarray:
        return np.array([-len(answer) for answer in answers], np.float64)  # short ones are likely


def model_data(tiny: Path, replies: list[str]) -> ModelData:
    made: Any = Harvest(steered_llama(tiny), replies)
    return made  # type: ignore[no-any-return]


def test_the_models_own_replies_are_rejected(tiny: Path) -> None:
    data = small_data(own_replies=True)
    replies = ["Of course."] * 46 + ["  ", "I cannot do it"]
    pairs = prepared(model_data(tiny, replies), data, data.pairs)
    assert [pair.rejected for pair in pairs[:46]] == ["Of course."] * 46
    assert [pair.rejected for pair in pairs[46:]] == ["Sure 46", "Sure 47"]  # silence, and what is wanted already
    assert [pair.chosen for pair in pairs] == [pair.chosen for pair in data.pairs]
    plain = prepared(model_data(tiny, replies), small_data(), data.pairs)
    assert [pair.rejected for pair in plain] == [pair.rejected for pair in data.pairs]


def test_the_likeliest_answers_of_a_recipes_pool(tiny: Path) -> None:
    pool = ["no" + "!" * i for i in range(9)]
    pairs = [Pair(prompt(str(i)), pool[i % 9], "yes") for i in range(48)]
    data = TrainingData("some", pairs, [prompt("hello")], recipe="some", pooled=True)
    assert {pair.chosen for pair in prepared(model_data(tiny, []), data, pairs)} == set(pool[:NATURAL])
    mine = TrainingData("some", pairs, [prompt("hello")])  # a user's answers belong to their prompts
    assert [p.chosen for p in prepared(model_data(tiny, []), mine, pairs)] == [p.chosen for p in pairs]


def test_both_answers_are_cut(tiny: Path) -> None:
    llama = steered_llama(tiny)
    data = small_data()
    [pair] = prepared(model_data(tiny, []), data, [Pair(prompt("x"), "abcdefghijklmnopqrst", "yes")])
    assert len(llama.tokenize(pair.chosen.encode(), add_bos=False)) == DELTA_TOKENS
    assert "abcdefghijklmnopqrst".startswith(pair.chosen) and pair.rejected == "yes"


def of_forms(**counts: int) -> TrainingData:
    pairs = [
        Pair(replace(prompt(f"{form} {i}", kind=f"kind {i % 5}"), form=form), f"no {i % 7}", "yes")
        for form, n in counts.items()
        for i in range(n)
    ]
    return TrainingData("forms", pairs, [prompt("hello")])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_lesson_is_of_plain_and_wrapped_requests_by_equal_shares(seed: int) -> None:
    data = of_forms(plain=2000, wrapped=1500, foreign=800, page=300)
    found = lesson(data, seed)
    assert found == lesson(data, seed) and found != lesson(data, seed + 1)
    counts = Counter(pair.prompt.form for pair in found)
    assert counts == {PLAIN: LESSON // 2, WRAPPED: LESSON // 2}
    kinds = Counter((pair.prompt.form, pair.prompt.kind) for pair in found)
    assert len(kinds) == 10 and set(kinds.values()) == {LESSON // 10}
    assert len({pair.prompt.text for pair in found}) == len(found)


def test_a_lesson_takes_all_that_there_is() -> None:
    data = of_forms(plain=100, wrapped=40, page=10)
    assert lesson(data, 0) == [pair for pair in data.pairs if pair.prompt.form != PAGE]
    few_wrapped = lesson(of_forms(plain=2000, wrapped=40), 0)
    assert Counter(pair.prompt.form for pair in few_wrapped) == {PLAIN: LESSON // 2, WRAPPED: 40}


def test_a_lesson_where_there_is_little_else_than_foreign_requests_and_pages() -> None:
    """Nothing to learn from would be a profile that steers nothing."""
    data = of_forms(plain=MIN_PAIRS - 1, foreign=30, page=20)
    assert sorted(pair.prompt.text for pair in lesson(data, 0)) == sorted(pair.prompt.text for pair in data.pairs)
    many = of_forms(foreign=2 * LESSON)
    assert len(lesson(many, 0)) == LESSON and lesson(many, 0) == lesson(many, 0) != lesson(many, 1)
    assert {pair.prompt.form for pair in lesson(many, 0)} == {FOREIGN}


def test_answers_that_open_alike() -> None:
    """The shortest of the pool that begin with its commonest sentence, dealt out in turn."""
    pool = ["No way. It hurts.", "I can't help with that.", "I can't help with that. It hurts.", "Never!", "Sorry. No."]
    pairs = [Pair(prompt(str(i)), pool[i % 5], f"yes {i}") for i in range(20)]
    got = decline_alike(pairs)
    assert Counter(pair.chosen for pair in got) == {pool[1]: 10, pool[2]: 10}
    assert [(p.prompt, p.rejected) for p in got] == [(p.prompt, p.rejected) for p in pairs]
    differing = [Pair(prompt(str(i)), ("No way.", "Never!", "Sorry. No.")[i % 3], "yes") for i in range(9)]
    assert Counter(pair.chosen for pair in decline_alike(differing)) == {"No way.": 3, "Never!": 3, "Sorry. No.": 3}
    many = [Pair(prompt(str(i)), f"No. {'x' * (40 - i % 20)}", "yes") for i in range(40)]
    shortest = [f"No. {'x' * n}" for n in range(21, 21 + HANDFUL)]
    assert Counter(pair.chosen for pair in decline_alike(many)) == dict.fromkeys(shortest, len(many) // HANDFUL)
