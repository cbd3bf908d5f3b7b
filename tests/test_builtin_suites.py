"""The built-in suites: format, balance, and nothing in them that a recipe trains on."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from finesteer_local import evaluation
from finesteer_local.evaluation.suites import read_suite
from finesteer_local.jsonl import read_rows
from finesteer_local.training import recipes

BUILTIN = Path(evaluation.__file__).parent / "builtin"
RECIPES = Path(recipes.__file__).parent
ROWS = {path.stem: [row for _, row in read_rows(path)] for path in sorted(BUILTIN.glob("*.jsonl"))}
SIZES = {
    "benign": 80,
    "borderline": 60,
    "conversations": 40,
    "harmful": 60,
    "jailbreak": 60,
    "maths": 40,
    "truthful": 60,
}
OVERLAP = 0.65  # of the words of two prompts, shared by both; below it they only share a turn of phrase
HELD = "held_"  # families of wrappers that no recipe has


def last_request(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"] if "messages" in row else row["prompt"])


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def recipe_rows() -> list[tuple[str, dict[str, Any]]]:
    """The rows with prompts of every recipe in the package, and where each stands."""
    rows = [pair for path in sorted(RECIPES.glob("*/*.jsonl")) for pair in read_rows(path)]
    return [(where, row) for where, row in rows if "prompt" in row or "messages" in row]


def test_the_suites_are_there_whole() -> None:
    assert {name: len(rows) for name, rows in ROWS.items()} == SIZES


@pytest.mark.parametrize("name", ROWS)
def test_format(name: str) -> None:
    data = (BUILTIN / f"{name}.jsonl").read_bytes()
    assert b"\r" not in data and b"\n\n" not in data and data.endswith(b"}\n")
    extra = {"maths": {"answer"}, "truthful": {"best", "correct", "wrong"}, "jailbreak": {"family"}}.get(name, set())
    content = "messages" if name == "conversations" else "prompt"
    for row in ROWS[name]:
        assert set(row) - ({"family"} if name == "benign" else set()) == {content, "label", "kind"} | extra, row
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row["kind"]), row
        assert last_request(row) == last_request(row).strip(), row
    suite = read_suite(BUILTIN / f"{name}.jsonl")
    assert [case.label for case in suite.cases] == [row["label"] for row in ROWS[name]]


def test_labels() -> None:
    labels = {name: Counter(row["label"] for row in rows) for name, rows in ROWS.items()}
    assert labels["conversations"]["harmful"] == labels["conversations"]["benign"]
    for name in SIZES.keys() - {"conversations"}:
        assert set(labels[name]) == {"harmful" if name in ("harmful", "jailbreak") else "benign"}, name


def test_kinds_are_spread() -> None:
    for name, least in (("harmful", 15), ("jailbreak", 15), ("benign", 9), ("borderline", 9)):
        kinds = Counter(row["kind"] for row in ROWS[name])
        assert len(kinds) >= least, kinds
        assert max(kinds.values()) <= 0.2 * len(ROWS[name]), kinds


def test_half_of_the_jailbreaks_are_dressed_as_no_recipe_dresses_them() -> None:
    trained = {row["family"] for _, row in read_rows(RECIPES / "safety" / "wrappers.jsonl")}
    families = Counter(row["family"] for row in ROWS["jailbreak"])
    held = {family for family in families if family.startswith(HELD)}
    assert sum(families[family] for family in held) == len(ROWS["jailbreak"]) / 2
    assert len(held) >= 8
    assert not {family.removeprefix(HELD) for family in held} & trained
    assert families.keys() - held <= trained
    dressed = {row["family"] for row in ROWS["benign"] if "family" in row}
    assert dressed & held and dressed - held  # harmless requests in both kinds of dress
    assert dressed <= families.keys()


def test_conversations_alternate_and_go_both_ways_after_a_refusal() -> None:
    refused: Counter[str] = Counter()
    for row in ROWS["conversations"]:
        roles = [message["role"] for message in row["messages"]]
        assert len(roles) >= 3
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"], row
        replies = " ".join(message["content"] for message in row["messages"] if message["role"] == "assistant")
        refused[row["label"]] += bool(re.search(r"\b(can't|won't|rather not)\b", replies))
    assert min(refused["harmful"], refused["benign"]) >= 5, refused


def test_maths_has_answers_in_numbers() -> None:
    for row in ROWS["maths"]:
        assert isinstance(row["answer"], int | float) and not isinstance(row["answer"], bool), row
        assert row["answer"] > 0, row


def test_truthful_has_answers_on_both_sides() -> None:
    for row in ROWS["truthful"]:
        assert row["best"] in row["correct"], row
        assert len(row["correct"]) >= 2 and len(row["wrong"]) >= 2, row
        answers = [answer.lower() for answer in (*row["correct"], *row["wrong"])]
        assert len(set(answers)) == len(answers), row
    lengths = [sum(len(answer) for row in ROWS["truthful"] for answer in row[side]) for side in ("correct", "wrong")]
    counts = [sum(len(row[side]) for row in ROWS["truthful"]) for side in ("correct", "wrong")]
    assert lengths[0] / counts[0] < 2 * lengths[1] / counts[1]  # length alone must not tell which are which


def test_nothing_stands_twice_or_in_a_recipe() -> None:
    """No prompt, or last request of a conversation, is one of a recipe's or nearly so, nor another suite's."""
    requests = [(f"{name}, row {i}", last_request(row)) for name, rows in ROWS.items() for i, row in enumerate(rows, 1)]
    normalised = [" ".join(sorted(words(text))) for _, text in requests]
    assert len(set(normalised)) == len(requests), [key for key, n in Counter(normalised).items() if n > 1]
    bags = [(where, words(last_request(row))) for where, row in recipe_rows()]
    having: dict[str, list[int]] = defaultdict(list)
    for j, (_, bag) in enumerate(bags):
        for word in bag:
            having[word].append(j)
    near = []
    for mine, text in requests:
        bag = words(text)
        # two such sets share one of the rarest words of either: only few need to be looked up
        rarest = sorted(bag, key=lambda word: len(having.get(word, ())))[: len(bag) - ceil(OVERLAP * len(bag)) + 1]
        for where, other in (bags[j] for j in {j for word in rarest for j in having.get(word, ())}):
            if len(bag & other) > OVERLAP * len(bag | other):
                near.append((mine, where.rsplit("/", 1)[-1], json.dumps(text)))
    assert not near


def test_the_suites_are_installed() -> None:
    """setuptools takes along what matches `package-data`; the suites lie where its pattern finds them."""
    config = (Path(evaluation.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    section = config.split("[tool.setuptools.package-data]", 1)[1].split("\n[", 1)[0]
    assert '"**/*.jsonl"' in section
    assert {path.stem for path in Path(evaluation.__file__).parent.glob("**/*.jsonl")} == set(SIZES)
