"""Plots are drawn of what there are figures for."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from finesteer_local.bench import Results, Series, answers, batch
from finesteer_local.bench.plots import WIDTH, draw
from finesteer_local.errors import StorageError


def figures(n: int = 2) -> list[Series]:
    ways = (answers.NATIVE, answers.VECTOR, answers.CLOSED, answers.OPEN, answers.TWO)
    values = {way: [100.0 + i, 101.0 + i] for i, way in enumerate(ways)}
    counts = {answers.NATIVE: [10.0], "1 open": [9.0], "4 open": [8.0]}
    pairs = [
        f"{what}, {how}"
        for what in (batch.BARE, batch.UNSTEERED, batch.STEERED)
        for how in ("one after the other", "together")
    ]
    return [
        *(Series("ttft", f"prompt of {x}", "ms", x, dict(values)) for x in (32, 256)[:n]),
        *(Series("batch", f"{x} requests", "tokens/s", x, {pair: [50.0, 60.0] for pair in pairs}) for x in (1, 8)[:n]),
        Series("batch", "mixed", "tokens/s", None, {pair: [50.0] for pair in pairs}),
        Series("profiles", "decode", "tokens/s", None, counts, reference=answers.NATIVE),
        *(Series("width", f"{x} wide", "tokens/s", x, dict(values)) for x in (256, 512)[:n]),
    ]


def test_all_pictures(tmp_path: Path) -> None:
    written = draw(Results(series=figures()), tmp_path / "plots")
    assert [file.name for file in written] == ["prompt-length.svg", "batch-size.svg", "profiles.svg", "width.svg"]
    first = written[0].read_text()
    assert "gate closed" in first and "prompt tokens" in first
    assert {ET.parse(file).getroot().attrib["width"] for file in written} == {str(WIDTH)}
    assert "steered" in written[1].read_text()
    profiles = written[2].read_text()
    assert "a token of the answer" in profiles and ">4<" in profiles
    assert draw(Results(series=figures()), tmp_path / "again")[0].read_text() == first, (
        "the same figures, the same file"
    )


def test_one_point_makes_no_line(tmp_path: Path) -> None:
    assert [file.name for file in draw(Results(series=figures(1)), tmp_path)] == ["profiles.svg"]
    assert draw(Results(), tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        draw(Results(series=figures()), tmp_path / "file")
