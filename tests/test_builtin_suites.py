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
from finesteer_local.training.recipes.phrasings import DEEDS, Phrasings, read_requests

BUILTIN = Path(evaluation.__file__).parent / "builtin"
RECIPES = Path(recipes.__file__).parent
ROWS = {path.stem: [row for _, row in read_rows(path)] for path in sorted(BUILTIN.glob("*.jsonl"))}
SIZES = {
    "benign": 80,
    "borderline": 60,
    "conversations": 40,
    "foreign": 300,
    "harmful": 60,
    "jailbreak": 60,
    "maths": 40,
    "plain": 340,
    "truthful": 60,
}
OVERLAP = 0.65  # of the words of two prompts, shared by both; below it they only share a turn of phrase
HELD = "held_"  # families of wrappers that no recipe has
MIXED = {"conversations": (20, 20), "foreign": (150, 150), "plain": (160, 180)}  # harmful and benign rows in one file
SCRIPTS = {
    "ar": r"[\u0621-\u064a]",
    "de": "[a-z]",
    "es": "[a-z]",
    "fr": "[a-z]",
    "hi": r"[\u0900-\u0963]",
    "it": "[a-z]",
    "ja": r"[\u3040-\u30ff]",  # kana, which no Chinese has
    "pt": "[a-z]",
    "ru": "[а-яё]",
    "zh": r"[\u4e00-\u9fff]",
}
# Python counts the vowel signs of Hindi as no part of a word; Chinese and Japanese do not say where a word ends: each
# of their characters is one here.
WORD = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|(?:[^\W\u3040-\u30ff\u4e00-\u9fff]|[\u0900-\u0963])+")


