"""Which model a file holds."""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from finesteer_local import paths
from finesteer_local.errors import ModelError, StorageError
from finesteer_local.identity import ModelIdentity, read_model_identity
from tiny import ARCHITECTURES, CHATML, vocabulary, write_tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_it_tells(tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(
        tmp_path / "m.gguf", architecture, n_layer=3, n_embd=96, context_length=777, name="My model"
    )
    identity = read_model_identity(path)
    assert (identity.name, identity.architecture) == ("My model", architecture)
    assert (identity.n_embd, identity.n_layer, identity.n_vocab) == (96, 3, len(vocabulary()))
    assert identity.template_hash == hashlib.sha256(CHATML.encode()).hexdigest()
    assert identity.context_length == 777
    norms = {t.name: t.data for t in GGUFReader(path).tensors if t.name.endswith("_norm.weight")}
    digest = hashlib.sha256(b"".join(norms[name].astype("<f4").tobytes() for name in sorted(norms)))
    assert identity.fingerprint == digest.hexdigest()
    assert len(norms) == 2 * 3 + 1 if architecture != "gemma3" else 6 * 3 + 1


def test_without_a_template(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", chat_template=None)
    assert read_model_identity(path).template_hash == ""


def test_without_a_name_it_is_called_as_its_file(tmp_path: Path) -> None:
    assert read_model_identity(write_tiny_model(tmp_path / "nameless-q4.gguf", name="")).name == "nameless-q4"


def test_the_fingerprint_is_that_of_the_model_not_of_the_file(tmp_path: Path, tiny: Path) -> None:
    whole = read_model_identity(tiny)
    quantised = read_model_identity(write_tiny_model(tmp_path / "f16.gguf", weight_type=np.float16))
    assert quantised == whole
    renamed = read_model_identity(write_tiny_model(tmp_path / "r.gguf", name="Renamed", chat_template="x"))
    assert renamed.fingerprint == whole.fingerprint
    assert (renamed.name, renamed.template_hash) != (whole.name, whole.template_hash)
    others = {
        read_model_identity(write_tiny_model(tmp_path / f"{i}.gguf", **changes)).fingerprint
        for i, changes in enumerate(
            ({"nudge": 1e-3}, {"seed": 1}, {"architecture": "qwen2"}, {"architecture": "gemma3"}, {"n_layer": 5})
        )
    }
    assert len(others | {whole.fingerprint}) == 6


def test_the_context_length_is_no_part_of_it(tmp_path: Path, tiny: Path) -> None:
    longer = read_model_identity(write_tiny_model(tmp_path / "long.gguf", context_length=4096))
    assert longer == read_model_identity(tiny)
    assert longer.context_length == 4096


def split(path: Path, folder: Path, n: int) -> list[Path]:
    """Cut a model into `n` files as llama.cpp's gguf-split does: the metadata is in the first."""
    reader = GGUFReader(path)
    made = []
    for i in range(n):
        made.append(folder / f"part-{i + 1:05d}-of-{n:05d}.gguf")
        writer = GGUFWriter(made[-1], "llama")
        writer.add_uint16("split.no", i)
        for key, field in reader.fields.items():
            if i == 0 and not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), *field.types[:2])
        for tensor in reader.tensors[i::n]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return made


def test_all_parts_of_a_split_model_are_read(tiny: Path, tmp_path: Path) -> None:
    parts = split(tiny, tmp_path, 3)
    assert read_model_identity(parts[0]) == read_model_identity(tiny)
    assert read_model_identity(parts[2]) == read_model_identity(tiny)
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"cannot read the model .*: No such file"):
        read_model_identity(parts[0])


@pytest.mark.parametrize("name", ["m-of-3.gguf", "m-1-of-3.gguf", "-00001-of-00002.gguf", "m-00001-of-x.gguf"])
def test_names_that_only_look_like_parts(tiny: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(tiny.read_bytes())
    assert read_model_identity(tmp_path / name) == read_model_identity(tiny)


class TestCache:
    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        from finesteer_local import gguf_file

        seen: list[str] = []

        def spy(path: Path, **options: int) -> gguf_file.Header:
            seen.append(path.name)
            return original(path, **options)

        original = gguf_file.read_header
        monkeypatch.setattr(gguf_file, "read_header", spy)
        return seen

    def test_a_file_is_parsed_once(self, tmp_path: Path, opened: list[str]) -> None:
        one, two = (write_tiny_model(tmp_path / f"{i}.gguf", seed=i) for i in range(2))
        first = [read_model_identity(one), read_model_identity(two)]
        assert opened == ["0.gguf", "1.gguf"]
        again = [read_model_identity(one), read_model_identity(two), read_model_identity(str(one))]
        assert opened == ["0.gguf", "1.gguf"]
        assert again == [*first, first[0]]
        assert again[0].context_length == first[0].context_length == 1024
        (tmp_path / "link.gguf").symlink_to(one)
        assert read_model_identity(tmp_path / "link.gguf") == first[0]
        assert opened == ["0.gguf", "1.gguf"]

    def test_a_file_that_changed_is_parsed_again(self, tmp_path: Path, opened: list[str]) -> None:
        path = write_tiny_model(tmp_path / "m.gguf")
        before = read_model_identity(path)
        write_tiny_model(path, nudge=0.5)
        assert read_model_identity(path).fingerprint != before.fingerprint
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        read_model_identity(path)
        write_tiny_model(path, n_layer=5)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert read_model_identity(path).n_layer == 5
        assert len(opened) == 4

    @pytest.mark.parametrize("text", ["", "{", "[]", "[[1]]", "7", "null", '{"a": 1}', "\udcff"])
    def test_a_damaged_cache_is_replaced(self, tmp_path: Path, opened: list[str], text: str) -> None:
        path = write_tiny_model(tmp_path / "m.gguf")
        cache = paths.cache_dir() / "identities.json"
        cache.parent.mkdir(parents=True)
        cache.write_bytes(text.encode(errors="surrogateescape"))
        for _ in range(2):
            assert read_model_identity(path).n_layer == 4
        assert opened == ["m.gguf"]

    def test_entries_of_another_shape_are_read_anew(self, tmp_path: Path, opened: list[str]) -> None:
        path = write_tiny_model(tmp_path / "m.gguf")
        cache = paths.cache_dir() / "identities.json"
        identity = read_model_identity(path)
        [key] = json.loads(cache.read_text())
        for entry in ({"fingerprint": "x"}, {**asdict(identity), "later": 1}, 7, None, [1]):
            cache.write_text(json.dumps({key: entry}))
            assert read_model_identity(path) == identity
        assert len(opened) == 6

    def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise StorageError("no space")

        monkeypatch.setattr(paths, "atomic_write", full)
        assert read_model_identity(write_tiny_model(tmp_path / "m.gguf")).n_layer == 4


def refused(path: Path, *names: str) -> None:
    with pytest.raises(ModelError) as error:
        read_model_identity(path)
    message = str(error.value)
    assert "\n" not in message
    assert path.name in message
    for name in names:
        assert name in message, message


def test_files_that_are_no_models(tmp_path: Path) -> None:
    refused(tmp_path / "none.gguf", "cannot read the model", "No such file")
    (tmp_path / "folder.gguf").mkdir()
    refused(tmp_path / "folder.gguf", "cannot read the model")
    for data in (b"", b"GGU", b"PK\3\4 a zip", b"ggml"):
        (tmp_path / "x.gguf").write_bytes(data)
        refused(tmp_path / "x.gguf", "is not a GGUF model file; convert it with")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "x.gguf", "damaged or cut short; fetch it again")


