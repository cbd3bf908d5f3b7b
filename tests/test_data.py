"""Preference pairs and prompts as files have them, and how they are split."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import DataError
from finesteer_local.training.data import (
    FOREIGN,
    FORMS,
    MIN_PAIRS,
    PAGE,
    PAIRS_A_QUESTION,
    PLAIN,
    WRAPPED,
    Pair,
    Prompt,
    TrainingData,
    first_equal,
    read_pairs,
    read_prompts,
    split,
)

ROW = {"prompt": "why", "chosen": "no", "rejected": "yes"}
USER = {"role": "user", "content": "why"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


def write(file: Path, *rows: dict[str, Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def pairs(n: int) -> list[Pair]:
    return [Pair(Prompt([{"role": "user", "content": f"question {i}"}]), "no", "yes") for i in range(n)]


def test_pairs(file: Path) -> None:
    rows = {**ROW, "kind": "weapons", "family": "persona", "source": "x"}, {**ROW, "kind": None, "family": None}
    assert read_pairs(write(file, *rows)) == [
        Pair(Prompt([USER], "weapons", "persona", WRAPPED), "no", "yes"),
        Pair(Prompt([USER]), "no", "yes"),
    ]


def test_preference_data_in_chat_messages(file: Path) -> None:
    """As Hugging Face's data sets have it: lists of messages, the answers with or without the prompt before them."""
    system = {"role": "system", "content": "Be brief."}
    row = {
        "prompt": [system, USER],
        "chosen": [USER, {"role": "assistant", "content": "no"}],
        "rejected": [{"role": "assistant", "content": "yes"}],
    }
    [pair] = read_pairs(write(file, row))
    assert pair == Pair(Prompt([system, USER]), "no", "yes")
    assert pair.prompt.text == "why"


@pytest.mark.parametrize("field", ["chosen", "rejected"])
@pytest.mark.parametrize(
    "value", [None, "", " \n", 3, [], {}, ["no"], [{"role": "assistant"}], [{"content": " "}], "\ud800"], ids=json.dumps
)
def test_an_answer_that_is_missing_or_empty_names_the_line(file: Path, field: str, value: object) -> None:
    without = {key: answer for key, answer in ROW.items() if key != field}
    for bad in ({**ROW, field: value}, without):
        with pytest.raises(DataError) as caught:
            read_pairs(write(file, ROW, bad, ROW))
        assert str(caught.value) == f"{file}, line 2: the field {field!r} is missing or empty"


def test_equal_answers_name_the_line(file: Path) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 2: 'chosen' and 'rejected' are the same$"):
        read_pairs(write(file, ROW, {**ROW, "rejected": [{"role": "assistant", "content": "no"}]}))


@pytest.mark.parametrize("value", [None, "", [], [{"role": "assistant", "content": "hello"}]], ids=json.dumps)
def test_a_prompt_that_cannot_be_used_names_the_line(file: Path, value: object) -> None:
    write(file, ROW, {**ROW, "prompt": value})
    for read in (read_pairs, read_prompts):
        with pytest.raises(DataError, match=r"pairs\.jsonl, line 2: "):
            read(file)


QUESTION = {"prompt": "why", "correct": ["because", "no reason"], "wrong": ["fate", "luck", "the moon"]}


