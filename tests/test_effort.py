"""What a training does in the time that it may take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finesteer_local.runtime import open_model
from finesteer_local.training import effort as module
from finesteer_local.training.effort import (
    EFFORTS,
    LAST_PART,
    MIN_WATCHED,
    SETTING_UP,
    SMALL,
    Deadline,
    Pace,
    effort_of,
    fitting,
)
from finesteer_local.training.model_data import ModelData
from test_train import training_data

PACE = Pace(answer=0.2, read=0.01, lesson=0.5)


@pytest.mark.parametrize("learns", [True, False])
def test_more_time_is_more_of_everything(learns: bool) -> None:
    plans = [fitting(minutes, PACE, SMALL, learns=learns, judge="refusal") for minutes in (0.5, 2, 5, 10, 15, 300)]
    for name in ("share", "lessons", "answers"):
        values = [getattr(plan, name) for plan in plans]
        assert values == sorted(values) and values[0] < values[-1]
    assert plans[-1] == replace(EFFORTS["full"], watched=0)  # no answers are watched at this pace
    assert {plan.prompts for plan in plans} == {None}  # the gate takes what time is left


@pytest.mark.parametrize("minutes", [11, 16, 24, 60])
def test_half_of_the_time_is_left_for_the_gate(minutes: float) -> None:
    plan = fitting(minutes, PACE, SMALL, learns=True, judge="refusal")
    assert PACE.first_part(plan, learns=True, judge="refusal") + SETTING_UP <= minutes * 30


@pytest.mark.parametrize("quality", ["quick", "standard"])
def test_a_large_model_reads_as_much_as_it_can_pay_for(quality: str) -> None:
    usual = EFFORTS[quality]
    sizes = [module.LARGE, 1_540_000_000, 3_000_000_000, 8_000_000_000]
    amounts = [effort_of(quality, size).prompts or 0 for size in sizes]
    assert amounts[0] == usual.prompts and amounts == sorted(set(amounts), reverse=True)
    read = [amount * size for amount, size in zip(amounts, sizes, strict=True)]
    assert read == sorted(read), "a larger model may still cost more"
    assert effort_of(quality, 10**12).prompts == module.MIN_PROMPTS
    assert effort_of("full", 10**12).prompts is None


@pytest.mark.parametrize("quality", EFFORTS)
def test_only_a_small_model_needs_all_lessons(quality: str) -> None:
    assert effort_of(quality, SMALL) == EFFORTS[quality]
    half = replace(EFFORTS[quality], lessons=EFFORTS[quality].lessons // 2)
    assert effort_of(quality, SMALL + 1) == half


@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
def test_what_fits_depends_on_the_size(size: int) -> None:
    for minutes, quality in ((0.1, "quick"), (300, "full")):
        plan = fitting(minutes, PACE, size, learns=True, judge="refusal")
        assert plan == replace(effort_of(quality, size), prompts=None, watched=0)


def test_a_slower_machine_does_less() -> None:
    slow = replace(PACE, answer=PACE.answer * 8, lesson=PACE.lesson * 8)
    fast, slowly = (fitting(30, pace, SMALL, learns=True, judge="refusal") for pace in (PACE, slow))
    assert slowly.lessons < fast.lessons and slowly.answers < fast.answers


def test_too_little_time_is_what_is_quickest() -> None:
    assert fitting(0.01, PACE, SMALL, learns=True, judge="refusal") == replace(
        EFFORTS["quick"], prompts=None, watched=0
    )


def test_the_least_is_a_gate_from_few_prompts() -> None:
    plan = fitting(0.01, PACE, SMALL, learns=True, judge="refusal")
    first = SETTING_UP + PACE.first_part(plan, learns=True, judge="refusal")
    for n, read in ((300, 300), (70_000, module.MIN_PROMPTS)):
        seconds = module.least_seconds(plan, PACE, n, learns=True, judge="refusal")
        assert seconds == pytest.approx(first + PACE.gate(read))


def test_seconds_add_up() -> None:
    for learns, work in ((True, EFFORTS["standard"].lessons * 0.5), (False, 160 * 0.2 * module._PAIR)):
        name = "refusal, learnt" if learns else "refusal"
        answers = module.OWN_ANSWERS + module._TRIALS[name] * 32
        wanted = work + answers * 0.2
        assert PACE.first_part(EFFORTS["standard"], learns=learns, judge="refusal") == pytest.approx(wanted)
    assert PACE.gate(1000) == pytest.approx(10 + 1000 * module.FIT_SECONDS)


def test_a_gate_with_a_teacher_is_learnt_sooner(tmp_path: Path) -> None:
    """From as many prompts as the teacher knows; from more, labels alone are learnt from."""
    data = training_data()
    taught = replace(data, teachers=[tmp_path / "teacher.npz"])
    assert module.fit_seconds(500, data) == 500 * module.FIT_SECONDS > module.fit_seconds(500, taught)
    n = module.PROMPTS + 1
    assert module.fit_seconds(n, taught) == module.fit_seconds(n, data)


def test_what_is_late_already_does_the_least() -> None:
    """And then stops; with time left, a portion is what it always is."""
    items = range(5000)
    late = [(n, list(part)) for n, part in module.portions(items, 2000, Deadline(-1.0), least=1000)]
    assert late == [(1000, list(items[:1000]))]
    in_time = [(n, list(part)) for n, part in module.portions(items, 2000, Deadline(None), least=1000)]
    assert [n for n, _ in in_time] == [2000, 4000, 5000]
    assert [item for _, part in in_time for item in part] == list(items)
    few = [n for n, _ in module.portions(items[:300], 2000, Deadline(-1.0), least=1000)]
    assert few == [300]


def test_answers_are_watched_in_a_part_of_the_time() -> None:
    pace = replace(PACE, watched=0.5)
    plans = [fitting(minutes, pace, SMALL, learns=True, judge="refusal").watched for minutes in (1, 10, 20, 300)]
    assert plans[0] == 0  # a few answers teach nothing
    assert MIN_WATCHED <= plans[1] < plans[2] < plans[3] == EFFORTS["full"].watched
    assert pace.answers_gate(plans[1]) <= 600 * LAST_PART
    amounts = [each.watched for each in EFFORTS.values()]
    assert amounts == sorted(amounts) and amounts[0] >= MIN_WATCHED


def test_what_was_learnt_from_more_or_less_is_kept_apart() -> None:
    assert len({each.name for each in EFFORTS.values()}) == 3
    assert replace(EFFORTS["full"], prompts=7).name == EFFORTS["full"].name  # the gate comes after it
    assert all(set(each.name) <= set("0123456789.-") for each in EFFORTS.values())  # names a folder


def test_a_machine_is_measured(tiny: Path, tmp_path: Path) -> None:
    data = training_data()
    llama = open_model(tiny, n_threads=1)
    pace = Pace.measured(ModelData(llama, data, tmp_path / "run"), data, 1)
    assert pace.read > 0 and pace.answer > 0 and pace.lesson == 0  # nothing is learnt through it
    assert pace.watched == 0
    assert not any((tmp_path / "run").iterdir())


def test_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    deadline = Deadline(30)
    assert deadline.left == 30
    now[0] = 140.0
    assert deadline.left == -10
    assert Deadline(None).left == float("inf")
    now[0] = 100.0
    assert Deadline(30).sooner(20).left == 10 and Deadline(None).sooner(20).left == float("inf")
