"""`export`: a plain control vector that llama.cpp reads, and that steers as the profile does."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from cli import error_of, good
from finesteer_local import catalog
from finesteer_local.converters import controlvector
from finesteer_local.converters.arrays import Hints
from finesteer_local.converters.recognise import read as read_foreign
from finesteer_local.errors import ProfileError
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.runtime.prompt import chat_prompt
from reference import plain_llama
from tiny import make_profile, write_tiny_model

SHARES = [4, 3, 2, 1]


@pytest.fixture
def profile(tiny: Path) -> Profile:
    training = {"expert_shares": {"1": SHARES, "2": "not a list"}}
    return make_profile(tiny, name="loud", layers=(1, 2), strength=0.5, training=training)


@pytest.fixture
def file(profile: Profile, tmp_path: Path) -> Path:
    path = tmp_path / "p.gguf"
    profile.save(path)
    return path


def directions(path: Path) -> dict[int, np.ndarray]:
    return {int(t.name.split(".")[1]): np.array(t.data) for t in GGUFReader(path).tensors}


def export(profile: str | Path, out: Path, *options: str | Path) -> str:
    return str(good("export", profile, "--format", "controlvector", "-o", out, *options).stdout)


def test_one_layer_is_called_so(tiny: Path, tmp_path: Path) -> None:
    make_profile(tiny, layers=(2,)).save(tmp_path / "p.gguf")
    assert ", layer 2, strength included" in export(tmp_path / "p.gguf", tmp_path / "out.gguf")


def test_average_vector(profile: Profile, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    said = export(file, out)
    assert f"{out}: the average vector of loud for Tiny, layers 1, 2, strength included" in said
    written = directions(out)
    weighted = np.array([0.4, 0.3, 0.2, 0.1], np.float32) @ profile.experts[1].prototypes
    np.testing.assert_allclose(written[1], 0.5 * weighted, rtol=1e-6)
    np.testing.assert_allclose(written[2], 0.5 * profile.experts[2].prototypes.mean(axis=0), rtol=1e-6)


def test_file_is_what_llama_cpps_loader_takes(file: Path, tmp_path: Path) -> None:
    """The rules of common_control_vector_load, checked on what llama.cpp's own GGUF parser sees."""
    out = tmp_path / "out.gguf"
    export(file, out)
    for name, size, kind in parsed_by_llama_cpp(out):
        prefix, _, layer = name.partition(".")
        assert prefix == "direction" and int(layer) >= 1
        assert (kind, size) == (0, 4 * 64)  # GGML_TYPE_F32
    reader = GGUFReader(out)
    assert {tensor.tensor_type for tensor in reader.tensors} == {GGMLQuantizationType.F32}
    assert {len(tensor.shape) for tensor in reader.tensors} == {1}
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": 2,
    }


def parsed_by_llama_cpp(path: Path) -> list[tuple[str, int, int]]:
    """(name, bytes, type) of the tensors."""
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))

    class Parameters(ctypes.Structure):
        _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))

    def function(name: str, result: Any, *arguments: Any) -> Any:
        found = getattr(library, name)
        found.restype, found.argtypes = result, list(arguments)
        return found

    context = ctypes.c_void_p
    file = function("gguf_init_from_file", context, ctypes.c_char_p, Parameters)(str(path).encode(), Parameters(True))
    assert file
    name = function("gguf_get_tensor_name", ctypes.c_char_p, context, ctypes.c_int64)
    size = function("gguf_get_tensor_size", ctypes.c_size_t, context, ctypes.c_int64)
    kind = function("gguf_get_tensor_type", ctypes.c_int, context, ctypes.c_int64)
    n = function("gguf_get_n_tensors", ctypes.c_int64, context)(file)
    found = [(name(file, i).decode(), size(file, i), kind(file, i)) for i in range(n)]
    function("gguf_free", None, context)(file)
    return found


def test_vector_of_a_prompt_gives_the_same_logits_in_plain_llama_cpp(tiny: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert "this prompt's vector of loud" in export(file, out, "--prompt", "hello", "--model", tiny)
    steered = open_model(tiny, profiles=[file], n_threads=1)
    prompt = chat_prompt(steered, [{"role": "user", "content": "hello"}])
    steered.reset()
    steered.eval(prompt)

    plain = plain_llama(tiny, n_ctx=1024)
    data = np.zeros((3, 64), np.float32)
    for layer, vector in directions(out).items():
        data[layer - 1] = vector
    pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    assert llama_cpp.llama_set_adapter_cvec(plain.ctx, pointer, data.size, 64, 1, 3) == 0
    plain.eval(prompt)
    assert np.array_equal(logits(plain), logits(steered))
    llama_cpp.llama_set_adapter_cvec(plain.ctx, None, 0, 64, 0, 0)
    plain.reset()
    plain.eval(prompt)
    assert not np.array_equal(logits(plain), logits(steered))


def logits(llama: llama_cpp.Llama) -> np.ndarray:
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llama.ctx, -1), (llama.n_vocab(),)).copy()


