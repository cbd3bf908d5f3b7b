"""Every format by its content: what the libraries themselves wrote is read, and what is no vector is refused."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.converters.arrays import Hints
from finesteer_local.converters.recognise import read
from foreign import DATA, HINTS, VECTORS, assert_vectors, attack, make, refused, write_torch_zip
from tiny import make_profile, write_tiny_model


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("repeng.gguf", "llama.cpp control vector"),
        ("saklas.gguf", "llama.cpp control vector"),
        ("saklas_profile.safetensors", "saklas profile"),
        ("steering_vectors.pt", "steering-vectors vector"),
        ("steering_vectors_dict.pt", "PyTorch file of vectors"),
        ("bfloat16.safetensors", "safetensors file of vectors"),
        ("float32.safetensors", "safetensors file of vectors"),
    ],
)
def test_files_that_the_libraries_wrote(name: str, format: str, tmp_path: Path) -> None:
    foreign = read(DATA / name, HINTS)
    assert foreign.format == format
    assert_vectors(foreign, VECTORS)
    # its name says nothing
    copy = tmp_path / "vectors"
    shutil.copy(DATA / name, copy)
    if "saklas_profile" in name:
        shutil.copy((DATA / name).with_suffix(".json"), copy.with_suffix(".json"))
    assert read(copy, HINTS).format == format


def test_the_samples_are_what_the_libraries_write_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("repeng", "saklas", "steering_vectors", "safetensors"):
        if library == "repeng":
            monkeypatch.setattr(np, "float_", np.float64, raising=False)
        pytest.importorskip(library)
    monkeypatch.setattr(make, "HERE", tmp_path)
    make.main()
    for kept in DATA.iterdir():
        if kept.suffix in (".gguf", ".safetensors", ".pt"):
            again = tmp_path / kept.name
            if "mlp" in kept.name:
                refused(again, "layer_type is 'mlp'")
            else:
                assert_vectors(read(again, HINTS), make_expected(kept.name))


def make_expected(name: str) -> dict[int, np.ndarray]:
    if "manifold" not in name:
        return VECTORS
    # folded: the unit direction times the share, which is its length here
    folded = {}
    for layer, vector in VECTORS.items():
        length = np.float32(np.linalg.norm(vector))
        folded[layer] = read(DATA / name, HINTS).experts[layer].prototypes[0]
        np.testing.assert_allclose(folded[layer], vector / length * length, rtol=1e-6)
    return folded


def test_hints_of_the_architecture() -> None:
    assert read(DATA / "repeng.gguf", HINTS).model_hint == "llama"


def test_numpy_files(tmp_path: Path) -> None:
    rows = np.zeros((4, 64), np.float32)
    for layer, vector in VECTORS.items():
        rows[layer] = vector
    for kind in (np.float32, np.float64, np.float16, ">f4"):
        np.save(tmp_path / "v.npy", rows.astype(kind))
        assert_vectors(read(tmp_path / "v.npy", HINTS), VECTORS)
    np.save(tmp_path / "v.npy", np.asfortranarray(rows))
    assert_vectors(read(tmp_path / "v.npy", HINTS), VECTORS)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "v.npz", **{f"layer_{n}": vector for n, vector in VECTORS.items()})
        assert_vectors(read(tmp_path / "v.npz", HINTS), VECTORS)


def test_counting_of_hidden_states(tmp_path: Path) -> None:
    """hidden_states[N + 1] is block N's output; entry 0 is the embeddings, the last has passed the final norm."""
    rows = np.zeros((5, 64), np.float32)
    for layer, vector in VECTORS.items():
        rows[layer + 1] = vector
    np.save(tmp_path / "v.npy", rows)
    foreign = read(tmp_path / "v.npy", HINTS)
    assert_vectors(foreign, VECTORS)
    assert "final norm" in foreign.cannot[3] and "embeddings" in foreign.cannot[-1]
    named = {f"hidden_states.{n + 1}": vector for n, vector in VECTORS.items()}
    np.savez(tmp_path / "v.npz", **named)
    assert_vectors(read(tmp_path / "v.npz", HINTS), VECTORS)
    assert_vectors(
        read(tmp_path / "v.npz", Hints(4, counting="block")), {n + 1: vector for n, vector in VECTORS.items()}
    )
    np.savez(tmp_path / "v.npz", **{str(n + 1): vector for n, vector in VECTORS.items()})
    assert_vectors(read(tmp_path / "v.npz", Hints(4, counting="hidden_states")), VECTORS)


def test_one_vector_needs_its_layer(tmp_path: Path) -> None:
    for array in (VECTORS[2], VECTORS[2][None], VECTORS[2][None, None]):
        np.save(tmp_path / "v.npy", array)
        refused(tmp_path / "v.npy", "say it with --layer N")
        assert_vectors(read(tmp_path / "v.npy", Hints(4, layer=2)), {2: VECTORS[2]})


