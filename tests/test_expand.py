"""A float32 copy of the first layers gives the model's own states, and is made only where it helps."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp

from finesteer_local.errors import ModelError
from finesteer_local.identity import read_model_identity
from finesteer_local.runtime import expand, open_model
from finesteer_local.runtime import harvest as harvesting
from finesteer_local.runtime.expand import expanded, open_fast
from finesteer_local.runtime.harvest import Harvester
from finesteer_local.runtime.packing import StatesRequest
from finesteer_local.runtime.tapped import TappedLlama
from reference import tapped, whole_pass
from tiny import ARCHITECTURES, make_profile, write_tiny_model

PROMPTS = [np.random.default_rng(i).integers(3, 250, 30).tolist() for i in range(6)]


def quantised(folder: Path, architecture: str = "llama", ftype: int = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1) -> Path:
    """A tiny model, quantised by llama.cpp."""
    source = write_tiny_model(folder / "source.gguf", architecture)
    target = folder / f"{architecture}-{ftype}.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = ftype, 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return target


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantised(tmp_path_factory.mktemp("slow"))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """What `expanded` gives whenever the harvester asks it."""
    copies: list[object] = []

    def remember(llama: TappedLlama) -> object:
        copies.append(expanded(llama))
        return copies[-1]

    monkeypatch.setattr(harvesting, "expanded", remember)
    yield copies


def read(harvester: Harvester) -> list[np.ndarray]:
    return [
        states
        for _, states in sorted(harvester.harvest([StatesRequest(p, 0) for p in PROMPTS]), key=lambda item: item[0])
    ]


@pytest.mark.parametrize("layers", [[0], [1, 2]], ids=str)
def test_the_states_are_the_models_own(slow: Path, made: list[object], layers: list[int]) -> None:
    got = read(Harvester(tapped(slow), layers, expand_from=100))
    assert len(made) == 1 and made[0] is not None
    for prompt, states in zip(PROMPTS, got, strict=True):
        wanted = whole_pass(slow, prompt, layers)
        difference = np.linalg.norm(states - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
        # The model's own kernels round activations to 8 bits, the copy's do not.
        assert 0 < np.median(difference) < 0.05


def test_the_default_model(smollm2: Path, made: list[object]) -> None:
    llama = TappedLlama(str(smollm2), n_ctx=256, n_threads=2, verbose=False)
    try:
        own = read(Harvester(llama, [12], expand_from=float("inf")))
        assert not made
        got = read(Harvester(llama, [12], expand_from=100))
        assert made and made[0] is not None
        difference = [
            np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1) for a, b in zip(got, own, strict=True)
        ]
        assert np.median(np.concatenate(difference, axis=1)) < 0.04
    finally:
        llama.close()


def test_the_same_requests_give_the_same_bits(slow: Path, made: list[object]) -> None:
    harvester = Harvester(tapped(slow), [1], expand_from=100)
    first = read(harvester)
    again = read(harvester)
    assert len(made) == 1  # the copy is kept
    harvester.close()
    anew = read(harvester)
    assert len(made) == 2
    for a, b, c in zip(first, again, anew, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)


def test_a_copy_that_gives_other_states_is_not_used(
    slow: Path, made: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = read(Harvester(tapped(slow), [1], expand_from=float("inf")))
    other = write_tiny_model(tmp_path / "other.gguf", seed=1)
    monkeypatch.setattr(expand, "float32_copy", lambda path: nullcontext(other))
    for a, b in zip(read(Harvester(tapped(slow), [1], expand_from=100)), own, strict=True):
        assert np.array_equal(a, b)
    assert made[0] is not None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_copy_is_the_same_model(tmp_path: Path, architecture: str) -> None:
    model = quantised(tmp_path, architecture)
    with closing(open_model(model)) as own, open_fast(model) as copy:
        assert copy.model_path != own.model_path and Path(copy.model_path).name == model.name
        assert copy.identity == own.identity
        assert {**copy.metadata, "general.file_type": ""} == {**own.metadata, "general.file_type": ""}
        assert copy.chat_format == own.chat_format
        text = b"how are you"
        assert copy.tokenize(text) == own.tokenize(text)
    assert not Path(copy.model_path).exists()


def test_training_is_for_the_file_itself(slow: Path) -> None:
    """The copy is gone by the time that a profile is used."""
    with open_fast(slow) as copy:
        profile = make_profile(Path(copy.model_path))
    profile.check_model(read_model_identity(slow))


@pytest.mark.parametrize("options", [{"kv_overrides": {"some.key": 1}}], ids=str)
def test_what_was_changed_on_opening_is_not_copied(slow: Path, options: dict[str, Any]) -> None:
    with open_fast(slow, **options) as llama:
        assert llama.model_path == str(slow)


def test_errors_are_those_of_opening(tmp_path: Path) -> None:
    for name, content in (("missing.gguf", None), ("empty.gguf", b""), ("text.gguf", b"hello")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError), open_fast(tmp_path / name):
            pass


def test_no_copy_of_what_is_fast_already(tmp_path: Path, made: list[object]) -> None:
    model = quantised(tmp_path, ftype=llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0)
    assert len(read(Harvester(tapped(model), [1], expand_from=100))) == len(PROMPTS)
    assert made == [None]
    with open_fast(model) as llama:
        assert llama.model_path == str(model)


def test_no_copy_of_what_is_too_large(slow: Path, made: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "MAX_BYTES", 1000)
    assert len(read(Harvester(tapped(slow), [1], expand_from=100))) == len(PROMPTS)
    assert made == [None]


def test_few_prompts_are_read_without_one(slow: Path, made: list[object]) -> None:
    Harvester(tapped(slow), [1], expand_from=100).prompt_state(PROMPTS[0])
    assert not made


def test_the_last_layer_is_read_without_one(slow: Path, made: list[object]) -> None:
    assert len(read(Harvester(tapped(slow), [3], expand_from=100))) == len(PROMPTS)
    assert not made


def test_nothing_is_left_on_disk(slow: Path, made: list[object], home: Path) -> None:
    read(Harvester(tapped(slow), [1], expand_from=100))
    assert made[0] is not None
    with pytest.raises(KeyboardInterrupt), open_fast(slow) as llama:
        assert list(home.rglob("expanded-*")) and home in Path(llama.model_path).parents
        raise KeyboardInterrupt
    assert not list(home.rglob("expanded-*"))


def test_what_a_killed_process_left_is_removed(slow: Path, home: Path) -> None:
    left, fresh = home / "cache" / "expanded-old", home / "cache" / "expanded-new"
    for folder in (left, fresh):
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(b"x")
    os.utime(left, (0, 0))
    with open_fast(slow):
        assert not left.exists() and fresh.exists()  # the fresh one may be somebody's


def test_no_room_for_a_copy(slow: Path, made: list[object], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand.llama_cpp, "llama_model_quantize", lambda *_: 1)
    assert len(read(Harvester(tapped(slow), [1], expand_from=100))) == len(PROMPTS)
    home.joinpath("cache").rename(home / "elsewhere")
    home.joinpath("cache").write_text("in the way")
    assert len(read(Harvester(tapped(slow), [1], expand_from=100))) == len(PROMPTS)
    assert made == [None, None]
