"""PyTorch files without PyTorch: equal to what torch.load gives, and nothing else gets through."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finesteer_local.converters import torchfile
from finesteer_local.converters.zipped import unzip
from finesteer_local.errors import ProfileError
from foreign import DATA, VECTORS, write_torch_zip

torch = pytest.importorskip("torch")


def load(path: Path) -> Any:
    return torchfile.parse(path, unzip(path))


@pytest.mark.parametrize(
    "kind", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"]
)
def test_every_type_and_shape(tmp_path: Path, kind: str) -> None:
    given = torch.arange(24).to(getattr(torch, kind))
    tensors = {
        "plain": given,
        "table": given.reshape(4, 6),
        "turned": given.reshape(4, 6).T,
        "part": given.reshape(4, 6)[1:3, ::2],
        "scalar": given[5],
        3: given.reshape(2, 3, 4),
    }
    torch.save(tensors, tmp_path / "t.pt")
    read = load(tmp_path / "t.pt")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        expected = tensor.float() if kind == "bfloat16" else tensor
        np.testing.assert_array_equal(read[name], expected.numpy())


def test_a_state_dict_and_plain_values(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))
    metadata = {"text": "é", "list": [1, 2.5, None, True, False, (1, 2)], "big": 1 << 40, "negative": -7}
    torch.save(
        {"state_dict": module.state_dict(), "metadata": metadata, "p": torch.nn.Parameter(torch.ones(2))},
        tmp_path / "t.pt",
    )
    read = load(tmp_path / "t.pt")
    assert read["metadata"] == {**metadata, "list": [1, 2.5, None, True, False, [1, 2]]}
    np.testing.assert_array_equal(read["p"], np.ones(2))
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(read["state_dict"][name], tensor.numpy())


def test_the_same_as_torch(tmp_path: Path) -> None:
    expected = torch.load(DATA / "steering_vectors_dict.pt", weights_only=True)
    read = load(DATA / "steering_vectors_dict.pt")
    for layer, tensor in expected.items():
        np.testing.assert_array_equal(read[layer], tensor.numpy())
        np.testing.assert_array_equal(read[layer], VECTORS[layer])


def refused(path: Path, word: str) -> None:
    with pytest.raises(ProfileError, match=word):
        load(path)


PROTO = b"\x80\x02"


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (b"", "cut short|damaged"),
        (PROTO, "cut short|damaged"),
        (PROTO + b".", "damaged"),
        (PROTO + b"cos\nsystem\n.", r"os\.system"),
        (PROTO + b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", r"posix\.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"os\.system"),
        (b"\x80\x04\x8c\x07torch x\x8c\x0cFloatStorage\x93.", "torch.x FloatStorage"),
        (PROTO + b"ctorch\n_utils\n.", "torch._utils"),
        (PROTO + b"ccollections\nOrderedDict\nK\x01\x85R.", "damaged"),  # OrderedDict(1)
        (PROTO + b"ccollections\nOrderedDict\n(i", "damaged"),
        (b"(ios\nsystem\n.", "instruction INST"),
        (b"(cos\nsystem\nS'id'\no.", r"os\.system"),
        (b"I99\n.", "instruction INT"),
        (b"P0\n.", "instruction PERSID"),
        (PROTO + b"\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00x.", "instruction BYTEARRAY8"),
        (PROTO + b"K\x01K\x02s.", "damaged"),  # an item set on a number
        (PROTO + b"}(K\x01u.", "damaged"),  # half an item
        (PROTO + b"}()K\x01u.", "damaged"),  # a tuple as a key
        (PROTO + b"K\x01a.", "damaged"),
        (PROTO + b"h\x05.", "damaged"),  # nothing of that number remembered
        (PROTO + b"K\x01Q.", "damaged"),  # a number as a storage
        (PROTO + b"0.", "instruction POP"),
        (PROTO + b"u.", "damaged"),
    ],
)
def test_programs(tmp_path: Path, program: bytes, word: str) -> None:
    refused(write_torch_zip(tmp_path / "t.pt", program), word)


def tensor_program(
    key: str = "0", n: int = 4, offset: int = 0, shape: str = "K\x04\x85", stride: str = "K\x01\x85"
) -> bytes:
    """The pickle of one float32 tensor."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(n) + b"tQ"
    arguments = (
        storage
        + number(offset)
        + shape.encode("latin-1")
        + stride.encode("latin-1")
        + b"\x89ccollections\nOrderedDict\n)R"
    )
    return PROTO + b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR."


def test_the_made_tensor_is_one(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32).tobytes()
    path = write_torch_zip(tmp_path / "t.pt", tensor_program(), {"0": data})
    np.testing.assert_array_equal(load(path), np.arange(4))


@pytest.mark.parametrize(
    ("program", "word"),
    [
        (tensor_program(key="1"), "storage '1' is missing"),
        (tensor_program(key="../../etc/passwd"), "is missing or has the wrong length"),
        (tensor_program(n=5), "wrong length"),
        (tensor_program(n=-1), "missing or has the wrong length"),
        (tensor_program(offset=1), "reaches past its data"),
        (tensor_program(offset=1 << 47), "reaches past its data"),
        (tensor_program(offset=1 << 50), "damaged"),
        (tensor_program(offset=-1), "damaged"),
        (tensor_program(shape="K\x05\x85"), "reaches past its data"),
        (tensor_program(shape="K\x00\x85"), "reaches past its data"),
        (tensor_program(shape="\x8a\x01\xff\x85"), "damaged"),
        (
            tensor_program(shape="\x8a\x05\x00\x00\x00\x00\x10\x85", stride="K\x00\x85"),
            "reaches past its data",
        ),  # 2^36 times one item
        (tensor_program(stride="K\x02\x85"), "reaches past its data"),
        (tensor_program(stride="\x8a\x01\xff\x85"), "damaged"),
        (tensor_program(shape="K\x02K\x02\x86"), "damaged"),
        (tensor_program(shape="K\x04"), "damaged"),
    ],
)
def test_tensors_that_are_not_there(tmp_path: Path, program: bytes, word: str) -> None:
    refused(write_torch_zip(tmp_path / "t.pt", program, {"0": b"\0" * 16}), word)


def test_values_without_end(tmp_path: Path) -> None:
    """A list in itself, and a billion laughs: each of ten lists holds the one before it ten times."""
    refused(write_torch_zip(tmp_path / "t.pt", PROTO + b"]q\x00h\x00a."), "nested deeper")
    laughs = b"]q\x00"
    for level in range(1, 9):
        laughs += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"e" + b"q" + bytes([level])
    refused(write_torch_zip(tmp_path / "t.pt", PROTO + laughs + b"."), "nested deeper, or are more")


def test_archives(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "t.pt", PROTO + b"N.")
    assert load(path) is None
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "middle")
    refused(path, "neither little nor big")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("b/data.pkl", b"N.")
    refused(path, "no file of torch.save")
    write_torch_zip(path, PROTO + b"X" + (2 << 20).to_bytes(4, "little") + b"x" * (2 << 20) + b".")
    refused(path, "its data.pkl has 2,0")


def test_other_byte_order(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "t.pt", tensor_program(), {"0": np.arange(4, dtype=">f4").tobytes()})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    np.testing.assert_array_equal(load(path), np.arange(4))


def test_nothing_of_pickle_is_imported() -> None:
    source = Path(torchfile.__file__).read_text()
    assert "import pickle\n" not in source and "find_class" not in source
    assert pickle  # the tests may