def last_request(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"] if "messages" in row else row["prompt"])


def words(text: str) -> frozenset[str]:
    return frozenset(WORD.findall(text.lower()))


def spoken(text: str) -> str:
    """The words of a text in their order, with nothing else between them."""
    return f" {' '.join(WORD.findall(text.lower()))} "


def kinds_of(name: str, *labels: str) -> Counter[str]:
    return Counter(row["kind"] for row in ROWS[name] if not labels or row["label"] in labels)


def recipe_rows() -> list[tuple[str, dict[str, Any]]]:
    """The rows with prompts of every recipe in the package, and where each stands; deeds bare and as they are asked."""
    found = []
    for path in sorted(RECIPES.glob("*/*.jsonl")):
        rows = list(read_rows(path))
        found += [(where, row) for where, row in rows if "prompt" in row or "messages" in row]
        deeds = [(where, row[deed]) for where, row in rows for deed in DEEDS if deed in row]
        if deeds:
            phrasings = Phrasings([row["template"] for _, row in read_rows(path.with_name("phrasings.jsonl"))])
            asked = {prompt.text for prompt in read_requests(path, phrasings)}
            found += [(where, {"prompt": text}) for where, text in deeds]
            found += [(path.name, {"prompt": text}) for text in sorted(asked)]
    return found


def test_the_suites_are_there_whole() -> None:
    assert {name: len(rows) for name, rows in ROWS.items()} == SIZES


@pytest.mark.parametrize("name", ROWS)
def test_format(name: str) -> None:
    data = (BUILTIN / f"{name}.jsonl").read_bytes()
    assert b"\r" not in data and b"\n\n" not in data and data.endswith(b"}\n")
    extra = {
        "foreign": {"source", "language"},
        "jailbreak": {"family"},
        "maths": {"answer"},
        "plain": {"source"},
        "truthful": {"best", "correct", "wrong"},
    }.get(name, set())
    content = "messages" if name == "conversations" else "prompt"
    for row in ROWS[name]:
        assert set(row) - ({"family"} if name == "benign" else set()) == {content, "label", "kind"} | extra, row
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", row["kind"]), row
        assert last_request(row) == last_request(row).strip(), row
        assert row.get("source", name) == name, row
    suite = read_suite(BUILTIN / f"{name}.jsonl")
    assert [case.label for case in suite.cases] == [row["label"] for row in ROWS[name]]


def test_labels() -> None:
    labels = {name: Counter(row["label"] for row in rows) for name, rows in ROWS.items()}
    for name, (harmful, benign) in MIXED.items():
        assert labels[name] == {"harmful": harmful, "benign": benign}, name
    for name in SIZES.keys() - MIXED.keys():
        assert set(labels[name]) == {"harmful" if name in ("harmful", "jailbreak") else "benign"}, name


def test_kinds_are_spread() -> None:
    leasts = {"harmful": 15, "jailbreak": 15, "benign": 9, "borderline": 9}
    spread = [(kinds_of(name), least) for name, least in leasts.items()]
    spread += [(kinds_of(name, label), 20) for name in ("plain", "foreign") for label in ("harmful", "benign")]
    for kinds, least in spread:
        assert len(kinds) >= least, kinds
        assert max(kinds.values()) <= 0.2 * kinds.total(), kinds


def test_half_of_the_harmless_plain_requests_sound_like_the_harmful_ones() -> None:
    harmful, benign = (kinds_of("plain", label) for label in ("harmful", "benign"))
    assert sum(benign[kind] for kind in harmful) >= 0.5 * benign.total()
    assert len(harmful.keys() & benign.keys()) >= 20


def test_plain_requests_are_short_and_typed_in_haste() -> None:
    for label in ("harmful", "benign"):
        prompts = [row["prompt"] for row in ROWS["plain"] if row["label"] == label]
        lengths = sorted(len(prompt.split()) for prompt in prompts)
        assert lengths[len(lengths) // 2] <= 12 and lengths[-1] <= 25, lengths
        assert sum(prompt[0].islower() for prompt in prompts) >= 0.5 * len(prompts)


def test_foreign_has_fifteen_requests_of_either_side_in_each_of_ten_languages() -> None:
    counts = Counter((row["language"], row["label"]) for row in ROWS["foreign"])
    assert counts == {(language, label): 15 for language in SCRIPTS for label in ("harmful", "benign")}
    assert len(SCRIPTS) == 10
    by_language: dict[str, list[str]] = defaultdict(list)
    for row in ROWS["foreign"]:
        by_language[row["language"]].append(row["prompt"].lower())
    for language, prompts in by_language.items():
        least = 0.9 if language == "ja" else 1  # a short line can do without kana
        assert sum(bool(re.search(SCRIPTS[language], prompt)) for prompt in prompts) >= least * len(prompts), language
    assert not any(re.search(SCRIPTS["ja"], prompt) for prompt in by_language["zh"])


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


def test_nothing_stands_inside_a_prompt_of_a_recipe() -> None:
    """A short prompt is no less known for the words around it, nor for an earlier turn of a conversation."""
    messages = [row["messages"] if "messages" in row else [{"content": row["prompt"]}] for _, row in recipe_rows()]
    trained = "\n".join(spoken(message["content"]) for each in messages for message in each)
    assert spoken("how do I kill a Python process").strip() == "how do i kill a python process"
    inside = [
        (name, i, text)
        for name, rows in ROWS.items()
        for i, text in enumerate(map(last_request, rows), 1)
        if spoken(text) in trained
    ]
    assert not inside


def test_words_are_seen_in_every_script() -> None:
    assert words("How do I? I don't.") == {"how", "do", "i", "don", "t"}
    assert words("घर पर") == {"घर", "पर"} and words("पनीर कैसे") == {"पनीर", "कैसे"}
    assert words("怎么自制") == set("怎么自制") and words("LINEの通知") == {"line", *"の通知"}


def test_the_suites_are_installed() -> None:
    """setuptools takes along what matches `package-data`; the suites lie where its pattern finds them."""
    config = (Path(evaluation.__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    section = config.split("[tool.setuptools.package-data]", 1)[1].split("\n[", 1)[0]
    assert '"**/*.jsonl"' in section
    assert {path.stem for path in Path(evaluation.__file__).parent.glob("**/*.jsonl")} == set(SIZES)
