"""The data of the `brief` recipe, the worked example: format, duplicates, balance."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from statistics import median

from finesteer_local.jsonl import read_rows
from finesteer_local.training import recipes
from finesteer_local.training.recipes import load_recipe

FOLDER = Path(recipes.__file__).parent / "brief"
RECIPE = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
FILES = {path.name: [row for _, row in read_rows(path)] for path in sorted(FOLDER.glob("*.jsonl"))}
QUESTIONS = FILES["questions.jsonl"]
TASKS = FILES["long_answers.jsonl"]


def test_the_recipe_names_every_file_once() -> None:
    own = [name for name in RECIPE["contrast"] if isinstance(name, str)]
    assert sorted([*RECIPE["pairs"], *own]) == sorted(FILES)
    assert (RECIPE["name"], RECIPE["judge"], RECIPE["own_replies"]) == ("brief", "margin", False)


def test_format() -> None:
    for rows, keys in ((QUESTIONS, {"prompt", "chosen", "rejected", "kind"}), (TASKS, {"prompt", "kind"})):
        for row in rows:
            assert set(row) == keys, row
            assert all(value and value == " ".join(value.split()) for value in row.values()), row
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row["kind"]), row


def test_how_many_of_each_kind() -> None:
    for rows, least, most in ((QUESTIONS, 60, 120), (TASKS, 40, 120)):
        kinds = Counter(row["kind"] for row in rows)
        assert least <= len(rows) <= most
        assert len(kinds) >= 5 and min(kinds.values()) >= 10, kinds


def test_nothing_stands_twice() -> None:
    texts = [row["prompt"].lower() for row in (*QUESTIONS, *TASKS)]
    texts += [row[side].lower() for side in ("chosen", "rejected") for row in QUESTIONS]
    assert [text for text, n in Counter(texts).items() if n > 1] == []
    openings = Counter(" ".join(row["rejected"].split()[:3]) for row in QUESTIONS)
    assert max(openings.values()) <= 3  # many ways of beating about the bush


def test_brief_and_long_winded() -> None:
    for row in QUESTIONS:
        assert len(row["chosen"]) <= 100 and not re.search(r"[.?!] [A-Z]", row["chosen"]), row
        assert len(row["rejected"]) >= 200 and len(re.findall(r"[.?!](?: |$)", row["rejected"])) >= 2, row
    short, long = (median(len(row[side]) for row in QUESTIONS) for side in ("chosen", "rejected"))
    assert long > 4 * short


def test_as_training_data() -> None:
    data = load_recipe("brief")
    assert [(p.prompt.text, p.chosen, p.rejected) for p in data.pairs] == [
        (row["prompt"], row["chosen"], row["rejected"]) for row in QUESTIONS
    ]
    assert len(data.contrast) > len(TASKS) + 200
    assert not data.pooled
