"""Files that somebody made on purpose: whatever is in them, a FineSteerError of one line or a sound result."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finesteer_local import identity
from finesteer_local.converters import cast, recognise, torchfile
from finesteer_local.errors import FineSteerError, ModelError
from finesteer_local.profile import Profile
from foreign import DATA, HINTS
from tiny import write_tiny_model

FINDINGS = Path(__file__).parent / "data" / "findings"
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_everything(path: Path) -> set[str]:
    """What came of a file: `read` or `refused`; any other exception passes."""
    outcomes = set()
    for reader in (
        lambda: recognise.read(path, HINTS),
        lambda: Profile.load(path),
        lambda: identity._read(path, [path]),
        lambda: cast.read_condition(path, 2, 0.1, opens_above=True, mean=True, n_embd=64),
    ):
        try:
            reader()
            outcomes.add("read")
        except FineSteerError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    return outcomes


def from_input(data: bytes) -> bytes:
    """The file that an input of benchmarks/fuzz/files.py stands for."""
    kind, rest = data[:1], data[1:]
    if kind not in (b"\x01", b"\x02"):
        return rest
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl" if kind == b"\x01" else "layer_1.npy", rest)
        for key in range(4 if kind == b"\x01" else 0):
            archive.writestr(f"a/data/{key}", b"\x3f" * 256)
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(path.name for path in FINDINGS.iterdir()))
def test_what_fuzzing_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(from_input((FINDINGS / name).read_bytes()))
    assert read_everything(path)


SEEDS = [*sorted(DATA.glob("*.*")), *sorted((DATA.parent / "profiles").glob("*.gguf"))]
SEEDS = [path for path in SEEDS if path.suffix in (".gguf", ".safetensors", ".pt")]


@QUICK
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_damaged_anywhere(tmp_path: Path, seed: Path, damages: list[tuple[float, bytes]], cut: float | None) -> None:
    data = bytearray(seed.read_bytes())
    for place, value in damages:
        at = int(place * len(data))
        data[at : at + len(value)] = value
    path = tmp_path / "file"
    path.write_bytes(data if cut is None else data[: int(cut * len(data))])
    assert read_everything(path)


names = st.one_of(
    st.sampled_from(["direction.1", "direction.0", "direction.../../x", "gate.mean"]), st.text(max_size=70)
)
shapes = st.lists(st.integers(0, 5), max_size=4)


@QUICK
@given(
    st.sampled_from(["controlvector", "finesteer", "llama", "\n", "../../etc/passwd"]),
    st.dictionaries(
        st.one_of(
            st.sampled_from(["controlvector.model_hint", "general.name", "finesteer.layers"]), st.text(max_size=40)
        ),
        st.one_of(st.text(max_size=30), st.integers(0, 2**32 - 1), st.floats(allow_nan=True), st.booleans()),
        max_size=5,
    ),
    st.dictionaries(names, st.tuples(shapes, st.sampled_from(["f4", "f2", "f8", "i4"]), st.booleans()), max_size=4),
)
@example("controlvector", {}, {"direction.1": ([4], "f4", True)})
def test_gguf_files_of_any_structure(
    tmp_path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, tuple[list[int], str, bool]]
) -> None:
    path = tmp_path / "file"
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        if key and "\ud800" not in key:
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float64}
            try:
                add[type(value)](key, value)
            except (ValueError, UnicodeEncodeError):  # a key twice, or half a surrogate pair
                continue
    for name, (shape, kind, finite) in tensors.items():
        array = np.full(shape, 1.0 if finite or kind == "i4" else np.nan).astype(kind)
        try:
            writer.add_tensor(name, np.atleast_1d(array))
        except (ValueError, UnicodeEncodeError):
            continue
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except (ValueError, UnicodeEncodeError):
        return
    finally:
        writer.close()
    read_everything(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@QUICK
@given(
    st.dictionaries(
        st.sampled_from(["directions", "format", "version", "vectors", "model_type"]), json_values, max_size=5
    )
)
def test_json_of_any_structure(tmp_path: Path, value: dict[str, Any]) -> None:
    path = tmp_path / "file"
    path.write_text(json.dumps(value))
    assert read_everything(path)


@QUICK
@given(st.dictionaries(st.text(max_size=12), json_values, max_size=4), st.binary(max_size=40))
def test_safetensors_of_any_structure(tmp_path: Path, table: dict[str, Any], body: bytes) -> None:
    header = json.dumps(table).encode()
    path = tmp_path / "file"
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    assert read_everything(path)


@QUICK
@given(
    st.lists(st.sampled_from([bytes([code]) for code in range(256)]) | st.binary(max_size=5), max_size=60).map(b"".join)
)
def test_pickles_of_any_structure(program: bytes) -> None:
    try:
        torchfile.parse(Path("x"), {"a/data.pkl": b"\x80\x02" + program, "a/data/0": b"\0" * 64})
    except FineSteerError as error:
        assert "\n" not in str(error)


GROWTH = """
import resource, sys
from pathlib import Path
sys.path[:0] = {path!r}
from foreign import HINTS
from finesteer_local import identity
from finesteer_local.converters import recognise
from finesteer_local.errors import FineSteerError
from finesteer_local.profile import Profile
file = Path({file!r})
try: recognise.read(Path({small!r}), HINTS)  # what the imports themselves need
except FineSteerError: pass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for reader in (lambda: recognise.read(file, HINTS), lambda: Profile.load(file), lambda: identity._read(file, [file])):
    try: reader()
    except FineSteerError: pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def greedy_files(tmp_path: Path) -> dict[str, bytes]:
    """About 4 MiB each, made to become much more."""
    mib = 1 << 20

    def gguf(keys: bytes, n_keys: int, n_tensors: int = 0) -> bytes:
        return (
            b"GGUF" + (3).to_bytes(4, "little") + n_tensors.to_bytes(8, "little") + n_keys.to_bytes(8, "little") + keys
        )

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    numbers = text(b"k") + (9).to_bytes(4, "little") + (0).to_bytes(4, "little") + (4 * mib).to_bytes(8, "little")
    many_keys = b"".join(text(b"%06d" % i) + (0).to_bytes(4, "little") + b"\0" for i in range(4 * mib // 19))
    return {
        "array of bytes": gguf(numbers + b"\0" * 4 * mib, 1),
        "keys": gguf(many_keys, 4 * mib // 19),
        "svec of lists": b'{"directions": {"1": [' + b"[]," * (4 * mib // 3) + b"[]]}}",
        "svec of texts": b'{"directions": {"1": [' + b'"ab",' * (4 * mib // 5) + b'""]}}',
        "svec of numbers": b'{"directions": {"1": [' + b"1.5," * mib + b"1]}}",
        "safetensors": (4 * mib).to_bytes(8, "little") + b"{" + b'"a":[],' * (4 * mib // 7) + b" " * 9,
        "pickle": from_input(b"\x01\x80\x02" + b"]" * 900_000),
    }


@pytest.mark.parametrize("name", greedy_files(Path()))
def test_memory_stays_a_small_multiple_of_the_file(tmp_path: Path, name: str) -> None:
    data = greedy_files(tmp_path)[name]
    (tmp_path / "file").write_bytes(data)
    (tmp_path / "small").write_bytes(b'{"directions": {"1": [1.0]}}')
    script = GROWTH.format(
        path=[str(Path(__file__).parent)], file=str(tmp_path / "file"), small=str(tmp_path / "small")
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    grown = int(done.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 16 * len(data) + (16 << 20), f"{grown / len(data):.1f} times the file"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 513),
        ("block_count", 1 << 31),
        ("embedding_length", 1 << 30),
        ("expert_count", 5000),
        ("expert_count", 4),  # none of them used
        ("expert_used_count", 2),  # of none
        ("expert_group_count", 3),
        ("nextn_predict_layers", 9),
        ("rope.scaling.type", "sideways"),
    ],
)
def test_models_that_llama_cpp_would_abort_on(tmp_path: Path, key: str, value: Any) -> None:
    from gguf import GGUFReader

    source = write_tiny_model(tmp_path / "m.gguf")
    identity._read(source, [source])
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    reader = GGUFReader(source)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", f"llama.{key}"):
            writer.add_key_value(
                name, field.contents(), field.types[0], field.types[1] if len(field.types) > 1 else None
            )
    (writer.add_string if isinstance(value, str) else writer.add_uint32)(f"llama.{key}", value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"its key llama\."):
        identity._read(tmp_path / "x.gguf", [tmp_path / "x.gguf"])
