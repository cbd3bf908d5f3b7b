"""From a recipe to its teacher, and from there to a profile that says what taught it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from finesteer_local import training
from finesteer_local.errors import DataError
from finesteer_local.profile import Profile
from finesteer_local.training import teach
from finesteer_local.training.known import UNSEEN, sample
from finesteer_local.training.recipes import load_recipe
from finesteer_local.training.teacher import Teacher

pytestmark = pytest.mark.usefixtures("one_thread", "short_answers")

N = 280


def write_recipe(folder: Path, **more: list[str]) -> Path:
    pairs = [{"prompt": f"! do {i}", "chosen": f"no {i}", "rejected": f"yes {i}"} for i in range(N)]
    contrast = [{"prompt": f"what is {i}?"} for i in range(N)]
    for name, rows in (("pairs", pairs), ("contrast", contrast)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = {"pairs": ["pairs.jsonl"], "contrast": ["contrast.jsonl"], **more}
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def recipe(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its teacher, made by the command."""
    folder = write_recipe(tmp_path_factory.mktemp("shouting"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINESTEER_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(sys, "argv", ["teach", str(tiny), str(folder), "--out", str(folder / "teacher.npz")])
        teach.main()
    return write_recipe(folder, teachers=["teacher.npz"])


@pytest.fixture(scope="module")
def profile(tiny: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINESTEER_HOME", str(tmp_path_factory.mktemp("home")))
        return training.train_profile(tiny, recipe=str(recipe), quality="quick", n_threads=1)


def test_the_command_knows_every_prompt(tiny: Path, recipe: Path) -> None:
    teacher, data = Teacher.load(recipe / "teacher.npz"), load_recipe(str(recipe))
    assert [int(place) for place in teacher.places] == [prompt.place for _, prompt in data.ordered]
    assert str(teacher.model) == f"{tiny.stem}, layer 1" and len(teacher.counts) == 2 * N
    assert np.isfinite(teacher.scores.astype(float)).all()


def test_a_profile_says_what_taught_it(tiny: Path, recipe: Path, profile: Profile) -> None:
    assert profile.training["teachers"] == [f"{tiny.stem}, layer 1"]
    assert profile.training["figures"]["gate"]["auroc"] > 0.9


def test_what_was_held_out_is_known_afterwards(recipe: Path, profile: Profile) -> None:
    """The folds are the teacher's, so that is where they are found."""
    data = load_recipe(str(recipe))
    found = sample(profile, data, 2 * N, 2 * N)
    teacher = Teacher.load(recipe / "teacher.npz")
    assert found.held_out and np.array_equal(found.folds, teacher.folds_of(found.prompts))
    without = load_recipe(str(write_recipe(recipe)))
    try:
        found = sample(profile, without, 2 * N, 2 * N)
        assert not found.held_out and (found.folds == UNSEEN).all()
    finally:
        write_recipe(recipe, teachers=["teacher.npz"])


def test_a_damaged_teacher_ends_a_training_with_a_line(tiny: Path, recipe: Path, home: Path, tmp_path: Path) -> None:
    folder = write_recipe(tmp_path, teachers=["teacher.npz"])
    with pytest.raises(DataError, match=r"no file 'teacher.npz'"):
        load_recipe(str(folder))
    (folder / "teacher.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a teacher's file"):
        training.train_profile(tiny, recipe=str(folder), quality="quick", n_threads=1)