def other(
    path: Path, architecture: str, keys: dict[str, int | str | list[int]], tensors: dict[str, np.ndarray]
) -> Path:
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = {int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[type(value)]
        add(key, value)  # type: ignore[arg-type]
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SIZES: dict[str, int | str | list[int]] = {"llama.embedding_length": 4, "llama.block_count": 2}
NORM = {"blk.0.attn_norm.weight": np.ones(4, np.float32)}


def test_gguf_files_that_hold_no_language_model(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    refused(other(path, "llama", {}, NORM), "holds no language model", "architecture 'llama'")
    refused(other(path, "controlvector", SIZES, {"direction.1": np.ones(4, np.float32)}), "'controlvector'")
    refused(other(path, "llama", SIZES, {"token_embd.weight": np.ones((4, 4), np.float32)}), "holds no language model")
    refused(other(path, "llama", SIZES, {"output_norm.weight": np.ones(4, np.float16)}), "holds no language model")
    refused(other(path, "llama", {**SIZES, "llama.block_count": 0}, NORM), "holds no language model")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.embedding_length", "wide"),
        ("llama.block_count", [2, 2]),
        ("llama.context_length", "long"),
        ("general.name", 7),
        ("tokenizer.chat_template", [1]),
    ],
)
def test_keys_of_the_wrong_type(tmp_path: Path, key: str, value: int | str | list[int]) -> None:
    refused(other(tmp_path / "x.gguf", "llama", {**SIZES, key: value}, NORM), f"its key {key} has the wrong type")


def test_a_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = other(tmp_path / "x.gguf", "llama", {**SIZES, "general.name": "Tiny!"}, NORM)
    path.write_bytes(path.read_bytes().replace(b"Tiny!", b"Tin\xff\xfe"))
    refused(path, "not UTF-8")


def test_cut_short_anywhere(tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    cut = tmp_path / "cut.gguf"
    header = GGUFReader(tiny).data_offset
    for offset in [*range(4, 40), *range(40, header, 211), header, header + 1000, len(data) // 2, len(data) - 40]:
        cut.write_bytes(data[:offset])
        refused(cut, "damaged or cut short; fetch it again")


def test_bytes_that_changed(tmp_path: Path) -> None:
    """Whatever a flipped bit makes of the header: a ModelError or an identity, never another error and never a hang."""
    path = write_tiny_model(tmp_path / "m.gguf", n_layer=2)
    data = path.read_bytes()
    header = GGUFReader(path).data_offset
    interesting = [*range(24, 700), *range(header - 1500, header)]
    rng = random.Random(1)
    outcomes = set()
    for i in range(120):
        spoilt = bytearray(data)
        spoilt[rng.choice(interesting)] ^= rng.choice((1, 2, 16, 128, 255))
        path = tmp_path / f"{i % 2}.gguf"
        path.write_bytes(spoilt)
        os.utime(path, ns=(0, i))
        try:
            assert isinstance(read_model_identity(path), ModelIdentity)
            outcomes.add("identity")
        except ModelError:
            outcomes.add("error")
    assert outcomes == {"identity", "error"}


def test_a_damaged_length_is_not_believed(tiny: Path, tmp_path: Path) -> None:
    data = tiny.read_bytes()
    for key, offset in ((b"tokenizer.ggml.token_type", 8), (b"tokenizer.ggml.tokens", 8), (b"general.name", 4)):
        at = data.index(key) + len(key) + offset
        (tmp_path / "x.gguf").write_bytes(data[:at] + (1 << 61).to_bytes(8, "little") + data[at + 8 :])
        refused(tmp_path / "x.gguf", "damaged or cut short")


def test_the_real_model(smollm2: Path) -> None:
    identity = read_model_identity(smollm2)
    assert (identity.architecture, identity.n_embd, identity.n_layer, identity.n_vocab) == ("llama", 576, 30, 49152)
    assert identity.context_length == 8192
    assert identity.template_hash
