"""Models where other programs keep them, in folders laid out as these lay them out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from gguf import GGUFWriter

from cli import error_of, good
from finesteer_local import catalog, sources
from finesteer_local.errors import ModelError, UnknownNameError
from finesteer_local.gguf_file import _Walk
from finesteer_local.profile import read_model_identity
from finesteer_local.sources import quantisation
from model_files import write_header, write_hub_cache, write_jan, write_ollama
from tiny import make_profile

_VARIABLES = (
    *("OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"),
    *("XDG_DATA_HOME", "XDG_CONFIG_HOME", "JAN_DATA_FOLDER"),
)


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user on Linux who has none of these programs yet, and 8 GB of free memory."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr("sys.platform", "linux")
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(quantisation, "available_memory", lambda: 8 << 30)
    return tmp_path / "user"


@pytest.fixture
def data(tiny: Path) -> bytes:
    return tiny.read_bytes()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def rows() -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(good("models", "list", "--json").output) if row["path"]}


def refused(given: str, kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        catalog.resolve_model(given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- each program ---


def test_ollama(user: Path, data: bytes) -> None:
    blob = write_ollama(user / ".ollama" / "models", data)
    write_ollama(user / ".ollama" / "models", data, "hf.co/owner/repo-GGUF/Q4_K_M", file_type="Q4_K_M")
    assert catalog.resolve_model("ollama:llama3.2:1b") == blob
    assert catalog.resolve_model("ollama:library/llama3.2:1b") == blob
    assert catalog.resolve_model("ollama:registry.ollama.ai/library/llama3.2:1b") == blob
    assert catalog.resolve_model("ollama:hf.co/owner/repo-GGUF:Q4_K_M") == blob
    found = rows()
    assert set(found) == {"ollama:llama3.2:1b", "ollama:hf.co/owner/repo-GGUF:Q4_K_M"}
    row = found["ollama:llama3.2:1b"]
    assert (row["source"], row["quantisation"], row["architecture"]) == ("Ollama", "Q8_0", "llama")
    assert (row["size"], row["path"], row["steerable"]) == (len(data), str(blob), True)
    assert good("run", "ollama:llama3.2:1b", "hello", "--max-tokens", "4").stdout
    assert "there are: ollama:llama3.2:1b" in refused("ollama:llama3.2", UnknownNameError)
    assert "fetch it with: ollama pull mistral" in refused("ollama:mistral", UnknownNameError)


def test_ollamas_other_folder(user: Path, tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "large disk"))
    blob = write_ollama(tmp_path / "large disk", data, "registry.ollama.ai/library/llama3.2/latest")
    assert catalog.resolve_model("ollama:llama3.2") == blob


@pytest.mark.parametrize("name", ["", "..", "a/../b", "a:..", "a/b/c/d", "../../etc/passwd", "a:b/c", "a//b"])
def test_what_is_no_name_of_ollamas(name: str) -> None:
    refused(f"ollama:{name}", UnknownNameError)


def test_ollama_gone_wrong(user: Path, data: bytes) -> None:
    folder = user / ".ollama" / "models"
    blob = write_ollama(folder, data, "registry.ollama.ai/library/gone/latest")
    blob.rename(f"{blob}-partial")
    assert refused("ollama:gone") == (
        "cannot open ollama:gone:latest: its download stopped half-way; fetch it again with: ollama pull gone:latest"
    )
    Path(f"{blob}-partial").unlink()
    assert f"its manifest names the file {blob}, which is not there; fetch it again with: ollama pull" in refused(
        "ollama:gone"
    )
    blob.write_bytes(data[:-10])
    assert f"has {len(data) - 10:,} of {len(data):,} bytes; fetch it again" in refused("ollama:gone")
    manifest = folder / "manifests" / "registry.ollama.ai" / "library" / "gone" / "latest"
    outside = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd", "size": 1}
    for content in ("", "[]", "{}", '{"layers": [{}]}', "[" * 100_000, json.dumps({"layers": [outside]})):
        manifest.write_text(content)
        assert "is damaged; fetch it again with: ollama pull gone:latest" in refused("ollama:gone")
    write_ollama(folder, data, "registry.ollama.ai/library/cloud/latest", layers=[])
    assert "it is no GGUF file" in refused("ollama:cloud")
    assert all(not row["steerable"] and row["problem"] for row in rows().values())
    assert "no: its manifest" in " ".join(good("models").output.split())


def test_lm_studio(user: Path, data: bytes) -> None:
    folder = user / ".lmstudio" / "models" / "lmstudio-community" / "Tiny-1B-GGUF"
    four = put(folder / "Tiny-1B-Q4_K_M.gguf", data)
    put(folder / "mmproj-Tiny-1B-f16.gguf", data)
    put(folder / "downloading_Tiny-1B-Q8_0.gguf.part", data)
    assert set(rows()) == {"lmstudio:lmstudio-community/Tiny-1B-GGUF:Q4_K_M"}
    for name in (
        "lmstudio-community/tiny-1b-gguf",
        "tiny-1b",
        "Tiny-1B-Q4_K_M.gguf",
        "tiny-1b@q4_k_m",
        "tiny-1b:Q4_K_M",
    ):
        assert catalog.resolve_model(f"lmstudio:{name}") == four, name
    assert "there are: Q4_K_M" in refused("lmstudio:tiny-1b@q8_0", UnknownNameError)
    assert "did you mean lmstudio:lmstudio-community/Tiny-1B-GGUF:Q4_K_M?" in refused("lmstudio:tiny", UnknownNameError)
    put(user / ".lmstudio" / "models" / "someone" / "Tiny-1B-GGUF" / "Tiny-1B-Q4_K_M.gguf", data)
    assert "may be any of" in refused("lmstudio:tiny-1b", UnknownNameError)


def test_lm_studio_elsewhere(user: Path, tmp_path: Path, data: bytes) -> None:
    put(user / ".lmstudio-home-pointer", str(tmp_path / "lms").encode() + b"\n")
    put(tmp_path / "lms" / "settings.json", json.dumps({"downloadsFolder": str(tmp_path / "disk")}).encode())
    file = put(tmp_path / "disk" / "a" / "b" / "b.gguf", data)
    assert catalog.resolve_model("lmstudio:a/b") == file


def test_one_of_several_quantisations(user: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = user / ".lmstudio" / "models" / "a" / "b"
    for name, n_bytes in (("Q2_K", 2), ("Q4_K_M", 4), ("Q8_0", 6), ("F16", 12)):
        put(folder / f"b-{name}.gguf", data)
        with (folder / f"b-{name}.gguf").open("r+b") as file:
            file.truncate(n_bytes << 30)
    result = good("inspect", "lmstudio:b")
    assert "lmstudio:b: Q4_K_M, 4.3 GB: it fits into 8.6 GB of free memory" in result.stderr
    assert "There are also: F16, Q2_K, Q8_0" in result.stderr
    monkeypatch.setattr(quantisation, "available_memory", lambda: 4 << 30)
    result = good("inspect", "lmstudio:b")
    assert "Q2_K, 2.1 GB: the best that fits into 4.3 GB of free memory; Q4_K_M has 4.3 GB" in result.stderr
    monkeypatch.setattr(quantisation, "available_memory", lambda: 1 << 30)
    assert "no quantisation of lmstudio:b fits into 1.1 GB of free memory: the smallest, Q2_K," in refused("lmstudio:b")
    assert catalog.resolve_model("lmstudio:b:Q4_K_M") == folder / "b-Q4_K_M.gguf"


def test_llama_cpps_old_cache(user: Path, tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = user / ".cache" / "llama.cpp"
    file = put(cache / "ggml-org_tiny-GGUF_tiny-Q8_0.gguf", data)
    put(cache / "ggml-org_tiny-GGUF_other.gguf.downloadInProgress", data)
    put(cache / "manifest=ggml-org=tiny-GGUF=latest.json", b"{}")
    assert set(rows()) == {"llama.cpp:ggml-org_tiny-GGUF_tiny-Q8_0.gguf"}
    assert catalog.resolve_model("llama.cpp:ggml-org_tiny-GGUF_tiny-Q8_0") == file
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "elsewhere"))
    file = put(tmp_path / "elsewhere" / "o_r_m.gguf", data)
    assert catalog.resolve_model("llama.cpp:o_r_m.gguf") == file


def test_hugging_faces_cache(user: Path, tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"tiny-Q4_K_M.gguf": data, "mmproj-tiny-F16.gguf": data + b"m", "sub/tiny-F16.gguf": data + b"f"}
    snapshot = write_hub_cache(user / ".cache" / "huggingface" / "hub", "owner/tiny-GGUF", files)
    assert set(rows()) == {"hf:owner/tiny-GGUF:Q4_K_M", "hf:owner/tiny-GGUF/sub:F16"}
    assert catalog.resolve_model("hf:owner/tiny-GGUF") == snapshot / "tiny-Q4_K_M.gguf"
    assert catalog.resolve_model("hf:owner/tiny-GGUF:q4_k_m") == snapshot / "tiny-Q4_K_M.gguf"
    assert catalog.resolve_model("hf:owner/tiny-GGUF/sub/tiny-F16.gguf@main") == snapshot / "sub" / "tiny-F16.gguf"
    assert catalog.resolve_model(f"hf:owner/tiny-GGUF:F16@{snapshot.name}") == snapshot / "sub" / "tiny-F16.gguf"
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))
    snapshot = write_hub_cache(tmp_path / "llama", "owner/other", {"other.gguf": data})
    assert catalog.resolve_model("hf:owner/other") == snapshot / "other.gguf"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    snapshot = write_hub_cache(tmp_path / "hf" / "hub", "owner/third", {"third.gguf": data})
    assert catalog.resolve_model("hf:owner/third") == snapshot / "third.gguf"


def test_jan(user: Path, tmp_path: Path, data: bytes) -> None:
    jan = user / ".local" / "share" / "Jan" / "data"
    file = put(jan / "llamacpp" / "models" / "owner" / "Tiny-Q4_K_M" / "model.gguf", data)
    write_jan(jan, "owner/Tiny-Q4_K_M", "llamacpp/models/owner/Tiny-Q4_K_M/model.gguf", len(data))
    imported = put(tmp_path / "my models" / "it's.gguf", data)
    write_jan(jan, "imported", "'" + str(imported).replace("'", "''") + "'", len(data))
    write_jan(jan, "broken", '"llamacpp/models/nowhere.gguf"', 3)
    put(jan / "llamacpp" / "models" / "empty" / "model.yml", b"name: empty\n")
    assert catalog.resolve_model("jan:owner/Tiny-Q4_K_M") == file
    assert catalog.resolve_model("jan:imported") == imported
    assert "nowhere.gguf is missing" in refused("jan:broken")
    found = rows()
    assert set(found) == {"jan:owner/Tiny-Q4_K_M", "jan:imported", "jan:broken"}
    assert found["jan:owner/Tiny-Q4_K_M"]["quantisation"] == "Q4_K_M"
    put(user / ".local" / "share" / "Jan" / "settings.json", json.dumps({"data_folder": str(tmp_path / "j")}).encode())
    write_jan(tmp_path / "j", "moved", str(imported), len(data))
    assert catalog.resolve_model("jan:moved") == imported


def test_gpt4all(user: Path, tmp_path: Path, data: bytes) -> None:
    folder = user / ".local" / "share" / "nomic.ai" / "GPT4All"
    file = put(folder / "Meta-Tiny.Q4_0.gguf", data)
    put(folder / "incomplete-Other.gguf", data)
    python = put(user / ".cache" / "gpt4all" / "orca.gguf", data)
    assert set(rows()) == {"gpt4all:Meta-Tiny.Q4_0.gguf", "gpt4all:orca.gguf"}
    assert catalog.resolve_model("gpt4all:meta-tiny.q4_0") == file
    assert catalog.resolve_model("gpt4all:orca") == python
    put(user / ".config" / "nomic.ai" / "GPT4All.ini", f"[General]\nmodelPath={tmp_path}/x/\n".encode())
    far = put(tmp_path / "x" / "far.gguf", data)
    assert catalog.resolve_model("gpt4all:far") == far


# --- all of them ---


def test_split_models(user: Path, data: bytes) -> None:
    folder = user / ".lmstudio" / "models" / "a" / "large"
    parts = [put(folder / f"large-Q4_K_M-0000{i}-of-00002.gguf", data) for i in (1, 2)]
    [(name, row)] = rows().items()
    assert (name, row["size"], row["path"]) == ("lmstudio:a/large:Q4_K_M", 2 * len(data), str(parts[0]))
    assert catalog.resolve_model("lmstudio:large") == parts[0]
    parts[1].unlink()
    assert refused("lmstudio:large") == (
        f"cannot open lmstudio:a/large:Q4_K_M: large-Q4_K_M-00002-of-00002.gguf is missing in {folder}; "
        "fetch the model again in LM Studio"
    )


def test_a_name_without_its_program(user: Path, data: bytes) -> None:
    write_ollama(user / ".ollama" / "models", data)
    assert "did you mean ollama:llama3.2:1b?" in refused("llama3.2", UnknownNameError)
    assert "or give the path of a .gguf file, or hf:owner/repo, ollama:NAME" in refused("zzz", UnknownNameError)


def test_which_profiles_fit(user: Path, tiny: Path, data: bytes, tmp_path: Path) -> None:
    write_ollama(user / ".ollama" / "models", data)
    profile = make_profile(tiny, name="loud")
    profile.save(tmp_path / "loud.gguf")
    catalog.add_profile(tmp_path / "loud.gguf")
    assert rows()["ollama:llama3.2:1b"]["profiles"] == ["loud"]
    good("run", "ollama:llama3.2:1b", "hello", "--profile", "loud", "--max-tokens", "2")
    assert "loud" in good("profiles", "list", "--model", "ollama:llama3.2:1b").output
    good("export", "loud", "--model", "ollama:llama3.2:1b", "--format", "json", "-o", tmp_path / "vectors.json")


def write_other(path: Path, architecture: str, **values: object) -> Path:
    """A file that is no chat model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, architecture)
    for key, value in values.items():
        name = key.replace("__", ".")
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_string(name, str(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_files_that_are_no_chat_model(user: Path) -> None:
    folder = user / ".lmstudio" / "models" / "a"
    write_other(folder / "vision" / "projector.gguf", "clip", general__type="mmproj")
    write_other(folder / "embed" / "embed.gguf", "nomic-bert", **{"nomic-bert__pooling_type": 1})
    write_other(folder / "rerank" / "rerank.gguf", "qwen3", qwen3__pooling_type=4)
    write_other(folder / "lora" / "lora.gguf", "llama", general__type="adapter")
    write_other(folder / "plamo" / "plamo.gguf", "plamo2")
    put(folder / "text" / "text.gguf", b"<html>")
    put(folder / "none" / "none.gguf", b"")
    problems = {name.rpartition("/")[2]: str(row["problem"]) for name, row in rows().items()}
    assert problems == {
        "projector.gguf": "the vision projector (mmproj) that goes beside a model",
        "embed.gguf": "it is an embedding model",
        "rerank.gguf": "it is a reranking model",
        "lora.gguf": "an adapter, not a model",
        "plamo.gguf": "llama.cpp shows no layer outputs",
        "text.gguf": "not a GGUF file",
        "none.gguf": "not a GGUF file",
    }
    for name, words in {
        "vision": "is the vision projector (mmproj) that goes beside a model; give the model's own file",
        "embed": "holds an embedding model",
        "lora": "is an adapter, not a model; give the file of a model",
        "text": "is not a GGUF model file",
    }.items():
        assert words in error_of("chat", f"lmstudio:{name}", stdin="")


def test_half_a_download(user: Path, data: bytes) -> None:
    put(user / ".lmstudio" / "models" / "a" / "half" / "half.gguf", data[: len(data) // 2])
    assert "cut short; fetch it again" in error_of("chat", "lmstudio:half", stdin="")


def test_forty_large_models_are_not_read(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the beginning of each: neither weights nor vocabulary."""
    folder = user / ".lmstudio" / "models" / "a"
    for i in range(40):
        (folder / f"m{i}").mkdir(parents=True)
        write_header(folder / f"m{i}" / f"model{i}.gguf", 5 << 30, n_tokens=5000)
    walked = []
    array = _Walk.array

    def watched(walk: _Walk) -> object:
        walked.append(len(walk.data))
        return array(walk)

    monkeypatch.setattr(_Walk, "array", watched)
    found = rows()
    assert len(found) == 40
    assert {(row["size"], row["quantisation"], row["steerable"]) for row in found.values()} == {
        (5 << 30, "Q4_K_M", True)
    }
    assert max(walked, default=0) < 1 << 30  # only profiles'


def test_the_folders_of_other_systems(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finesteer_local.sources import gpt4all, jan, llama_cpp, ollama

    for system, words in {
        "darwin": "Library/Caches/llama.cpp|Library/Application Support/Jan/data|.../nomic.ai/GPT4All",
        "win32": "AppData/Local/llama.cpp|AppData/Roaming/Jan/data|AppData/Local/nomic.ai/GPT4All",
    }.items():
        monkeypatch.setattr("sys.platform", system)
        for name in ("LOCALAPPDATA", "APPDATA"):
            monkeypatch.delenv(name, raising=False)
        places = {path.as_posix() for source in (gpt4all, jan, llama_cpp, ollama) for path in source.folders()}
        for word in words.replace("...", "Library/Application Support").split("|"):
            assert f"{user.as_posix()}/{word}" in places
        assert f"{user.as_posix()}/.ollama/models" in places


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("x-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("x-IQ4_XS-00001-of-00003.gguf", "IQ4_XS"),
        ("x-fp16.gguf", "F16"),
        ("x.BF16.gguf", "BF16"),
        ("Q4_K_M.gguf", "Q4_K_M"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Q4you.gguf", ""),
        ("model.gguf", ""),
    ],
)
def test_quantisations_by_name(name: str, expected: str) -> None:
    assert sources.quantisation_of(name) == expected


def test_commands_that_take_a_model(user: Path, tiny: Path, data: bytes) -> None:
    write_ollama(user / ".ollama" / "models", data)
    model = "ollama:llama3.2:1b"
    assert "hello" not in good("chat", model, "--max-tokens", "2", stdin="hello\n").stderr
    good("inspect", model)
    assert re.search("recipe", error_of("train", model, "--recipe", "nothing"))
    assert read_model_identity(catalog.resolve_model(model)) == read_model_identity(tiny)
