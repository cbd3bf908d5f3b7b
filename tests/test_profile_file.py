"""Profiles as GGUF: what is written, that it reads back bit for bit, and that nothing in a file is trusted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from finesteer_local import profile_file
from finesteer_local.errors import ProfileError, StorageError
from finesteer_local.profile import ModelIdentity, Profile
from finesteer_local.steering import ContrastiveGate, Experts
from tiny import make_experts, make_gate

N_EMBD, N_LAYER = 16, 6
MODEL = ModelIdentity("0123456789abcdef" * 4, "Small", "llama", N_EMBD, N_LAYER, 100, "fedcba98" * 8)
KINDS = ("partly", "partly, windowed", "selective, last token", "open")
TRAINING = {"recipe": "safety", "counts": {"pairs": 12}, "seed": 3, "figures": [0.25, None, "é"]}


def profile(kind: str = "partly", **changes: Any) -> Profile:
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "name": "safety",
        "model": MODEL,
        "gate": make_gate(kind, N_EMBD, rng),
        "gate_layer": 1,
        "experts": {layer: make_experts(N_EMBD, rng) for layer in (2, 4)},
        "strength": 1.7,
        "answer_strength": 0.3,
        "length_decay": 0.2,
        "scope": "turn",
        "description": "Refuses what harms: täglich.\nTwo lines.",
        "license": "Apache-2.0",
        "training": TRAINING,
    }
    return Profile(**{**parts, **changes})


@pytest.fixture(params=KINDS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    profile(request.param).save(tmp_path / "p.gguf")
    return tmp_path / "p.gguf"


@pytest.fixture
def one(tmp_path: Path) -> Path:
    profile().save(tmp_path / "p.gguf")
    return tmp_path / "p.gguf"


def assert_same(a: Profile, b: Profile) -> None:
    numbers = ("strength", "answer_strength", "length_decay")
    for name in ("name", "model", "gate_layer", *numbers, "scope", "description", "license", "training", "layers"):
        assert getattr(a, name) == getattr(b, name), name
    assert type(a.gate) is type(b.gate)
    for x, y in [(a.gate, b.gate), *((a.experts[layer], b.experts[layer]) for layer in a.layers)]:
        for field in fields(x):
            got, want = getattr(x, field.name), getattr(y, field.name)
            if isinstance(got, np.ndarray):
                assert got.dtype == want.dtype
                np.testing.assert_array_equal(got, want, err_msg=field.name)
                assert got.shape == want.shape
            else:
                assert got == want, field.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"description": "", "license": "", "training": {}},
        {"model": replace(MODEL, name="", architecture="", template_hash="", n_vocab=0)},
        {"strength": 0.0, "scope": "response"},
        {"strength": 1 / 3},
        {"experts": {5: make_experts(N_EMBD, np.random.default_rng(1), rank=0, width=0)}},
        {
            "experts": {
                2: make_experts(N_EMBD, np.random.default_rng(1), rank=0, width=0),
                3: replace(make_experts(N_EMBD, np.random.default_rng(2)), labels=()),
            }
        },
    ],
    ids=["all", "no texts", "a bare model", "zero", "a third", "no residual", "mixed"],
)
def test_it_reads_back_bit_for_bit(tmp_path: Path, kind: str, changes: dict) -> None:
    written = profile(kind, **changes)
    written.save(tmp_path / "p.gguf")
    read = Profile.load(tmp_path / "p.gguf")
    assert_same(read, written)
    for seed in range(5):
        x = np.random.default_rng(seed).standard_normal((6, N_EMBD)).astype(np.float32)
        a, b = read.decide(x), written.decide(x)
        assert (a.g, a.score, a.threshold, a.strength, a.scope, a.labels) == (
            b.g,
            b.score,
            b.threshold,
            b.strength,
            b.scope,
            b.labels,
        )
        assert [*a.vectors] == [*b.vectors]
        for layer in a.vectors:
            np.testing.assert_array_equal(a.vectors[layer], b.vectors[layer])


def test_it_is_the_same_file_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        profile().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_outlives_nothing(one: Path) -> None:
    """What was read stays when the file is replaced or gone."""
    read = Profile.load(one)
    one.write_bytes(b"")
    one.unlink()
    assert_same(read, profile())


def test_float16_tensors(one: Path) -> None:
    rewrite(one, tensors={"experts.2.prototypes": profile().experts[2].prototypes.astype(np.float16)})
    read = Profile.load(one).experts[2].prototypes
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, profile().experts[2].prototypes.astype(np.float16).astype(np.float32))


def test_the_keys_of_format_version_1(one: Path) -> None:
    reader = GGUFReader(one)
    found = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert json.loads(found.pop("finesteer.training")) == TRAINING
    labels = {key: found.pop(key) for key in [*found] if key.endswith(".labels")}
    assert labels == {f"finesteer.experts.{n}.labels": [f"expert {c}" for c in "abcd"] for n in (2, 4)}
    assert found == {
        "general.architecture": "finesteer",
        "general.type": "adapter",
        "general.name": "safety",
        "general.description": "Refuses what harms: täglich.\nTwo lines.",
        "general.license": "Apache-2.0",
        "finesteer.format_version": 1,
        "finesteer.model.fingerprint": MODEL.fingerprint,
        "finesteer.model.name": "Small",
        "finesteer.model.architecture": "llama",
        "finesteer.model.embedding_length": N_EMBD,
        "finesteer.model.block_count": N_LAYER,
        "finesteer.model.vocab_size": 100,
        "finesteer.chat_template_hash": MODEL.template_hash,
        "finesteer.layers": [2, 4],
        "finesteer.strength": 1.7,
        "finesteer.answer_strength": 0.3,
        "finesteer.requires": ["length_decay"],
        "finesteer.length_decay": 0.2,
        "finesteer.scope": "turn",
        "finesteer.gate.kind": "contrastive",
        "finesteer.gate.layer": 1,
        "finesteer.gate.bias": 0.1,
        "finesteer.gate.low": -1e3,
        "finesteer.gate.high": 1e3,
    }
    experts = [f"experts.{n}.{part}" for n in (2, 4) for part in ("prototypes", "router.weight", "router.bias")]
    residual = [f"residual.{n}.{part}" for n in (2, 4) for part in ("basis", *BETA)]
    gate = [f"gate.{part}" for part in ("mean", "scale", "query", "value_weight", "last_weight")]
    assert {t.name for t in reader.tensors} == {*experts, *residual, *gate}
    assert {t.tensor_type for t in reader.tensors} == {GGMLQuantizationType.F32}


BETA = ("beta.0.weight", "beta.0.bias", "beta.2.weight", "beta.2.bias")
Raw = tuple[Any, GGUFValueType]


def contents(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = GGUFReader(path)
    keys = {
        key: (field.contents(), *field.types)
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.") and key != "general.architecture"
    }
    return keys, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def rewrite(
    path: Path,
    *,
    architecture: str = "finesteer",
    keys: dict[str, Raw | None] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> None:
    """Write the file again with these keys and tensors replaced or, where None, left out."""
    old_keys, old_tensors = contents(path)
    writer = GGUFWriter(path, architecture)
    for key, raw in {**old_keys, **(keys or {})}.items():
        if raw is not None:
            value, kind, *rest = raw
            writer.add_key_value(key, value, kind, *rest)
    for name, array in {**old_tensors, **(tensors or {})}.items():
        if array is not None:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def refused(path: Path, *names: str) -> str:
    """The message, one line, that names the file and the field."""
    with pytest.raises(ProfileError) as error:
        Profile.load(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    for name in names:
        assert name in message, message
    return message


def test_a_rewritten_file_is_the_same(saved: Path) -> None:
    before = Profile.load(saved)
    rewrite(saved)
    assert_same(Profile.load(saved), before)


OPTIONAL = {
    "general.type",
    "general.description",
    "general.license",
    "finesteer.model.name",
    "finesteer.chat_template_hash",
    "finesteer.answer_strength",
    "finesteer.requires",
    "finesteer.length_decay",
    "finesteer.gate.window",
}


def test_every_key_that_is_missing_is_named(saved: Path) -> None:
    data = saved.read_bytes()
    for key in contents(saved)[0]:
        rewrite(saved, keys={key: None})
        if key in OPTIONAL or key.endswith(".labels"):
            assert Profile.load(saved).name == "safety"
        else:
            refused(saved, key)
        saved.write_bytes(data)


def test_every_key_of_the_wrong_type_is_named(saved: Path) -> None:
    data = saved.read_bytes()
    for key, raw in contents(saved)[0].items():
        if key == "general.type":
            continue
        wrong: list[Raw] = [
            (7, GGUFValueType.INT64),
            (True, GGUFValueType.BOOL),
            ([1.5], GGUFValueType.ARRAY),
            ([["a"]], GGUFValueType.ARRAY) if raw[1] != GGUFValueType.ARRAY else ("a", GGUFValueType.STRING),
            ("2", GGUFValueType.STRING) if raw[1] != GGUFValueType.STRING else (2, GGUFValueType.UINT32),
        ]
        for value in wrong:
            rewrite(saved, keys={key: value})
            if value[0] == [["a"]]:
                refused(saved, "damaged")  # llama.cpp has no arrays of arrays either
            else:
                refused(saved, key)
            saved.write_bytes(data)


def test_every_tensor_that_is_missing_wrong_or_not_finite_is_named(saved: Path) -> None:
    data = saved.read_bytes()
    for name, array in contents(saved)[1].items():
        spoilt = array.copy()
        spoilt.flat[-1] = np.nan
        infinite = array.astype(np.float16)
        infinite.flat[0] = np.inf
        for wrong in (
            None,
            array.astype(np.float64),
            array.astype(np.int32),
            np.concatenate([array, array]) if name != "gate.calibration" else array[::-1],
            array[..., None],
            spoilt,
            infinite,
        ):
            rewrite(saved, tensors={name: wrong})
            # a size that other tensors share is reported for whichever is checked first
            stem = name.split(".")[0] if wrong is not None and wrong.shape[:1] != array.shape[:1] else name
            refused(saved, stem)
            saved.write_bytes(data)


def test_a_quantised_tensor(one: Path) -> None:
    keys, tensors = contents(one)
    writer = GGUFWriter(one, "finesteer")
    for key, (value, kind, *rest) in keys.items():
        writer.add_key_value(key, value, kind, *rest)
    for name, array in tensors.items():
        if name == "residual.2.basis":
            blocks = np.zeros((N_EMBD, 34), np.uint8)  # one block of Q8_0 a row
            writer.add_tensor(name, blocks, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(one, "tensor residual.2.basis has type Q8_0, expected F32 or F16")


U32, F64, TEXT = GGUFValueType.UINT32, GGUFValueType.FLOAT64, GGUFValueType.STRING


@pytest.mark.parametrize(
    ("key", "raw", "named"),
    [
        ("general.name", ("Not A Name", TEXT), "field name"),
        ("finesteer.format_version", (2, U32), "format_version 2 needs a newer finesteer-local"),
        ("finesteer.format_version", (0, U32), "format_version"),
        ("finesteer.model.fingerprint", ("xyz", TEXT), "model.fingerprint"),
        ("finesteer.model.embedding_length", (0, U32), "model.embedding_length"),
        ("finesteer.model.embedding_length", (4_000_000_000, U32), "model.embedding_length"),
        ("finesteer.model.embedding_length", (32, U32), "gate.mean"),
        ("finesteer.model.block_count", (4, U32), "layers"),
        ("finesteer.model.block_count", (4_000_000_000, U32), "model.block_count"),
        ("finesteer.model.vocab_size", (4_000_000_000, U32), "model.vocab_size"),
        ("finesteer.strength", (-1.0, F64), "strength"),
        ("finesteer.answer_strength", (-0.1, F64), "answer_strength"),
        ("finesteer.answer_strength", (1.1, F64), "answer_strength"),
        ("finesteer.length_decay", (-0.1, F64), "length_decay"),
        ("finesteer.length_decay", (1.1, F64), "length_decay"),
        ("finesteer.strength", (float("nan"), F64), "strength"),
        ("finesteer.strength", (1e9, F64), "strength"),
        ("finesteer.scope", ("everything", TEXT), "scope"),
        ("finesteer.training", ("{", TEXT), "finesteer.training"),
        ("finesteer.training", ("[" * 100_000, TEXT), "finesteer.training"),
        ("finesteer.training", ("[1]", TEXT), "finesteer.training"),
        ("finesteer.training", ('{"loss": NaN}', TEXT), "training"),
        ("finesteer.layers", ([2, 2], GGUFValueType.ARRAY), "finesteer.layers names a layer twice"),
        ("finesteer.layers", ([2, 3], GGUFValueType.ARRAY), "experts.3.prototypes is missing"),
        ("finesteer.layers", ([2], GGUFValueType.ARRAY), "experts.4.prototypes does not belong"),
        ("finesteer.layers", ([-2], GGUFValueType.ARRAY), "experts.-2.prototypes is missing"),
        ("finesteer.layers", ([2.0], GGUFValueType.ARRAY), "finesteer.layers"),
        ("finesteer.gate.kind", ("magic", TEXT), "gate kind 'magic' needs a newer finesteer-local"),
        ("finesteer.gate.kind", ("scs", TEXT), "gate.basis is missing"),
        ("finesteer.gate.layer", (3, U32), "layer 2 must lie from the gate's layer (3)"),
        ("finesteer.gate.layer", (6, U32), "gate.layer"),
        ("finesteer.gate.low", (2e3, F64), "gate.low"),
        ("finesteer.gate.bias", (float("inf"), F64), "gate.bias"),
        ("finesteer.gate.window", (65_537, U32), "gate.window"),
        ("finesteer.gate.window", (4_000_000_000, U32), "gate.window"),
        ("finesteer.gate.window", (-1, GGUFValueType.INT32), "finesteer.gate.window"),
        ("finesteer.gate.window", (8.0, F64), "finesteer.gate.window has the wrong type"),
        ("finesteer.gate.window", ("8", TEXT), "finesteer.gate.window has the wrong type"),
        ("finesteer.experts.2.labels", (["a"], GGUFValueType.ARRAY), "experts.2.labels"),
        ("finesteer.experts.2.labels", ([1, 2, 3, 4], GGUFValueType.ARRAY), "experts.2.labels"),
    ],
)
def test_values_out_of_range_are_named(one: Path, key: str, raw: Raw, named: str) -> None:
    rewrite(one, keys={key: raw})
    refused(one, named)


def test_tensors_that_do_not_belong(one: Path) -> None:
    rewrite(one, tensors={"extra.weight": np.zeros(3, np.float32)})
    refused(one, "tensor extra.weight does not belong in a profile")


def test_tensors_of_a_residual_without_its_basis(one: Path) -> None:
    rewrite(one, tensors={"residual.2.basis": None})
    refused(one, "tensor residual.2.basis is missing")


def test_another_architecture(one: Path) -> None:
    rewrite(one, architecture="llama")
    refused(one, "its architecture is 'llama', not 'finesteer'")


def test_unknown_keys_are_ignored(one: Path) -> None:
    rewrite(one, keys={"finesteer.later": ("x", TEXT), "general.author": ("me", TEXT)})
    assert_same(Profile.load(one), profile())


def test_required_features(one: Path) -> None:
    """What a reader must know to steer as was meant; ignoring it would steer otherwise and say nothing."""
    rewrite(one, keys={"finesteer.requires": (["later"], GGUFValueType.ARRAY)})
    refused(one, "finesteer.requires names 'later': it needs a newer finesteer-local")
    rewrite(one, keys={"finesteer.requires": ("later", TEXT)})
    refused(one, "key finesteer.requires has the wrong type")


def test_a_feature_is_required_only_where_it_is_used(tmp_path: Path) -> None:
    """Readers that know no features go on reading profiles without them."""
    profile(length_decay=0.0).save(tmp_path / "p.gguf")
    assert not {"finesteer.requires", "finesteer.length_decay"} & set(contents(tmp_path / "p.gguf")[0])
    assert Profile.load(tmp_path / "p.gguf").length_decay == 0.0
    profile("partly, windowed", length_decay=0.0).save(tmp_path / "p.gguf")
    assert contents(tmp_path / "p.gguf")[0]["finesteer.requires"][0] == ["gate_window"]
    profile("partly, windowed").save(tmp_path / "p.gguf")
    assert contents(tmp_path / "p.gguf")[0]["finesteer.requires"][0] == ["length_decay", "gate_window"]


def test_the_window_of_a_gate(tmp_path: Path) -> None:
    path = tmp_path / "p.gguf"
    made = profile("partly, windowed")
    made.save(path)
    assert contents(path)[0]["finesteer.gate.window"] == (6, U32)
    window = Profile.load(path).gate.window  # type: ignore[attr-defined]
    assert window == 6 and type(window) is int
    rewrite(path, keys={"finesteer.gate.window": None, "finesteer.requires": None})
    assert Profile.load(path).gate.window == 0  # type: ignore[attr-defined] # as before there were any
    one = profile("partly")
    for bad in (-1, 65_537, 2.5, float("nan"), float("inf")):
        with pytest.raises(ProfileError, match=r"gate\.window"):
            replace(one, gate=replace(one.gate, window=bad))  # type: ignore[type-var]
    assert replace(one, gate=replace(one.gate, window=65_536)).gate.window == 65_536  # type: ignore


def test_not_a_profile_at_all(tmp_path: Path, one: Path) -> None:
    refused(tmp_path / "none.gguf", "cannot read the profile", "No such file")
    refused(tmp_path, "cannot read the profile")
    for data, named in ((b"", "not a GGUF file"), (b"GGU", "not a GGUF file"), (b"PK\3\4", "not a GGUF file")):
        (tmp_path / "x.gguf").write_bytes(data)
        refused(tmp_path / "x.gguf", named)


def test_a_file_that_is_too_large(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_file, "_MAX_BYTES", 1 << 12)
    refused(one, "larger than 0 MiB")


def test_cut_short_anywhere(saved: Path) -> None:
    data = saved.read_bytes()
    before = Profile.load(saved)
    cut = saved.with_name("cut.gguf")
    end = GGUFReader(saved).tensors[-1]
    used = int(end.data_offset + end.n_bytes)  # padding follows
    offsets = {*range(0, len(data), 97), *range(0, 64), used - 1, used - 2, len(data) // 2}
    for offset in sorted(o for o in offsets if o < used):
        cut.write_bytes(data[:offset])
        refused(cut, "GGUF" if offset < 4 else "damaged or cut short")
    for offset in (used, len(data)):
        cut.write_bytes(data[:offset])
        assert_same(Profile.load(cut), before)


def test_bytes_that_changed(saved: Path) -> None:
    """Whatever a flipped bit makes of the file: a ProfileError or a profile, never another error and never a hang."""
    data = saved.read_bytes()
    header = GGUFReader(saved).data_offset
    rng = random.Random(0)
    outcomes = set()
    for _ in range(300):
        spoilt = bytearray(data)
        for _ in range(rng.choice((1, 1, 4))):
            at = rng.randrange(header) if rng.random() < 0.9 else rng.randrange(len(data))
            spoilt[at] ^= rng.choice((1, 2, 16, 128, 255))
        saved.write_bytes(spoilt)
        try:
            Profile.load(saved)
            outcomes.add("profile")
        except ProfileError as error:
            assert "\n" not in str(error) or "\\n" in repr(error)
            outcomes.add("error")
    assert outcomes == {"profile", "error"}


def claim(data: bytes, key: bytes, offset: int, value: bytes) -> bytes:
    """`data` with `value` written `offset` bytes after the name of `key`."""
    at = data.index(key) + len(key) + offset
    return data[:at] + value + data[at + len(value) :]


HUGE = (1 << 62).to_bytes(8, "little")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: claim(data, b"finesteer.layers", 8, HUGE),  # an array's length: 4 type, 4 item type
        lambda data: claim(data, b"finesteer.layers", 8, (1 << 20).to_bytes(8, "little")),
        lambda data: claim(data, b"finesteer.scope", 4, HUGE),  # a text's length
        lambda data: data[:8] + HUGE + data[16:],  # tensors
        lambda data: data[:16] + HUGE + data[24:],  # keys
        lambda data: data[:4] + (99).to_bytes(4, "little") + data[8:],  # version
        lambda data: claim(data, b"experts.2.prototypes", 4, HUGE),  # a tensor's first dimension
        lambda data: claim(data, b"experts.2.prototypes", 0, (1 << 31).to_bytes(4, "little")),  # dimensions
        lambda data: claim(data, b"experts.2.prototypes", 24, HUGE),  # its place
    ],
)
def test_counts_and_lengths_are_not_believed(one: Path, spoil: Callable[[bytes], bytes]) -> None:
    one.write_bytes(spoil(one.read_bytes()))
    refused(one, "damaged or cut short")


def test_a_file_of_items_without_end(one: Path) -> None:
    rewrite(one, keys={"finesteer.later": ([1] * 70_000, GGUFValueType.ARRAY)})
    refused(one, "damaged")


def test_twice_the_same_tensor(one: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(data.replace(b"experts.4.prototypes", b"experts.2.prototypes"))
    refused(one, "damaged")


def test_a_failed_save_leaves_the_old_file(one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = one.read_bytes()

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(profile_file, "GGUFWriter", broken)
    with pytest.raises(StorageError, match="no space left"):
        profile().save(one)
    assert one.read_bytes() == before
    assert [p.name for p in one.parent.iterdir() if p.is_file()] == ["p.gguf"]


def test_every_field_of_the_experts_is_written() -> None:
    assert {attribute for _, attribute in profile_file._EXPERT_TENSORS} | {"labels", "by_kind"} == {
        f.name for f in fields(Experts)
    }
    for gate, tensors, numbers in profile_file._GATES.values():
        optional = {"window"} if gate is ContrastiveGate else set()
        assert {*tensors, *numbers} | optional == {f.name for f in fields(gate)}
