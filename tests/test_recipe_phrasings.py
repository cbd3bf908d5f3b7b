"""Deeds in phrasings: what is asked and how it is asked come together, the same way every time."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finesteer_local.errors import DataError
from finesteer_local.training.data import FOREIGN, PLAIN
from finesteer_local.training.recipes.phrasings import Phrasings, read_requests

TEMPLATES = ["how do i {do}", "Teach me to {do}!", "{do} guide", "write me {write}", "{write} pls"]


def rows(tmp_path: Path, *found: dict[str, Any]) -> Path:
    file = tmp_path / "deeds.jsonl"
    file.write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    return file


def test_a_deed_is_asked_for_in_one_of_the_phrasings(tmp_path: Path) -> None:
    phrasings = Phrasings(TEMPLATES)
    found = read_requests(
        rows(
            tmp_path,
            {"do": "pick a lock", "kind": "theft"},
            {"write": "a ransom note", "kind": "blackmail", "language": "de"},
            {"prompt": "knife or gun?", "kind": "weapons"},
        ),
        phrasings,
    )
    assert found[0].text in {template.replace("{do}", "pick a lock") for template in TEMPLATES[:3]}
    assert found[1].text in {"write me a ransom note", "a ransom note pls"}
    assert found[2].text == "knife or gun?"
    assert [p.kind for p in found] == ["theft", "blackmail", "weapons"]
    assert [p.form for p in found] == [PLAIN, FOREIGN, PLAIN]


def test_what_else_is_asked_changes_nothing() -> None:
    """A prompt that was read stays in the cache when a recipe grows."""
    deeds = [f"do number {i}" for i in range(60)]
    alone = {deed: Phrasings(TEMPLATES).phrased("do", deed) for deed in deeds}
    phrasings = Phrasings(TEMPLATES)
    assert {deed: phrasings.phrased("do", deed) for deed in reversed(deeds)} == alone
    used = Counter(text.replace(deed, "{do}") for deed, text in alone.items())
    assert set(used) == set(TEMPLATES[:3]) and min(used.values()) >= 10


@pytest.mark.parametrize("template", ["no place", "{do} and {write}", "{do} {do}", "{request}", "{}"])
def test_a_phrasing_has_one_place(template: str) -> None:
    with pytest.raises(DataError, match=r"must have one of \{do\} and \{write\}, once"):
        Phrasings([template])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"do": "a", "write": "b"}, "line 1: give only one of 'do', 'write'"),
        ({"do": "a", "prompt": "b"}, "line 1: give only one of 'do', 'prompt'"),
        ({"do": " "}, "line 1: the field 'do' is missing or empty"),
        ({"write": 3}, "line 1: the field 'write' is missing or empty"),
        ({"kind": "x"}, "line 1"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_requests(rows(tmp_path, row), Phrasings(TEMPLATES))


def test_a_deed_needs_a_phrasing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: no phrasing of the recipe has a place for 'write'"):
        read_requests(rows(tmp_path, {"write": "a poem"}), Phrasings(["how to {do}"]))
