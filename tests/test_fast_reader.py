"""The faster way of reading is found by trying, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finesteer_local import paths
from finesteer_local.errors import StorageError
from finesteer_local.runtime import open_model
from finesteer_local.runtime.harvest import EXPAND_FROM, Harvester, Reader
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.training import fast_reader as module
from finesteer_local.training.fast_reader import fast_reader
from finesteer_local.training.lower_layers import PRECISIONS, Precision
from finesteer_local.training.torch_reader import TorchReader
from test_harvest import requests
from tiny import write_tiny_model

ASKED = requests(12)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Precision]:
    """The precision that is found quicker."""
    found: dict[str, Precision] = {"is": "bfloat16"}
    monkeypatch.setattr(module, "quicker", lambda path, top: found["is"])
    return found


def kept() -> list[str]:
    return list(json.loads((paths.cache_dir() / "readers.json").read_text()).values())


@pytest.fixture
def chosen(tiny: Path, monkeypatch: pytest.MonkeyPatch):
    """What is chosen where PyTorch takes `ours` seconds and llama.cpp `theirs`."""

    def choose(ours: float, theirs: float, path: Path = tiny, n_tokens: int = EXPAND_FROM) -> type[Reader]:
        seconds = iter([0.0, ours, 0.0, theirs])
        monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
        llama = open_model(path, n_ctx=1024)
        try:
            return type(fast_reader(llama, 1, ASKED, n_tokens))
        finally:
            llama.close()

    return choose


def test_the_faster_reads(chosen) -> None:
    assert chosen(1.0, 2.0) is TorchReader
    (paths.cache_dir() / "readers.json").unlink()
    assert chosen(2.0, 1.0) is Harvester


def test_a_run_that_goes_on_reads_as_it_began(chosen) -> None:
    assert chosen(1.0, 2.0) is TorchReader
    assert chosen(2.0, 1.0) is TorchReader  # known: nothing is timed again


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_is_kept_too(
    chosen, quick: dict[str, Precision], monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    read: list[Precision] = []

    class Noted(TorchReader):
        def __init__(self, path: Path, layer: int, precision: Precision, sample: list[StatesRequest]) -> None:
            read.append(precision)
            super().__init__(path, layer, precision, sample)

    monkeypatch.setattr(module, "TorchReader", Noted)
    for quick["is"] in (precision, *PRECISIONS):
        assert chosen(1.0, 2.0) is Noted
    assert read == [precision] * (1 + len(PRECISIONS))
    assert kept() == [precision]


def test_llama_cpp_is_kept(chosen) -> None:
    assert chosen(2.0, 1.0) is Harvester
    assert kept() == ["llama.cpp"]
    assert chosen(1.0, 2.0) is Harvester


@pytest.mark.parametrize("earlier", [True, False, None, "float8", 3, ["int8"]])
def test_what_earlier_versions_kept_is_found_anew(chosen, earlier: object) -> None:
    chosen(2.0, 1.0)
    note = paths.cache_dir() / "readers.json"
    note.write_text(json.dumps(dict.fromkeys(json.loads(note.read_text()), earlier)))
    assert chosen(1.0, 2.0) is TorchReader
    assert kept() == ["bfloat16"]


def test_a_damaged_note_costs_only_the_time_of_finding_out_again(chosen) -> None:
    chosen(1.0, 2.0)
    note = paths.cache_dir() / "readers.json"
    for text in ("", "[1", "[]", "7"):
        note.write_text(text)
        assert chosen(1.0, 2.0) is TorchReader
        assert json.loads(note.read_text())


def test_states_that_differ_are_not_taken(chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "differ", lambda a, b: 0.2)
    assert chosen(1.0, 2.0) is Harvester


def test_few_prompts_and_other_models_are_read_by_llama_cpp(chosen, tmp_path: Path) -> None:
    assert chosen(1.0, 2.0, write_tiny_model(tmp_path / "m.gguf", "gemma3")) is Harvester
    assert chosen(1.0, 2.0, n_tokens=EXPAND_FROM - 1) is Harvester


def test_a_choice_that_cannot_be_kept_is_made_all_the_same(chosen, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise StorageError("no room")

    monkeypatch.setattr(paths, "atomic_write", refuse)
    assert chosen(1.0, 2.0) is TorchReader
    assert chosen(2.0, 1.0) is Harvester


@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_are_held_against_each_other(tiny: Path, precision: Precision) -> None:
    """What decides sees the very states that both give."""
    llama = open_model(tiny, n_ctx=1024)
    seen: list[np.ndarray] = []
    wanted = module.differ
    try:
        reader, own = TorchReader(tiny, 1, precision, ASKED), Harvester(llama, [1])
        module._wins(reader, own, ASKED)
        ours, theirs = (dict(each.harvest(ASKED)) for each in (reader, own))
        seen = [np.stack([each[i][:, -1] for i in sorted(each)]) for each in (ours, theirs)]
        assert 0 < wanted(*seen) < module._CLOSE
    finally:
        llama.close()
