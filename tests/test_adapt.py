"""A profile on fine-tunes of its model: where it holds it is written with both provenances, elsewhere not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from cli import call, error_of, good
from fine_tunes import merged
from finesteer_local import catalog, paths
from finesteer_local.errors import DataError, ProfileMismatchError
from finesteer_local.identity import read_model_identity
from finesteer_local.profile import Profile
from finesteer_local.runtime import open_model
from finesteer_local.training import adapt as module
from finesteer_local.training import learn, trials
from finesteer_local.training.adapt import adapt, check_same_kind
from finesteer_local.training.known import data_of
from finesteer_local.training.recipes import load_data
from test_train import run, write_files
from tiny import make_profile, write_tiny_model


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "REPLY_TOKENS", 6)
        patch.setattr(trials, "ANSWER_TOKENS", 6)
        patch.setattr(trials, "WHOLE_TOKENS", 6)
        patch.setattr(module, "SCORE_LOSS", 0.6)  # whether a random model's answers are language is chance
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def trained(tiny: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a profile for the tiny model."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINESTEER_HOME", str(folder))
        profile = run(tiny, *files, name="calm")
    profile.save(folder / "calm.gguf")
    return folder / "calm.gguf"


def given(files: tuple[Path, Path]) -> tuple[str | Path, ...]:
    return "--data", files[0], "--contrast", files[1], "--threads", "1"


def test_a_merged_fine_tune(tiny: Path, trained: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    model = merged(tiny, tmp_path / "tuned.gguf", norms=1e-4)
    result = good("profiles", "adapt", trained, model, *given(files))
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["gate", "before", "answers", "fitted", "time"]
    assert lines[-1] == f"Try it: finesteer-local chat {model} --profile calm"
    before, [kept] = Profile.load(trained), catalog.available_profiles(read_model_identity(model).fingerprint)
    after = Profile.load(kept.path)
    assert after.model == read_model_identity(model) and after.model.fingerprint != before.model.fingerprint
    note = after.training["adapted"]
    assert note["from"]["fingerprint"] == before.model.fingerprint and not note["held_out"]  # 57 prompts
    assert note["from"]["figures"]["gate"] == before.training["figures"]["gate"]
    assert after.training["data_hash"] == before.training["data_hash"]
    assert after.training["model_file"] == "tuned.gguf" and after.training["figures"]["gate"]["auroc"] > 0.9
    answer = json.loads(good("run", model, "! 3", "-p", "calm", "--max-tokens", "4", "--json").stdout)
    assert answer["profiles"] == ["calm"]
    # And once more, from what was adapted.
    again = merged(model, tmp_path / "again.gguf", norms=1e-4)
    good("profiles", "adapt", kept.path, again, *given(files), "-o", tmp_path / "again-calm.gguf")
    chain = Profile.load(tmp_path / "again-calm.gguf").training["adapted"]["from"]
    assert chain["fingerprint"] == after.model.fingerprint and chain["adapted"]["from"]["model"] == before.model.name


def test_a_lora_that_leaves_the_norms_alone(
    tiny: Path, trained: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Its fingerprint is the model's own: nothing is written under a name that would hide the original."""
    model = merged(tiny, tmp_path / "lora.gguf", size=1e-4)
    assert read_model_identity(model).fingerprint == read_model_identity(tiny).fingerprint
    result = good("profiles", "adapt", trained, model, *given(files))
    assert result.stdout.splitlines()[-1].startswith("It holds as it is")
    assert not list(paths.profiles_dir().glob("*"))
    output = tmp_path / "out.gguf"
    assert f"Kept as {output}" in good("profiles", "adapt", trained, model, *given(files), "-o", output).stdout
    assert "exists" in error_of("profiles", "adapt", trained, model, *given(files), "-o", output)


def test_another_model_has_to_be_trained(trained: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """The last line says why, and nothing is written."""
    model = write_tiny_model(tmp_path / "other.gguf", seed=5, name="Other")
    result = call("profiles", "adapt", trained, model, *given(files), "-o", tmp_path / "out.gguf")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: calm does not hold for Other: ") and "finesteer-local train" in last
    assert not (tmp_path / "out.gguf").exists() and not list(paths.profiles_dir().glob("*"))


def test_no_fine_tune_at_all(tiny: Path, trained: Path, tmp_path: Path) -> None:
    profile = Profile.load(trained)
    for name, options, words in (
        ("deep", {"n_layer": 5}, "number of layers is 5, not 4"),
        ("wide", {"n_embd": 128}, "width is 128, not 64"),
        ("qwen2", {"architecture": "qwen2"}, "architecture is qwen2, not llama"),
        ("words", {"user_defined": ("<x>",)}, "number of tokens"),
    ):
        other = write_tiny_model(tmp_path / f"{name}.gguf", **options)  # type: ignore[arg-type]
        with pytest.raises(ProfileMismatchError, match=words):
            check_same_kind(profile, read_model_identity(other))
        assert words in error_of("profiles", "adapt", trained, other)


def test_what_cannot_be_measured(tiny: Path, trained: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    model = merged(tiny, tmp_path / "tuned.gguf", norms=1e-4)
    assert "--data FILE --contrast FILE" in error_of("profiles", "adapt", trained, model)
    assert "unknown profile" in error_of("profiles", "adapt", "nothing", model)
    data = load_data(data=files[0], contrast=files[1])
    subspace = make_profile(tiny, gate="last token")
    with closing(open_model(model, n_threads=1)) as llama, pytest.raises(DataError, match="cannot be adapted"):
        adapt(llama, subspace, data)
    no_figures = make_profile(tiny, gate="selective", training={"recipe": "brief"})
    with closing(open_model(model, n_threads=1)) as llama:
        found = adapt(llama, no_figures, data)
    assert found.profile is None and "no figures" in found.problem
    assert data_of(no_figures).recipe == "brief"