def test_arrays_that_are_not_one_vector_a_layer(tmp_path: Path) -> None:
    def saved(**arrays: np.ndarray) -> Path:
        np.savez(tmp_path / "v.npz", **arrays)
        return tmp_path / "v.npz"

    one = VECTORS[1]
    np.save(tmp_path / "v.npy", np.zeros((7, 64), np.float32))
    refused(tmp_path / "v.npy", "shape 7 x 64, expected one row for each of the model's 4 blocks (or 5 rows")
    refused(saved(layer_1=one, other=one), "these do not fit: 'other'")
    refused(saved(layer_1=one, block_1=one), "one layer number each")
    refused(saved(layer_1_of_3=one), "say it with --layer N")
    refused(saved(layer_1=one, layer_2=one[:3]), "different lengths (3, 64)")
    refused(saved(layer_1=one[:, None]), "shape 64 x 1")
    refused(saved(layer_1=one * np.nan), "layer 1 is not finite")
    refused(saved(layer_1=one.astype(np.float64) * 1e300), "layer 1 is not finite")
    refused(saved(layer_1=one.astype(complex)), "expected numbers")
    refused(saved(layer_1=one * 0), "no vector other than zero")
    refused(saved(layer_99999=one), "no layer number")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    program, victim = attack(tmp_path)
    plain = tmp_path / "v.pt"
    plain.write_bytes(program)
    refused(plain, "is a pickle, which is a program")
    refused(write_torch_zip(tmp_path / "z.pt", program), "getattr, which is not data; nothing of it was run")
    array = np.empty(1, object)
    array[0] = pickle.loads(pickle.dumps({"a": 1}))
    np.save(tmp_path / "o.npy", array, allow_pickle=True)
    refused(tmp_path / "o.npy", "holds a pickle, which is never loaded")
    np.savez(tmp_path / "o.npz", layer_1=array)
    refused(tmp_path / "o.npz", "holds a pickle, which is never loaded")
    assert not victim.exists()
    torch = pytest.importorskip("torch")
    torch.save({"layer_1": torch.ones(4)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "is a pickle")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    refused(tmp_path / "module.pt", "torch.nn.modules.linear.Linear")


def test_what_is_no_steering_vector(tmp_path: Path) -> None:
    other = tmp_path / "x"
    for data, word in ((b"", "format is unknown"), (b"hello", "format is unknown"), (b"\x00" * 40, "unknown")):
        other.write_bytes(data)
        refused(other, word)
    refused(write_tiny_model(tmp_path / "m.gguf"), "general.architecture is 'llama'")
    profile = tmp_path / "p.gguf"
    make_profile(tmp_path / "m.gguf").save(profile)
    refused(profile, "a profile already", f"profiles add {profile}")
    other.write_text(json.dumps({"hello": 1}))
    refused(other, "no steering vector of a known program")
    refused(tmp_path / "none", "no such file")


def test_folders(tmp_path: Path) -> None:
    refused(tmp_path, "no file in it can be imported")
    for name in ("saklas_profile.safetensors", "saklas_profile.json"):
        shutil.copy(DATA / name, tmp_path)
    assert_vectors(read(tmp_path, HINTS), VECTORS)
    shutil.copy(DATA / "repeng.gguf", tmp_path)
    refused(tmp_path, "2 files that could be meant (repeng.gguf, saklas_profile.safetensors)")


def test_settings_that_no_vector_can_follow(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    for setting in ({"mode": "rotate"}, {"normalize": "true"}, {"norm_preserving": "1"}, {"steering.mode": "angular"}):
        safetensors.save_file({"layer_1": VECTORS[1]}, tmp_path / "v.safetensors", metadata=setting)
        refused(tmp_path / "v.safetensors", repr(next(iter(setting))), "a profile adds a vector")
    for setting in ({"mode": "add"}, {"normalize": "false"}, {"author": "me"}):
        safetensors.save_file({"layer_1": VECTORS[1]}, tmp_path / "v.safetensors", metadata=setting)
        assert_vectors(read(tmp_path / "v.safetensors", HINTS), {1: VECTORS[1]})


def test_memory_buffers_are_not_needed() -> None:
    """The npy reader takes what NumPy writes to a buffer: one header for version 1, 2 and 3."""
    from finesteer_local.converters import npy

    for version in ((1, 0), (2, 0), (3, 0)):
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, VECTORS[1], version=version)
        np.testing.assert_array_equal(npy.parse(Path("x"), "it", buffer.getvalue()), VECTORS[1])
