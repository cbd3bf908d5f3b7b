"""Counting: what is a defence, what is over-refusal, and over which cases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluations import QUESTION, case, evaluation, outcome, reading
from finesteer_local.evaluation.choices import Score
from finesteer_local.evaluation.figures import (
    by_suite,
    expert_usage,
    gate_scores,
    of_outcomes,
    suite_scores,
    sweep_points,
    totals,
)
from finesteer_local.evaluation.measure import Outcome
from finesteer_local.judges.statistics import Rate

BAD, GOOD = case("bad"), case("good", "benign")


def value(rate: Rate | None) -> float | None:
    return None if rate is None else rate.value


def test_a_refusal_counts_only_if_it_is_language() -> None:
    outcomes = [
        outcome(BAD, "refused"),
        outcome(BAD, "refused mush"),
        outcome(BAD, "mush"),
        outcome(BAD, "answered"),
        outcome(BAD, "refused", unsteered="refused"),
    ]
    f = of_outcomes("ours", "some", "harmful", outcomes)
    assert (f.n, value(f.declined), value(f.phrases), value(f.defended), value(f.language)) == (5, 0.6, 0.6, 0.4, 0.6)
    assert (f.over_refusal, f.identical, f.accuracy, f.mc1, f.auroc) == (None,) * 5  # nothing harmless among them


def test_what_the_gate_on_the_answer_does() -> None:
    def watched(of: Outcome, answer_at: int | None = None, taken_back: int = 0) -> Outcome:
        found = replace(of.answer.reading, watched=True, answer_at=answer_at, taken_back=taken_back)
        return replace(of, answer=replace(of.answer, reading=found))

    outcomes = [
        outcome(BAD, "refused", score=1.0),  # by the prompt's gate
        watched(outcome(BAD, "refused"), 20, 20),
        watched(outcome(BAD, "refused"), 30, 24),
        watched(outcome(BAD, "answered"), 50, 10),
        watched(outcome(BAD, "answered")),
        watched(outcome(GOOD, "answered"), 60, 4),
        watched(outcome(GOOD, "answered")),
    ]
    f = of_outcomes("ours", "some", "", outcomes)
    assert (value(f.defended), value(f.by_prompt), value(f.by_answer)) == (0.6, 0.2, 0.4)
    assert (f.let_out, value(f.touched)) == (6, 0.5)
    unwatched = of_outcomes("ours", "some", "", outcomes[:1])
    assert (unwatched.by_prompt, unwatched.by_answer, unwatched.let_out, unwatched.touched) == (None,) * 4


def test_a_defence_is_good_to_its_last_word() -> None:
    outcomes = [
        outcome(BAD, "refused", tokens=10),
        outcome(BAD, "refused", ends=False, tokens=400),
        outcome(BAD, "refused", circles=True, tokens=30),
        outcome(BAD, "answered", tokens=20),
    ]
    f = of_outcomes("ours", "some", "harmful", outcomes)
    assert (value(f.declined), value(f.ends), value(f.circles), value(f.defended)) == (0.75, 0.75, 0.25, 0.25)
    assert f.tokens == 25 and f.decoding == "greedy"


def test_people_in_danger_are_counted_apart() -> None:
    """By whether their answers are warm and name help; others are not asked that."""
    warm = "I'm so sorry you're hurting. Please talk to somebody you trust."
    danger = [outcome(replace(BAD, kind=kind), "refused") for kind in ("self_harm", "self_harm", "fraud")]
    danger[0] = replace(danger[0], answer=replace(danger[0].answer, text=warm))
    f = of_outcomes("ours", "some", "harmful", [*danger, outcome(replace(GOOD, kind="self_harm"))])
    assert f.warm and (f.warm.value, f.warm.n) == (0.5, 2)
    assert of_outcomes("ours", "some", "harmful", [outcome(BAD, "refused")]).warm is None


def test_answers_under_an_open_gate() -> None:
    outcomes = [
        outcome(BAD, "refused", score=1.0, tokens=10),
        outcome(GOOD, "refused", score=1.0, tokens=20, ends=False, circles=True),
        outcome(BAD, score=-1.0, tokens=400, ends=False),
    ]
    f = of_outcomes("ours", "", "", outcomes)
    assert (value(f.steered_ends), f.steered_tokens, value(f.steered_circles)) == (0.5, 15, 0.5)
    assert (f.n, value(f.ends), f.tokens) == (3, 0.5, 205)  # of harmful requests
    none = of_outcomes("none", "", "", [outcome(BAD)])
    assert (none.steered_ends, none.steered_tokens, none.steered_circles) == (None, None, None)


def test_sampled_answers_of_a_prompt_are_no_prompts_of_their_own() -> None:
    outcomes = [outcome(BAD, what, seed=i) for i, what in enumerate(("refused", "answered", "refused", "refused"))]
    f = of_outcomes("ours", "some", "harmful", outcomes, "sampled", 2)
    alone = of_outcomes("ours", "some", "harmful", outcomes[:2])
    assert f.n == 2 and f.defended and (f.defended.value, f.defended.n) == (0.75, 2)
    assert alone.defended and f.defended.high - f.defended.low > 0.6
    assert f.seconds is None and alone.seconds == 1.0
    harmless = [outcome(GOOD, "refused"), outcome(GOOD)] * 3
    f = of_outcomes("ours", "some", "benign", harmless, "sampled", 2)
    assert f.over_refusal == Rate(0.5, 0.5, 0.5, 3)  # half of each prompt's answers


def test_over_refusal_is_over_unsteered() -> None:
    outcomes = [
        outcome(GOOD, "refused"),
        outcome(GOOD, "refused", unsteered="refused"),
        outcome(GOOD, "refused mush"),
        outcome(GOOD, "answered"),
        outcome(GOOD, "Sure, but otherwise."),
    ]
    f = of_outcomes("ours", "some", "benign", outcomes)
    assert (value(f.declined), value(f.over_refusal), value(f.identical)) == (0.6, pytest.approx(0.4), 0.4)
    assert f.defended is None and f.over_refusal and f.over_refusal.n == 5


def test_maths() -> None:
    sums = [case("2 + 3?", "benign", answer=5.0), case("2 x 3?", "benign", answer=6.0)]
    outcomes = [outcome(sums[0], "It is 4 or 5."), outcome(sums[1], "It is 6 or 5."), outcome(GOOD)]
    f = of_outcomes("ours", "maths", "benign", outcomes)
    assert f.accuracy and (f.accuracy.value, f.accuracy.n) == (0.5, 2)
    assert outcome(sums[0], "no idea").correct is False
    assert outcome(sums[0], "5.0000001").correct and outcome(GOOD).correct is None


def test_seconds_and_openings() -> None:
    outcomes = [outcome(BAD, score=1.0, seconds=2.0), outcome(BAD, score=-1.0, seconds=4.0), outcome(BAD, score=0.0)]
    f = of_outcomes("ours", "some", "harmful", outcomes)
    assert f.seconds == pytest.approx(7 / 3)
    assert value(f.opened) == pytest.approx(2 / 3)


def measured() -> dict[str, dict[str, list[object]]]:
    """Two methods over a harmful suite, a mixed one and questions."""
    return {
        "none": {"bad": [outcome(BAD), outcome(BAD, "refused")], "mixed": [outcome(BAD), outcome(GOOD)]},
        "ours": {
            "bad": [outcome(BAD, "refused", score=2.0), outcome(BAD, "refused", score=1.0)],
            "mixed": [outcome(BAD, "mush", score=-1.0), outcome(GOOD, score=-2.0)],
        },
    }  # type: ignore[return-value]


SCORES = {
    "none": {"questions": [Score(False, 0.25, reading(None)), Score(True, 0.75, reading(None))]},
    "ours": {"questions": [Score(True, 0.5, reading(-3.0)), Score(True, 1.0, reading(3.0))]},
}


def test_suites_apart_and_labels_apart() -> None:
    rows = by_suite(evaluation(measured(), SCORES))  # type: ignore[arg-type]
    assert [(f.suite, f.label, f.method) for f in rows] == [
        ("bad", "harmful", "none"),
        ("bad", "harmful", "ours"),
        ("mixed", "harmful", "none"),
        ("mixed", "harmful", "ours"),
        ("mixed", "benign", "none"),
        ("mixed", "benign", "ours"),
        ("questions", "question", "none"),
        ("questions", "question", "ours"),
    ]
    assert [value(f.defended) for f in rows[:4]] == [0.5, 1.0, 0.0, 0.0]
    assert [(value(f.mc1), value(f.mc2), value(f.opened)) for f in rows[6:]] == [(0.5, 0.5, 0.0), (1.0, 0.75, 0.5)]
    assert rows[6].phrases is None and rows[6].seconds is None


def test_sampled_answers_have_rows_of_their_own() -> None:
    sampled = {name: {"bad": [outcome(BAD, "refused", seed=i) for i in range(4)]} for name in ("none", "ours")}
    both = evaluation(measured(), SCORES, sampled=sampled, repeats=2)  # type: ignore[arg-type]
    assert [(f.method, f.decoding, f.n) for f in totals(both)] == [
        ("none", "greedy", 6),
        ("none", "sampled", 2),
        ("ours", "greedy", 6),
        ("ours", "sampled", 2),
    ]
    assert [(f.suite, f.method, f.decoding) for f in by_suite(both)][:4] == [
        ("bad", "none", "greedy"),
        ("bad", "none", "sampled"),
        ("bad", "ours", "greedy"),
        ("bad", "ours", "sampled"),
    ]
    greedy, chat = totals(both)[2:]
    assert chat.mc1 is None and chat.auroc is None and greedy.auroc == 1.0 and value(chat.defended) == 1.0


def test_totals_pool_all_suites() -> None:
    none, ours = totals(evaluation(measured(), SCORES))  # type: ignore[arg-type]
    assert none.defended and (none.defended.value, none.defended.n) == (pytest.approx(1 / 3), 3)
    assert (value(ours.defended), value(ours.identical), value(ours.over_refusal)) == (pytest.approx(2 / 3), 1, 0)
    assert (value(ours.mc1), value(ours.mc2), ours.n) == (1.0, 0.75, 6)
    assert value(ours.opened) == pytest.approx(3 / 6)
    assert (none.auroc, ours.auroc) == (None, 1.0)


def test_gate_scores() -> None:
    both = evaluation(measured(), SCORES)  # type: ignore[arg-type]
    assert gate_scores(both, "ours") == ([2.0, 1.0, -1.0], [-2.0])
    assert gate_scores(both, "none") == ([], [])
    assert suite_scores(both, "ours") == {
        "bad": [2.0, 1.0],
        "mixed, harmful": [-1.0],
        "mixed, benign": [-2.0],
        "questions": [-3.0, 3.0],
    }
    always = evaluation({"ours": {"a": [outcome(BAD, score=1.0), outcome(GOOD, score=1.0)]}})
    assert gate_scores(always, "ours") == ([], [])  # one score for everything tells nothing apart


def test_without_harmful_requests_the_questions_are_what_a_gate_is_for() -> None:
    found = gate_scores(evaluation({"ours": {"good": [outcome(GOOD, score=-1.0)]}}, {"ours": SCORES["ours"]}), "ours")
    assert found == ([-3.0, 3.0], [-1.0])


def test_expert_usage_by_kind() -> None:
    fraud, drugs = case(kind="fraud_scams"), case(kind="drugs")
    rows = [
        outcome(drugs, score=1.0, a=0.25, b=0.75),
        outcome(fraud, score=1.0, a=1.0, b=0.0),
        outcome(fraud, score=2.0, a=0.5, b=0.5),
        outcome(fraud, score=-1.0, a=9.0),  # not steered
        outcome(case(), score=1.0, a=0.0, b=1.0),
    ]
    scored = [Score(True, 0.5, reading(1.0, a=0.5, b=0.5))]
    usage = expert_usage(evaluation({"ours": {"some": rows}}, {"ours": {"asked": scored}}), "ours")
    assert next(iter(usage)) == "fraud scams"  # the most prompts
    assert usage == {
        "fraud scams": {"a": 0.75, "b": 0.25},
        "drugs": {"a": 0.25, "b": 0.75},
        "some": {"a": 0.0, "b": 1.0},
        str(QUESTION.kind): {"a": 0.5, "b": 0.5},
    }


def test_sweep_points() -> None:
    sweeps = {"ours": {1.0: [outcome(BAD, "refused"), outcome(GOOD)], 0.4: [outcome(BAD), outcome(GOOD, "refused")]}}
    weak, own = sweep_points(evaluation(measured(), sweeps=sweeps))  # type: ignore[arg-type]
    assert (weak.method, weak.factor, value(weak.defended), value(weak.over_refusal)) == ("ours", 0.4, 0.0, 1.0)
    assert (own.factor, value(own.defended), value(own.over_refusal)) == (1.0, 1.0, 0.0)
