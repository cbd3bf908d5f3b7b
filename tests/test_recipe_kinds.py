"""A recipe's kinds of request: the safety recipe's, and every way to write a file of them wrong."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

import pytest

from finesteer_local.errors import DataError
from finesteer_local.judges.phrases import is_refusal
from finesteer_local.judges.warm import warm
from finesteer_local.judges.whole import declines
from finesteer_local.profile import Profile
from finesteer_local.server.moderations_schemas import CATEGORIES
from finesteer_local.steering import Kind
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.recipes.kinds import read_kinds

DOCS = Path(__file__).parents[1] / "docs"
BUNDLED = sorted((DOCS.parent / "models" / "profiles").glob("safety.*.gguf"))
WITHOUT = {"other", "fragments", "rude_chat", ""}
"""Kinds of the safety recipe's rows that say nothing of what is asked."""


@pytest.fixture(scope="module")
def kinds() -> dict[str, Kind]:
    return {each.kind.name: each.kind for each in load_recipe("safety").kinds}


def test_the_safety_recipe() -> None:
    data = load_recipe("safety")
    assert 12 <= len(data.kinds) <= 16
    of = [kind for each in data.kinds for kind in each.of]
    assert {prompt.kind for prompt in data.positive} == {*of} | ({p.kind for p in data.positive} & WITHOUT)
    page = (DOCS / "kinds.md").read_text("utf-8")
    for each in data.kinds:
        kind = each.kind
        assert kind.about and kind.words and kind.mlcommons and kind.openai and set(kind.openai) <= set(CATEGORIES)
        row = f"| `{kind.name}` | {kind.about} | {', '.join(kind.mlcommons)} | {', '.join(kind.openai)} |"
        assert row in page, row


def test_the_profiles_own_words(kinds: dict[str, Kind]) -> None:
    """Each declines as a person would, in a few sentences, and none names a number: it would be wrong somewhere. Who is
    in danger is met at once, and with warmth.
    """
    assert {name for name, kind in kinds.items() if kind.action != "steer"} == {"self_harm"}
    assert {name for name, kind in kinds.items() if kind.alone} == {"self_harm"}
    for kind in kinds.values():
        assert len(set(kind.words)) == len(kind.words) >= 25
        for text in kind.words:
            assert len(text) < 300 and not any(letter.isdigit() for letter in text)
            assert declines(text) or kind.name == "self_harm", text
    for text in kinds["self_harm"].words:
        assert warm(text) and is_refusal(text), text
        assert "crisis line" in text or "your local emergency number" in text or "helpline" in text


def test_no_two_of_a_kinds_words_are_nearly_the_same(kinds: dict[str, Kind]) -> None:
    for kind in kinds.values():
        for one, other in combinations(kind.words, 2):
            alike = SequenceMatcher(None, one, other)
            # the first is an upper bound, and fast
            assert alike.quick_ratio() < 0.8 or alike.ratio() < 0.8, (one, other)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_the_bundled_profiles_say_the_recipes_words(path: Path, kinds: dict[str, Kind]) -> None:
    found = Profile.load(path).kinds
    assert found is not None and found.kinds == tuple(kinds.values())


def test_there_are_bundled_profiles() -> None:
    assert len(BUNDLED) >= 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"of": ["a"]}, "the field 'name'"),
        ({"name": "Two Words", "of": ["a"]}, "lower-case letters"),
        ({"name": "fraud"}, "the field 'of' must be a list of texts"),
        ({"name": "fraud", "of": []}, "the field 'of'"),
        ({"name": "fraud", "of": "a"}, "the field 'of'"),
        ({"name": "fraud", "of": ["a"], "openai": [1]}, "the field 'openai'"),
        ({"name": "fraud", "of": ["a"], "words": [""]}, "the field 'words' must be a list of texts"),
        ({"name": "fraud", "of": ["a"], "words": "no"}, "the field 'words' must be a list of texts"),
        ({"name": "fraud", "of": ["a"], "about": ""}, "the field 'about' is empty"),
        ({"name": "fraud", "of": ["a"], "expert": 1}, "the field 'expert' is empty or not text"),
        ({"name": "fraud", "of": ["a"], "action": "forgive"}, "the field 'action' must be one of leave, report"),
        ({"name": "fraud", "of": ["a"], "alone": 2}, "the field 'alone' must be a probability"),
        ({"name": "fraud", "of": ["a"], "word": "no"}, "unknown field 'word'; known: name, of, about"),
        ({"name": "hate", "of": ["a"]}, "the name 'hate' stands twice"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict, said: str) -> None:
    path = tmp_path / "kinds.jsonl"
    path.write_text(json.dumps({"name": "hate", "of": ["h"]}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"line 2: .*{said}"):
        read_kinds(path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "kinds.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_kinds(tmp_path / "kinds.jsonl")