@pytest.mark.parametrize("kind", ["safetensors", "json"])
def test_other_formats_come_back(tiny: Path, profile: Profile, file: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"out.{kind}"
    good("export", file, "--format", kind, "-o", out)
    expected = controlvector.average_vectors(profile)
    again = read_foreign(out, Hints(4))
    assert sorted(again.experts) == [1, 2]
    for layer, vector in expected.items():
        np.testing.assert_array_equal(again.experts[layer].prototypes[0], vector)
    good("export", file, "--format", kind, "-o", out, "--prompt", "hello", "--model", tiny)
    prompts = read_foreign(out, Hints(4))
    assert not np.array_equal(prompts.experts[1].prototypes[0], expected[1])
    good("import", out, "--model", tiny, "-o", tmp_path / "again.gguf")
    assert Profile.load(tmp_path / "again.gguf").layers == [1, 2]


def test_json_says_what_it_is(profile: Profile, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    good("export", file, "--format", "json", "-o", out)
    value = json.loads(out.read_text())
    assert (value["format"], value["version"], value["profile"]) == ("finesteer-vectors", 1, "loud")
    assert (value["fingerprint"], value["architecture"]) == (profile.model.fingerprint, "llama")
    assert {layer: len(numbers) for layer, numbers in value["vectors"].items()} == {"1": 64, "2": 64}
    for change in ({"version": 2}, {"vectors": 3}, {"vectors": {"1": "x"}}, {"vectors": {"a": [1.0]}}):
        out.write_text(json.dumps({**value, **change}))
        with pytest.raises(ProfileError):
            read_foreign(out, Hints(4))


def test_the_safetensors_library_reads_it(profile: Profile, file: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors")
    good("export", file, "--format", "safetensors", "-o", tmp_path / "out")
    with library.safe_open(str(tmp_path / "out"), "np") as opened:
        assert opened.metadata()["fingerprint"] == profile.model.fingerprint
        for layer, vector in controlvector.average_vectors(profile).items():
            np.testing.assert_array_equal(opened.get_tensor(f"layer_{layer}"), vector)


def test_by_name(tiny: Path, file: Path, tmp_path: Path) -> None:
    catalog.add_profile(file)
    out = tmp_path / "out.gguf"
    export("loud", out)
    first = out.read_bytes()
    export("loud", out, "--model", tiny)
    assert out.read_bytes() == first


def test_mistakes(tiny: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    tail = ("--format", "controlvector", "-o", out)
    assert "unknown profile 'xyzzy'" in error_of("export", "xyzzy", *tail)
    assert "needs --model" in error_of("export", file, *tail, "--prompt", "hello", code=2)
    assert "the prompt is empty" in error_of("export", file, *tail, "--prompt", "", "--model", tiny)
    assert error_of("export", file, "--format", "lora", "-o", out, code=2)
    assert "a folder" in error_of("export", file, "--format", "controlvector", "-o", tmp_path)
    make_profile(tiny, gate="closed").save(file)
    message = error_of("export", file, *tail, "--prompt", "hello", "--model", tiny)
    assert "the gate is closed for this prompt" in message
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.1)
    assert "another model" in error_of("export", file, *tail, "--prompt", "hello", "--model", other)
    assert not out.exists()


def test_vectors_that_llama_cpp_would_reject(tmp_path: Path) -> None:
    one = np.ones(4, np.float32)
    for vectors in ({}, {0: one}, {1: one[None]}, {1: one * np.nan}, {1: one[:0]}):
        with pytest.raises(ProfileError):
            controlvector.write(tmp_path / "out.gguf", vectors, model_hint="llama")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "shares", [None, 5, {"1": [1, 2]}, {"1": [1, 1, 1, -1]}, {"1": [0, 0, 0, 0]}, {"1": [True] * 4}, {"1": ["a"] * 4}]
)
def test_shares_that_make_no_sense_are_ignored(tiny: Path, shares: object) -> None:
    profile = make_profile(tiny, layers=(1,), training={"expert_shares": shares})
    np.testing.assert_array_equal(controlvector.average_vectors(profile)[1], profile.experts[1].prototypes.mean(axis=0))


def test_an_output_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path, tmp_path / "file" / "out.gguf"):
        assert "cannot write" in error_of("export", "unknown", "--format", "controlvector", "-o", output)
