"""The gate on answers: its running mean, when it opens, what may be taken back, and its part of the profile file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finesteer_local.errors import ProfileError, SteeringError
from finesteer_local.profile import Profile
from finesteer_local.steering import ON_ANSWER, AnswerGate, AnswerWatch
from test_kinds import N_EMBD, profile
from test_profile_optional import rewritten
from tiny import make_answer_gate

GATE = AnswerGate(2, np.array([1, 0], np.float32), bias=-1.0, decay=0.5, threshold=1.0, first=3)


def watched(numbers: list[float], gate: AnswerGate = GATE) -> AnswerWatch:
    """The gate after tokens whose first component is given."""
    watch = gate.start()
    for number in numbers:
        watch.read(np.array([number, 7], np.float32)) if watch.due else watch.pass_by()
    return watch


def test_the_running_mean_starts_at_the_first_reading() -> None:
    watch = watched([3, 3, 1])
    first, second, third = watch.scores
    assert (first, second) == (pytest.approx(2), pytest.approx(2))
    assert third == pytest.approx((0.5 * 0.75 * 2 + 0.5 * 0) / 0.875)
    assert watch.score == third and watch.n_tokens == 3


def test_a_reading_fades_by_token_not_by_reading() -> None:
    every = watched([0, 5, 0, 3], replace(GATE, every=2))
    assert every.scores == pytest.approx([4, (0.25 * 0.75 * 4 + 0.75 * 2) / (1 - 0.0625)])
    states = np.array([[0, 7], [5, 7], [0, 7], [3, 7], [9, 9]], np.float32)
    np.testing.assert_allclose(replace(GATE, every=2).scores(states), every.scores, rtol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "opened_at", "began"),
    [
        ([0, 0, 0, 0], None, 4),  # nothing shows
        ([9, 9, 0, 0, 0, 0], 3, 0),  # not before `first`, however high
        ([0, 0, 0, 9, 9], 4, 3),
        ([0, 0, 0, 2.2, 2.6, 5, 0], 6, 4),  # 0.2 and 0.9 on the way: below and above half the threshold
        ([0, 0, 0, 3, 3, 5, 0], 5, 3),
    ],
)
def test_when_it_opens_and_since_when_it_shows(numbers: list[float], opened_at: int | None, began: int) -> None:
    watch = watched(numbers)
    assert (watch.opened_at, watch.began) == (opened_at, began), watch.scores


@pytest.mark.parametrize(
    ("numbers", "highest"),
    [([], None), ([4], 3), ([4, 2], 1), ([9, 4, 2], 1), ([9, 9, 0, 5, 1], 4)],
)
def test_the_highest_is_one_that_could_have_opened_it(numbers: list[float], highest: float | None) -> None:
    """From token 3 on; of a shorter answer it is the last. Without a mean over the tokens before, for clearness."""
    assert watched(numbers, replace(GATE, decay=0.0)).highest == highest
    assert watched([0, 9, 0, 5, 0, 7, 0], replace(GATE, decay=0.0, every=2)).highest == 6


def test_it_stays_open_and_can_be_cut_back() -> None:
    watch = watched([0, 0, 0, 9, 9, -99])
    assert watch.opened_at == 4
    watch.cut(5)
    assert watch.opened_at == 4 and watch.scores == watched([0, 0, 0, 9, 9]).scores
    watch.cut(3)
    assert watch.opened_at is None and watch.n_tokens == 3
    watch.cut(7)
    assert watch.n_tokens == 3
    watch.read(np.array([9, 7], np.float32))
    assert watch.scores == watched([0, 0, 0, 9]).scores and watch.opened_at == 4


def test_a_negative_threshold_shows_nothing_before_it_opens() -> None:
    watch = watched([-9, -9, -9, -1], replace(GATE, threshold=-4.0))
    assert (watch.opened_at, watch.began) == (None, 4)
    assert watched([-9, -9, -9, 0, 0], replace(GATE, threshold=-4.0)).began == 4


def test_a_state_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(SteeringError, match="not finite"):
        GATE.start().read(np.array([1, np.nan], np.float32))
    with pytest.raises(SteeringError, match="not finite"):
        watched([np.inf])


def test_how_far_it_looks_ahead() -> None:
    assert (GATE.look_ahead, replace(GATE, every=8).look_ahead) == (3, 8)


def test_it_is_part_of_the_profile_file(tmp_path: Path) -> None:
    gate = make_answer_gate(N_EMBD, layer=4, every=3, threshold=0.7, decay=0.9, bias=-0.3, action="stop")
    profile(answer_gate=gate).save(tmp_path / "p.gguf")
    found = Profile.load(tmp_path / "p.gguf")
    assert found.answer_gate is not None and found.kinds is not None
    np.testing.assert_array_equal(found.answer_gate.weight, gate.weight)
    for name in ("layer", "bias", "decay", "threshold", "first", "every", "action"):
        assert getattr(found.answer_gate, name) == getattr(gate, name), name
    assert found.used_layers == {1, 2, 4}
    profile(kinds=None, answer_gate=gate).save(tmp_path / "q.gguf")
    assert Profile.load(tmp_path / "q.gguf").kinds is None
    profile().save(tmp_path / "r.gguf")
    assert Profile.load(tmp_path / "r.gguf").answer_gate is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layer": 5}, "layer"),
        ({"layer": -1}, "layer"),
        ({"weight": np.zeros(3, np.float32)}, "weight"),
        ({"weight": np.full(N_EMBD, np.nan, np.float32)}, "weight"),
        ({"bias": float("nan")}, "bias"),
        ({"decay": 1.0}, "decay"),
        ({"decay": -0.1}, "decay"),
        ({"threshold": float("inf")}, "threshold"),
        ({"first": 0}, "first"),
        ({"first": 1.5}, "first"),
        ({"every": 0}, "every"),
        ({"every": 65}, "every"),
        ({"action": "forgive"}, "action"),
        ({"action": "off"}, "action"),
    ],
)
def test_what_is_out_of_range_is_named(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ProfileError, match=rf"answer_gate\.{problem}"):
        profile(answer_gate=replace(make_answer_gate(N_EMBD), **changes))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    profile(answer_gate=make_answer_gate(N_EMBD)).save(tmp_path / "p.gguf")
    for name in ("layer", "bias", "action"):
        key = f"finesteer.answer_gate.{name}"
        with pytest.raises(ProfileError, match=rf"answer_gate\.{name} is missing"):
            Profile.load(rewritten(tmp_path / "p.gguf", tmp_path / f"{name}.gguf", without=(key,)))
    path = rewritten(tmp_path / "p.gguf", tmp_path / "q.gguf", lists={"finesteer.optional": ["kinds"]})
    with pytest.raises(ProfileError, match=r"tensor answer_gate\.weight does not belong"):
        Profile.load(path)
    path = rewritten(tmp_path / "p.gguf", tmp_path / "s.gguf", texts={"finesteer.answer_gate.action": "forgive"})
    with pytest.raises(ProfileError, match=r"answer_gate\.action"):
        Profile.load(path)


def test_its_actions_have_names() -> None:
    assert ON_ANSWER == ("report", "steer", "rewind", "stop")
