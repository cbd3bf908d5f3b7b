"""Our few lines for safetensors against the library itself, and against headers that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.converters import safetensors
from finesteer_local.errors import ProfileError

BODY = np.arange(6, dtype=np.float32).tobytes()
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, table: Any, body: bytes = BODY) -> Path:
    header = table if isinstance(table, bytes) else json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1"])
def test_what_the_library_writes(tmp_path: Path, kind: str) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.arange(6).astype(kind).reshape(2, 3), "ä.b": np.zeros((0, 4), kind), "c": np.array(7, kind)}
    library.save_file(arrays, tmp_path / "x", metadata={"k": "v"})
    assert safetensors.looks_like((tmp_path / "x").read_bytes()[:16], (tmp_path / "x").stat().st_size)
    tensors, metadata = safetensors.read(tmp_path / "x")
    assert metadata == {"k": "v"}
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    arrays = {f"layer_{n}": np.random.default_rng(n).standard_normal(5).astype(np.float32) for n in (2, 10)}
    safetensors.write(tmp_path / "x", arrays, {"model": "é"})
    tensors, metadata = safetensors.read(tmp_path / "x")
    assert metadata == {"model": "é"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
    library = pytest.importorskip("safetensors")
    with library.safe_open(str(tmp_path / "x"), "np") as opened:
        assert opened.metadata() == {"model": "é"}
        for name, array in arrays.items():
            np.testing.assert_array_equal(opened.get_tensor(name), array)


def test_bfloat16() -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    np.testing.assert_array_equal(safetensors.from_bfloat16(bits), [1.0, -2.0, np.inf])


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {**ENTRY, **changes}}


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 5_000,
        {"a": 1},
        {"a": {}},
        {"__metadata__": 1},
        {"__metadata__": {"a": 1}},
        entry(dtype="F31"),
        entry(dtype=["F32"]),
        entry(shape=None),
        entry(shape=[2, 4]),
        entry(shape=[-2, -3]),
        entry(shape=[1 << 62, 1 << 62]),
        entry(shape=[2.0, 3]),
        entry(shape=[True, 6]),
        entry(shape=[1] * 5),
        entry(data_offsets=[0]),
        entry(data_offsets=[0, 48], shape=[12]),
        entry(data_offsets=[24, 0]),
        entry(data_offsets=[-24, 0]),
        {"a": ENTRY, "b": ENTRY},
        {f"t{i}": {**ENTRY, "dtype": "BF16", "shape": [12]} for i in range(1000)},
    ],
)
def test_tables_that_lie(tmp_path: Path, table: Any) -> None:
    with pytest.raises(ProfileError):
        safetensors.read(write(tmp_path / "x", table))


def test_lengths_that_lie(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for length in (0, 1, 1 << 20, 1 << 40, (1 << 64) - 1):
        path.write_bytes(length.to_bytes(8, "little") + b"{}" + BODY)
        with pytest.raises(ProfileError, match="table of contents"):
            safetensors.read(path)