def test_a_question_gives_up_to_two_pairs(file: Path) -> None:
    for seed in range(20):
        got = read_pairs(write(file, QUESTION), seed)
        assert len(got) == PAIRS_A_QUESTION == len({pair.chosen for pair in got}) == len({p.rejected for p in got})
        assert got == read_pairs(file, seed)
    assert len({str(read_pairs(file, seed)) for seed in range(20)}) > 3
    one = {**QUESTION, "correct": ["because"]}
    assert {pair.chosen for pair in read_pairs(write(file, one))} == {"because"}
    assert len(read_pairs(write(file, one))) == 2
    assert read_pairs(write(file, {**one, "wrong": ["fate"]})) == [Pair(Prompt([USER]), "because", "fate")]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"correct": []}, "the field 'correct' must be a list of answers"),
        ({"correct": "because"}, "the field 'correct' must be a list of answers"),
        ({"wrong": ["fate", " "]}, "the field 'wrong' must be a list of answers"),
        ({"wrong": [3]}, "the field 'wrong' must be a list of answers"),
        ({"wrong": None}, "the field 'wrong' must be a list of answers"),
        ({"wrong": ["fate", "fate"]}, "an answer stands twice in 'wrong'"),
        ({"wrong": ["fate", "because"]}, "an answer is both in 'correct' and in 'wrong'"),
        ({"prompt": ""}, "the field 'prompt' is missing or empty"),
    ],
)
def test_a_bad_question_names_the_line(file: Path, fields: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(write(file, ROW, {**QUESTION, **fields}))
    assert str(caught.value) == f"{file}, line 2: {what}"


def test_every_prompt_once() -> None:
    """A question with two pairs is still one question."""
    some = pairs(MIN_PAIRS)
    twice = [pair for pair in some for _ in range(2)]
    assert TrainingData("some", twice, []).positive == TrainingData("some", some, []).positive
    assert first_equal([pair.prompt for pair in twice[:6]]) == [0, 0, 2, 2, 4, 4]
    other_kind = replace(some[0].prompt, kind="other")
    assert first_equal([some[0].prompt, some[1].prompt, other_kind]) == [0, 1, 0]


def test_prompts(file: Path) -> None:
    rows = {"prompt": "why", "kind": "history"}, {"messages": [USER, {**USER, "role": "assistant"}, USER]}
    first, second = read_prompts(write(file, *rows))
    assert first == Prompt([USER], "history")
    assert [message["role"] for message in second.messages] == ["user", "assistant", "user"]


def test_the_form_of_a_prompt(file: Path) -> None:
    """A dress counts more than the language; what stands in a long text, a recipe makes itself."""
    rows = [{"prompt": "why"}, {"prompt": "why", "family": "persona"}, {"prompt": "warum", "language": "de"}]
    rows.append({"prompt": "warum", "language": "de", "family": "persona"})
    rows.append({"messages": [USER, {**USER, "role": "assistant"}, USER], "family": "", "language": None})
    assert [prompt.form for prompt in read_prompts(write(file, *rows))] == [PLAIN, WRAPPED, FOREIGN, WRAPPED, PLAIN]
    assert FORMS == (PLAIN, WRAPPED, FOREIGN, PAGE) and Prompt([USER]).form == PLAIN


def test_a_part_is_drawn_by_the_prompts_themselves() -> None:
    """Nested, both kinds alike, and the same whatever else there is."""
    pairs = [Pair(Prompt([{"role": "user", "content": f"bad {i}"}]), "no", "yes") for i in range(600)]
    contrast = [Prompt([{"role": "user", "content": f"good {i}"}]) for i in range(900)]
    data = TrainingData("some", pairs, contrast)
    assert data.part(None) is data and data.part(1500) is data
    small, large = data.part(300), data.part(750)
    for part, n in ((small, 150), (large, 375)):
        assert len(part.pairs) == pytest.approx(n, rel=0.2) and len(part.contrast) == pytest.approx(n, rel=0.2)
    assert all(pair in large.pairs for pair in small.pairs) and all(each in large.contrast for each in small.contrast)
    assert small.hash != large.hash != data.hash
    few = replace(data, pairs=pairs[:30]).part(300)  # somebody's own pairs beside a recipe's contrast
    assert len(few.pairs) == 30 and len(few.contrast) == pytest.approx(270, rel=0.2)
    few = replace(data, contrast=contrast[:30]).part(300)
    assert len(few.contrast) == 30 and len(few.pairs) == pytest.approx(270, rel=0.2)


def test_too_few_pairs() -> None:
    contrast = [Prompt([USER])]
    assert len(TrainingData("some", pairs(MIN_PAIRS), contrast).pairs) == MIN_PAIRS
    for n in (0, 1, MIN_PAIRS - 1):
        with pytest.raises(DataError, match=rf"^{n} pairs are too few to train on; give at least {MIN_PAIRS}$"):
            TrainingData("some", pairs(n), contrast)


@pytest.mark.parametrize("name", ["", "Some", "a b", "../up", "a/b", "-a", "é", "a" * 65])
def test_the_name_must_do_for_a_profile(name: str) -> None:
    """It names the run's folder too: it must not lead anywhere else."""
    with pytest.raises(DataError, match="cannot name a profile"):
        TrainingData(name, pairs(MIN_PAIRS), [Prompt([USER])])


def test_the_hash_is_of_what_is_trained_on() -> None:
    def data(name: str = "some", n: int = 30, contrast: str = "why") -> TrainingData:
        return TrainingData(name, pairs(n), [Prompt([{"role": "user", "content": contrast}])])

    assert data().hash == data(name="other").hash
    assert len({data().hash, data(n=31).hash, data(contrast="how").hash}) == 3
    other = pairs(30)
    other[7] = Pair(other[7].prompt, "never", "yes")
    assert TrainingData("some", other, data().contrast).hash != data().hash


GROUPS = ["a"] * 50 + ["b"] * 20 + ["c"] * 3 + ["d"]


def test_a_split_is_disjoint_complete_and_stratified() -> None:
    train, held = split(len(GROUPS), GROUPS, seed=1)
    assert sorted(train + held) == list(range(len(GROUPS)))
    assert train == sorted(train) and held == sorted(held)
    assert Counter(GROUPS[i] for i in held) == {"a": 10, "b": 4, "c": 1}
    _, half = split(len(GROUPS), GROUPS, seed=1, share=0.5)
    assert Counter(GROUPS[i] for i in half) == {"a": 25, "b": 10, "c": 2}


def test_a_split_is_drawn_by_the_seed() -> None:
    assert split(74, GROUPS, seed=1) == split(74, GROUPS, seed=1)
    assert split(74, GROUPS, seed=1) != split(74, GROUPS, seed=2)
