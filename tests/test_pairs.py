"""Pairs for the other methods, prepared as ours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from finesteer_local.evaluation.pairs import prepared, sampled
from finesteer_local.training.data import Pair, TrainingData
from finesteer_local.training.harvest import TrainingHarvest
from finesteer_local.training.pairs import DELTA_TOKENS, MAX_PAIRS, NATURAL, held_out, sample
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


def harvest(tiny: Path, replies: list[str]) -> TrainingHarvest:
    made: Any = Harvest(steered_llama(tiny), replies)
    return made  # type: ignore[no-any-return]


def test_the_models_own_replies_are_rejected(tiny: Path) -> None:
    data = small_data(own_replies=True)
    replies = ["Of course."] * 46 + ["  ", "I cannot do it"]
    pairs = prepared(harvest(tiny, replies), data, data.pairs)
    assert [pair.rejected for pair in pairs[:46]] == ["Of course."] * 46
    assert [pair.rejected for pair in pairs[46:]] == ["Sure 46", "Sure 47"]  # silence, and what is wanted already
    assert [pair.chosen for pair in pairs] == [pair.chosen for pair in data.pairs]
    plain = prepared(harvest(tiny, replies), small_data(), data.pairs)
    assert [pair.rejected for pair in plain] == [pair.rejected for pair in data.pairs]


def test_the_likeliest_answers_of_a_recipes_pool(tiny: Path) -> None:
    pool = ["no" + "!" * i for i in range(9)]
    pairs = [Pair(prompt(str(i)), pool[i % 9], "yes") for i in range(48)]
    data = TrainingData("some", pairs, [prompt("hello")], recipe="some", pooled=True)
    assert {pair.chosen for pair in prepared(harvest(tiny, []), data, pairs)} == set(pool[:NATURAL])
    mine = TrainingData("some", pairs, [prompt("hello")])  # a user's answers belong to their prompts
    assert [p.chosen for p in prepared(harvest(tiny, []), mine, pairs)] == [p.chosen for p in pairs]


def test_both_answers_are_cut(tiny: Path) -> None:
    llama = steered_llama(tiny)
    data = small_data()
    [pair] = prepared(harvest(tiny, []), data, [Pair(prompt("x"), "abcdefghijklmnopqrst", "yes")])
    assert len(llama.tokenize(pair.chosen.encode(), add_bos=False)) == DELTA_TOKENS
    assert "abcdefghijklmnopqrst".startswith(pair.chosen) and pair.rejected == "yes"
