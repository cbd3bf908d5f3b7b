"""What an evaluation remembers: digests of everything, and a file that survives being cut short."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local import paths
from finesteer_local.errors import StorageError
from finesteer_local.evaluation.journal import Journal, digest, run_folder
from reference import steered_llama
from tiny import write_tiny_model


@dataclass
class Thing:
    name: str
    values: Any


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "b"),
        (1, 1.5),
        (1, "1"),
        (None, 0),
        (["a", "b"], ["ab"]),
        (["a", ["b"]], [["a"], "b"]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        (np.zeros(2, np.float32), np.zeros(2, np.float64)),
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)),
        (np.array([1.0, 2.0]), np.array([1.0, np.nextafter(2.0, 3.0)])),
        (Thing("a", 1), Thing("a", 2)),
        (Thing("a", np.zeros(2)), Thing("a", np.ones(2))),
    ],
)
def test_a_digest_tells_apart(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_a_digest_is_of_the_values() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(Thing("a", np.arange(6.0)[::2])) == digest(Thing("a", np.array([0.0, 2.0, 4.0])))
    assert digest("a", "b") != digest("ab")
    assert len(digest()) == 64


def test_values_outlive_the_program(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal.jsonl"
    journal = Journal(path)
    journal["a"] = {"text": "é\n", "n": [1, None, 0.5]}
    assert journal["a"]["n"] == [1, None, 0.5]
    assert len(path.read_text("utf-8").splitlines()) == 1  # at once, not at the end
    journal["b"] = 1
    journal["b"] = 2
    journal.close()
    again = Journal(path)
    assert again["a"] == {"text": "é\n", "n": [1, None, 0.5]}
    assert (again["b"], "c" in again) == (2, False)
    again.close()


@pytest.mark.parametrize("rest", ['["b", {"te', "[", '["b"]', "nonsense", "{}", ""])
def test_a_line_cut_short_costs_only_itself(tmp_path: Path, rest: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps(["a", 1]) + "\n" + rest, encoding="utf-8")
    journal = Journal(path)
    assert journal["a"] == 1 and "b" not in journal
    journal["b"] = 2
    journal.close()
    assert Journal(path)["b"] == 2


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'["a", 1]\n\xff\xfe\n["b", 2]\n')
    journal = Journal(path)
    assert (journal["a"], journal["b"]) == (1, 2)


def test_fresh_forgets(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal["a"] = 1
    journal.close()
    fresh = Journal(path, fresh=True)
    assert "a" not in fresh
    fresh["b"] = 2
    fresh.close()
    assert "a" not in Journal(path) and Journal(path)["b"] == 2


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal["a"] = 1
    journal.close()
    assert journal["a"] == 1 and not list(tmp_path.glob("*.jsonl"))


def test_remembered_computes_once() -> None:
    journal, asked = Journal(), []
    for _ in range(3):
        assert journal.remembered("a", lambda: asked.append(1) or 5) == 5  # type: ignore[func-returns-value]
    assert asked == [1]


def test_a_file_that_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot keep"):
        Journal(tmp_path / "journal.jsonl")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        Journal(tmp_path / "file" / "journal.jsonl")


def test_every_model_file_has_a_folder_of_its_own(tiny: Path, tmp_path: Path) -> None:
    one = run_folder(steered_llama(tiny))
    assert one == run_folder(steered_llama(tiny))
    assert one.parent == paths.evaluations_dir()
    tuned = write_tiny_model(tmp_path / "tuned.gguf", nudge=0.1)
    half = write_tiny_model(tmp_path / "half.gguf", weight_type=np.float16)
    assert len({one, run_folder(steered_llama(tuned)), run_folder(steered_llama(half))}) == 3
