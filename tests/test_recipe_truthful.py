"""The data of the `truthful` recipe: format, duplicates, balance."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from finesteer_local.jsonl import read_rows
from finesteer_local.training import recipes
from finesteer_local.training.data import PAIRS_A_QUESTION
from finesteer_local.training.recipes import load_recipe

FOLDER = Path(recipes.__file__).parent / "truthful"
RECIPE = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
FILES = {path.name: [row for _, row in read_rows(path)] for path in sorted(FOLDER.glob("*.jsonl"))}
QUESTIONS = [row for name in RECIPE["pairs"] for row in FILES[name]]
OWN_CONTRAST = [name for name in RECIPE["contrast"] if isinstance(name, str)]
ORDINARY = [row for name in OWN_CONTRAST for row in FILES[name]]
OVERLAP = 0.8  # of the words of two questions, shared by both
KINDS = {
    *("misconceptions", "myths", "proverbs", "paranormal", "conspiracies", "fiction", "advertising", "stereotypes"),
    *("quotations", "law", "health", "nutrition", "psychology", "history", "science", "geography", "economics"),
    *("sociology", "statistics", "language", "religion", "politics", "finance", "education", "weather", "animals"),
    *("technology", "identity", "indexical", "unanswerable", "confusions", "logic"),
}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def answers(side: str) -> list[str]:
    return [answer for row in QUESTIONS for answer in row[side]]


def opens_with(side: str, word: str) -> float:
    """Share of the answers on one side that begin so."""
    return mean(re.match(rf"{word}\b", answer) is not None for answer in answers(side))


def test_the_recipe_names_every_file_once() -> None:
    assert sorted([*RECIPE["pairs"], *OWN_CONTRAST]) == sorted(FILES)
    assert (RECIPE["name"], RECIPE["judge"], RECIPE["own_replies"]) == ("truthful", "margin", False)
    assert RECIPE["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", FILES)
def test_format(name: str) -> None:
    keys = {"prompt", "correct", "wrong", "kind"} if name in RECIPE["pairs"] else {"prompt", "kind"}
    data = (FOLDER / name).read_bytes()
    assert b"\r" not in data and b"\n\n" not in data and data.endswith(b"}\n") and not data.startswith(b"\xef")
    assert len(FILES[name]) <= 250
    for row in FILES[name]:
        assert set(row) == keys, row
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row["kind"]), row
        texts = [row["prompt"], *row.get("correct", []), *row.get("wrong", [])]
        assert all(text and text == " ".join(text.split()) for text in texts), row


def test_enough_questions_of_every_kind() -> None:
    assert len(QUESTIONS) >= 800
    kinds = Counter(row["kind"] for row in QUESTIONS)
    assert set(kinds) == KINDS
    assert min(kinds.values()) >= 14 and max(kinds.values()) <= 0.07 * len(QUESTIONS), kinds


def test_answers() -> None:
    for row in QUESTIONS:
        assert row["prompt"].endswith("?"), row
        assert 2 <= len(row["correct"]) <= 4 and 2 <= len(row["wrong"]) <= 4, row
        both = [answer.lower().rstrip(".") for answer in (*row["correct"], *row["wrong"])]
        assert len(set(both)) == len(both), row
        for answer in (*row["correct"], *row["wrong"]):
            assert answer[0].isupper() or not answer[0].isalpha(), answer
            assert answer.endswith((".", '."', '!"', '?"', '"')), answer
            assert not re.search(r'[a-z]{3}[.?!] [A-Z"]', answer), answer  # one sentence
            assert len(answer) <= 160, answer


def test_length_does_not_tell_which_answer_is_correct() -> None:
    lengths = {side: [len(answer) for answer in answers(side)] for side in ("correct", "wrong")}
    for average in (mean, median):
        assert 1 / 1.1 <= average(lengths["correct"]) / average(lengths["wrong"]) <= 1.1
    longer = [len(a) > len(b) for row in QUESTIONS for a in row["correct"] for b in row["wrong"]]
    assert 0.45 <= mean(longer) <= 0.58


def test_answers_differ_by_more_than_yes_and_no() -> None:
    """Else the experts would learn to contradict."""
    for side, most in (("correct", "No"), ("wrong", "Yes")):
        assert 0.05 < opens_with(side, most) < 0.25
    for side, least in (("correct", "Yes"), ("wrong", "No")):
        assert opens_with(side, least) > 0.02
    openings = Counter(" ".join(answer.split()[:2]) for answer in answers("correct"))
    assert len(openings) >= 500 and max(openings.values()) <= 0.1 * sum(openings.values())
    assert max(Counter(answers("correct")).values()) <= 8  # what is said of many questions is said in many ways


def test_many_ways_of_asking() -> None:
    openings = Counter(row["prompt"].split()[0] for row in QUESTIONS)
    assert len(openings) >= 20
    assert max(openings.values()) <= 0.2 * len(QUESTIONS)
    polar = sum(openings[word] for word in ("Is", "Are", "Do", "Does", "Did", "Can", "Was", "Were", "Has", "Will"))
    assert polar <= 0.6 * len(QUESTIONS)


def test_no_two_questions_are_nearly_the_same() -> None:
    bags = [(row["prompt"], words(row["prompt"])) for row in (*QUESTIONS, *ORDINARY)]
    near = [
        (first, second)
        for i, (first, a) in enumerate(bags)
        for second, b in bags[:i]
        if len(a & b) / len(a | b) > OVERLAP and not first.startswith("What is the capital of")
    ]
    assert not near


def test_own_contrast_asks_in_the_same_style() -> None:
    """Short questions, but without a popular error: the gate must learn what is asked, not that it is a question."""
    kinds = Counter(row["kind"] for row in ORDINARY)
    assert len(ORDINARY) >= 150 and kinds["plain_facts"] >= 60
    assert set(kinds) == {
        *("plain_facts", "instruction", "code", "maths", "translation", "writing", "chit_chat", "advice"),
    }
    assert min(kinds.values()) >= 10
    plain = [row["prompt"] for row in ORDINARY if row["kind"] == "plain_facts"]
    assert all(prompt.endswith("?") for prompt in plain)
    assert 0.5 <= median(map(len, plain)) / median(len(row["prompt"]) for row in QUESTIONS) <= 1.1


def test_as_training_data() -> None:
    data = load_recipe("truthful")
    assert len(data.positive) == len(QUESTIONS)
    assert len(data.pairs) == PAIRS_A_QUESTION * len(QUESTIONS)
    by_prompt: dict[str, dict[str, Any]] = {row["prompt"]: row for row in QUESTIONS}
    for pair in data.pairs:
        assert pair.chosen in by_prompt[pair.prompt.text]["correct"]
        assert pair.rejected in by_prompt[pair.prompt.text]["wrong"]
    assert len(data.contrast) >= 1.5 * len(QUESTIONS)
    texts = [prompt.text for prompt in data.contrast]
    own = {row["prompt"] for row in ORDINARY}
    assert own <= set(texts)
    harmful = {row["prompt"] for _, row in read_rows(FOLDER.parent / "safety" / "harmful.jsonl")}
    assert sum(text in harmful for text in texts) == 150
