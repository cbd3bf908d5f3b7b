"""Headers are held against the file's size before the gguf package believes them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from finesteer_local.gguf_file import DamagedGGUF, open_gguf, read_header, read_keys

KINDS = [kind for kind in GGUFValueType if kind not in (GGUFValueType.ARRAY, GGUFValueType.STRING)]


def file(path: Path, *keys: tuple[str, object, GGUFValueType, GGUFValueType | None]) -> Path:
    writer = GGUFWriter(path, "any")
    for key, value, kind, item in keys:
        writer.add_key_value(key, value, kind, item)
    writer.add_tensor("a", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_alone_and_in_an_array(tmp_path: Path, kind: GGUFValueType) -> None:
    path = file(
        tmp_path / "x.gguf",
        ("one", 1, kind, None),
        ("many", [1, 0, 1], GGUFValueType.ARRAY, kind),
        ("after", "text", GGUFValueType.STRING, None),
        ("texts", ["", "a", "bcd"], GGUFValueType.ARRAY, GGUFValueType.STRING),
    )
    reader = open_gguf(path, max_items=100)
    assert [reader.fields[key].contents() for key in ("one", "many", "after", "texts")] == [
        1,
        [1, 0, 1],
        "text",
        ["", "a", "bcd"],
    ]
    np.testing.assert_array_equal(reader.tensors[0].data, np.arange(12).reshape(3, 4))


def test_the_limit_counts_keys_items_and_tensors(tmp_path: Path) -> None:
    path = file(tmp_path / "x.gguf", ("many", [1] * 10, GGUFValueType.ARRAY, GGUFValueType.UINT8))
    assert len(GGUFReader(path).fields) == 3 + 2  # its own three, general.architecture and this one
    open_gguf(path, max_items=2 + 10 + 1)
    with pytest.raises(DamagedGGUF, match=r"x\.gguf: at 'many' it is damaged or cut short"):
        open_gguf(path, max_items=2 + 10)


def header(*parts: bytes, keys: int = 1, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def kind(number: int) -> bytes:
    return struct.pack("<I", number)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        header(keys=0, version=1),
        header(keys=0, version=4),
        header(keys=0, version=3 << 24),  # the other byte order
        header(keys=1),
        header(keys=1 << 40),
        header(keys=0, tensors=1 << 40),
        header(text(b"k", 1 << 63), kind(4), b"\0\0\0\0"),
        header(text(b"k"), kind(99)),
        header(text(b"k"), kind(4), b"\0\0\0"),
        header(text(b"k"), kind(8), text(b"v", 2)),
        header(text(b"k"), kind(9), kind(0), struct.pack("<Q", 1 << 60)),
        header(text(b"k"), kind(9), kind(0), struct.pack("<Q", 4), b"\0\0\0"),
        header(text(b"k"), kind(9), kind(8), struct.pack("<Q", 2), text(b"v")),
        header(text(b"k"), kind(9), kind(9), struct.pack("<Q", 1), kind(0), struct.pack("<Q", 0)),
        header(text(b"k"), kind(9), kind(77), struct.pack("<Q", 1)),
        header(text(b"k"), kind(0), b"\0", text(b"k"), kind(0), b"\0", keys=2),  # twice the same key
    ],
)
def test_damaged(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(DamagedGGUF):
        open_gguf(tmp_path / "x.gguf", max_items=1 << 20)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf", max_items=10)
    with pytest.raises(OSError):
        open_gguf(tmp_path, max_items=10)


def test_the_smallest_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(header(keys=0))
    assert open_gguf(tmp_path / "x.gguf", max_items=0).tensors == []


def test_the_keys_before_a_vocabulary(tmp_path: Path) -> None:
    """A long list of texts ends the reading; a short one, and numbers, do not."""
    text = GGUFValueType.STRING
    path = file(
        tmp_path / "m.gguf",
        ("general.name", "Large", text, None),
        ("numbers", list(range(9000)), GGUFValueType.ARRAY, GGUFValueType.UINT32),
        ("few", ["a", "b"], GGUFValueType.ARRAY, text),
        ("many", ["token"] * 9000, GGUFValueType.ARRAY, text),
        ("general.later", "unread", text, None),
    )
    header = read_keys(path)
    assert header.values["general.name"] == "Large"
    assert "general.later" not in header.values
    assert set(header.arrays) == {"numbers", "few"}
    assert not header.tensors
    assert set(read_header(path, max_items=30_000).tensors) == {"a"}
    short = file(tmp_path / "s.gguf", ("few", ["a"], GGUFValueType.ARRAY, text))
    assert set(read_keys(short).tensors) == {"a"}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedGGUF):
        read_keys(path)
