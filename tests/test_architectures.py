"""Each model family: the tap, exactness, closed gates, many requests, fingerprints, training; or a clear refusal."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import architectures
from architectures import Findings, examine
from finesteer_local.errors import SteeringError
from finesteer_local.runtime import open_model
from finesteer_local.runtime.batch import BatchEngine, Request, Steer
from reference import answer, plain_llama, steered_llama
from tiny import make_profile
from tiny_architectures import FAMILIES, write_family

REFUSED = {
    "plamo2": "llama.cpp shows no layer outputs (l_out) for architecture 'plamo2': no steering",
    "gemma3n": "llama.cpp shows 4 rows a token for architecture 'gemma3n': no steering",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@cache
def found(name: str, folder: Path) -> Findings:
    return examine(name, folder)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in REFUSED])
def test_everything_holds(name: str, folder: Path) -> None:
    assert found(name, folder) == Findings(*[True] * 6)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_family(name: str, folder: Path) -> None:
    assert found(name, folder) == Findings(fingerprint=True, refusal=REFUSED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_family_generates_nothing_steered_and_works_without_profiles(name: str, tmp_path: Path) -> None:
    path = write_family(tmp_path / "model.gguf", name)
    profile = make_profile(path)
    with pytest.raises(SteeringError, match=f"architecture '{name}'"):
        open_model(path, profiles=[profile])
    llama = steered_llama(path)
    with BatchEngine(llama, n_parallel=1) as engine:
        with pytest.raises(SteeringError, match=f"architecture '{name}'"):
            engine.submit(Request(architectures.PROMPT, steer=(Steer(profile),)))
        assert engine.submit(Request(architectures.PROMPT, max_tokens=2)).result().finished.n_answer == 2
    assert answer(llama, architectures.PROMPT) == answer(plain_llama(path), architectures.PROMPT)


@pytest.mark.parametrize("name", REFUSED)
def test_training_a_refused_family_ends_before_it_begins(name: str, tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match=f"architecture '{name}'"):
        architectures._trains(write_family(tmp_path / "model.gguf", name))


def test_the_table_is_current(folder: Path) -> None:
    """`python tests/architectures.py` writes it."""
    every = {name: found(name, folder) for name in FAMILIES}
    assert architectures.document(every) == architectures.DOCUMENT.read_text(encoding="utf-8")
