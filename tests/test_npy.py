"""NumPy's files, and zip archives, that somebody made on purpose."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.converters import npy
from finesteer_local.converters.zipped import unzip
from finesteer_local.errors import ProfileError

ONE = np.arange(6, dtype=np.float32).reshape(2, 3)


def saved(array: np.ndarray = ONE) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def with_header(text: str, body: bytes = ONE.tobytes()) -> bytes:
    header = text.encode("latin-1")
    return npy.MAGIC + b"\x01\x00" + len(header).to_bytes(2, "little") + header + body


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"


def test_the_made_file_is_one() -> None:
    for data in (saved(), with_header(HEADER), with_header(HEADER + " " * 50 + "\n")):
        np.testing.assert_array_equal(npy.parse(Path("x"), "it", data), ONE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        npy.MAGIC,
        saved()[:9],
        saved()[:-1],
        saved() + b"x",
        saved()[:6] + b"\x09" + saved()[7:],
        with_header(HEADER.replace("(2, 3)", "(2, 4)")),
        with_header(HEADER.replace("(2, 3)", "(2, 3, 1, 1, 1)")),
        with_header(HEADER.replace("(2, 3)", "(-2, -3)")),
        with_header(HEADER.replace("(2, 3)", "(4611686018427387904, 4)"), b""),
        with_header(HEADER.replace("(2, 3)", "(0, 99999999999999999999)"), b""),
        with_header(HEADER.replace("(2, 3)", "(, 6)")),
        with_header(HEADER.replace("(2, 3)", "(2 3)")),
        with_header(HEADER.replace("'<f4'", "__import__('os').system('id')")),
        with_header(HEADER.replace("'<f4'", "'<f3'")),
        with_header(HEADER.replace("'<f4'", "'<M8[ns]'")),
        with_header(HEADER.replace("'<f4'", "[('a', '<f4')]")),
        with_header("(" * 9000),
        with_header("-" * 9000 + "1"),
        with_header("{" + HEADER),
    ],
)
def test_damaged_arrays(data: bytes) -> None:
    with pytest.raises(ProfileError):
        npy.parse(Path("x"), "it", data)


def test_zip_bombs_and_liars(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("layer_1.npy", saved(np.zeros(8 << 20, np.float32)))
    assert bomb.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(ProfileError, match="far more than its size"):
        unzip(bomb)
    # The archive claims little and unpacks to much.
    data = bomb.read_bytes()
    size = (32 << 20) + len(saved()) - ONE.nbytes
    assert data.count(size.to_bytes(4, "little")) == 2
    bomb.write_bytes(data.replace(size.to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    with pytest.raises(ProfileError):
        unzip(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("layer_1.npy", saved())
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ProfileError):
            unzip(path)
    path.write_bytes(whole.replace(ONE.tobytes(), ONE.tobytes()[::-1]))
    with pytest.raises(ProfileError, match="CRC"):
        unzip(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("layer_1.npy", saved())
        archive.writestr("layer_1.npy", saved())
    with pytest.raises(ProfileError, match="there twice"):
        unzip(path)
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(4097):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(ProfileError, match="4,097 files"):
        unzip(path)


def test_names_lead_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../layer_1.npy", saved())
        archive.writestr("/tmp/layer_2.npy", saved())
    before = set(tmp_path.rglob("*"))
    assert set(npy.from_archive(path, unzip(path))) == {"../../layer_1", "/tmp/layer_2"}
    assert set(tmp_path.rglob("*")) == before
