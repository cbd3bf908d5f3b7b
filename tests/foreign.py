"""Foreign files for the importers' tests, and what is in them."""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.converters.arrays import Hints
from finesteer_local.converters.foreign import Foreign
from finesteer_local.converters.recognise import read
from finesteer_local.errors import ProfileError

DATA = Path(__file__).parent / "data" / "foreign"
HINTS = Hints(n_layer=4)  # of the tiny models

_spec = importlib.util.spec_from_file_location("make_foreign", DATA / "make.py")
assert _spec and _spec.loader
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)
VECTORS: dict[int, np.ndarray] = make.vectors()


def vectors_of(foreign: Foreign) -> dict[int, np.ndarray]:
    """What each layer's mixture gives for some hidden state."""
    h = np.full(64, 0.5, np.float32)
    return {layer: e.mix(e.alpha(h), e.beta(h)) for layer, e in foreign.experts.items()}


def assert_vectors(foreign: Foreign, expected: Mapping[int, np.ndarray]) -> None:
    found = vectors_of(foreign)
    assert sorted(found) == sorted(expected)
    for layer, vector in expected.items():
        np.testing.assert_array_equal(found[layer], vector)


def refused(path: Path, *words: str, hints: Hints = HINTS) -> str:
    """The message, one line, of a file that is refused."""
    with pytest.raises(ProfileError) as error:
        read(path, hints)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def write_torch_zip(path: Path, program: bytes, data: Mapping[str, bytes] | None = None) -> Path:
    """A `.pt` archive with this pickle and these storages."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, storage in (data or {}).items():
            archive.writestr(f"archive/data/{key}", storage)
    return path


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


def attack(tmp_path: Path) -> tuple[bytes, Path]:
    victim = tmp_path / "owned"
    return pickle.dumps(Attack(victim), 2), victim
