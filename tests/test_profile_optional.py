"""Optional parts of a profile file: what a reader does not know it leaves out, and says so."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from finesteer_local.errors import ProfileError
from finesteer_local.profile import Profile
from test_kinds import N_EMBD, profile, states


def rewritten(
    source: Path,
    target: Path,
    *,
    texts: dict[str, str] | None = None,
    lists: dict[str, list[str]] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """A copy of a profile file with other or further texts, lists and tensors."""
    reader, writer = GGUFReader(source), GGUFWriter(target, "finesteer")
    changed = {**(texts or {}), **(lists or {})}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changed or name in without:
            continue
        kind, value = field.types[0], field.contents()
        if kind == GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kind)
    for name, text in (texts or {}).items():
        writer.add_string(name, text)
    for name, values in (lists or {}).items():
        writer.add_array(name, values)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    profile().save(tmp_path / "p.gguf")
    return tmp_path / "p.gguf"


def test_an_unknown_part_is_left_out_and_told(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {"tones.weight": np.zeros((N_EMBD, 2), np.float32)}
    path = rewritten(saved, tmp_path / "q.gguf", lists={"finesteer.optional": ["kinds", "tones"]}, tensors=more)
    with caplog.at_level(logging.WARNING):
        found = Profile.load(path)
    assert "a part 'tones' that this version does not know; it is left out" in caplog.text
    assert found.decide(states()).kinds == profile().decide(states()).kinds


def test_its_tensors_are_refused_where_nobody_calls_them_optional(saved: Path, tmp_path: Path) -> None:
    more = {"tones.weight": np.zeros((N_EMBD, 2), np.float32)}
    with pytest.raises(ProfileError, match=r"tensor tones\.weight does not belong"):
        Profile.load(rewritten(saved, tmp_path / "q.gguf", tensors=more))
    with pytest.raises(ProfileError, match=r"tensor kinds\.\w+ does not belong"):
        Profile.load(rewritten(saved, tmp_path / "r.gguf", without=("finesteer.optional",)))


def test_an_optional_part_cannot_take_a_decisions_tensors(saved: Path, tmp_path: Path) -> None:
    path = rewritten(saved, tmp_path / "q.gguf", lists={"finesteer.optional": ["gate", "experts", "kinds"]})
    assert Profile.load(path).decide(states()).score == profile().decide(states()).score


@pytest.mark.parametrize(
    ("about", "problem"),
    [
        ("nonsense", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"fraud": 3}', "'fraud' is not an object"),
        ('{"fraud": {"about": 3}}', "not text"),
        ('{"fraud": {"openai": "illicit"}}', "is not a list"),
        ('{"fraud": {"openai": [1]}}', "not text"),
        ('{"fraud": {"words": [" "]}}', "its words are empty"),
        ('{"fraud": {"words": []}}', "its words are empty"),
        ('{"fraud": {"action": "forgive"}}', "action 'forgive'"),
        ('{"fraud": {"alone": "yes"}}', "is not a number"),
        ('{"fraud": {"alone": 2}}', "not in"),
    ],
)
def test_what_is_wrong_about_kinds_is_named(saved: Path, tmp_path: Path, about: str, problem: str) -> None:
    path = rewritten(saved, tmp_path / "q.gguf", texts={"finesteer.kinds.about": about})
    with pytest.raises(ProfileError, match=f"kinds.about.*{problem}"):
        Profile.load(path)


def test_what_a_kind_is_about_may_be_missing(saved: Path, tmp_path: Path) -> None:
    found = Profile.load(rewritten(saved, tmp_path / "q.gguf", without=("finesteer.kinds.about",)))
    assert found.kinds is not None and found.kinds.get("fraud").words and found.kinds.get("fraud").openai == ()


@pytest.mark.parametrize("key", ["finesteer.kinds.names", "finesteer.kinds.slope"])
def test_a_key_that_is_missing_is_named(saved: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(ProfileError, match=key if "slope" in key else "kinds.names"):
        Profile.load(rewritten(saved, tmp_path / "q.gguf", without=(key,)))
