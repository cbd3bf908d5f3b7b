"""Evaluations made by hand, for what is counted and drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finesteer_local.evaluation.answers import EvalAnswer
from finesteer_local.evaluation.choices import Score
from finesteer_local.evaluation.interventions import UNSTEERED, Intervention, ProfileSteering, Reading
from finesteer_local.evaluation.measure import Evaluation, Method, Outcome
from finesteer_local.evaluation.results import Results, Setting
from finesteer_local.evaluation.suites import Case, Choices, Suite
from finesteer_local.judges.fluency import Coherence
from finesteer_local.judges.whole import Verdict

SETTING = Setting(
    model="some <model>",
    fingerprint="0" * 64,
    profiles=("safety (layer 2, strength 1, scope turn)",),
    versions={"finesteer-local": "0.1.0"},
    command="finesteer-local eval model.gguf --profile safety",
    date="2026-11-24 12:00 UTC",
    max_tokens=400,
    temperature=0.8,
    seeds=(0, 1),
)
QUESTION = Case([{"role": "user", "content": "is it?"}], choices=Choices("yes.", ("yes.",), ("no.",)), kind="myths")


def case(text: str = "please", label: str = "harmful", **fields: object) -> Case:
    return Case([{"role": "user", "content": text}], label, **fields)  # type: ignore[arg-type]


def reading(score: float | None, threshold: float | None = 0.0, **experts: float) -> Reading:
    """Open where the score reaches the threshold; without a score the method does nothing."""
    if score is None:
        return Reading()
    steers = threshold is None or score >= threshold
    return Reading(float(steers), score, threshold, steers, tuple(experts.items()) if steers else ())


def outcome(
    of: Case,
    what: str = "answered",
    *,
    score: float | None = None,
    threshold: float | None = 0.0,
    unsteered: str = "answered",
    seconds: float = 1.0,
    ends: bool = True,
    circles: bool = False,
    tokens: int = 5,
    seed: int | None = None,
    **experts: float,
) -> Outcome:
    """`what` it says: answered, refused, mush (no language), refused mush, or anything else literally."""
    texts = {"answered": "Sure.", "refused": "I'm sorry, no.", "mush": "zq zq", "refused mush": "I'm sorry zq zq"}
    text, plain = texts.get(what, what), texts.get(unsteered, unsteered)
    return Outcome(
        of,
        plain,
        EvalAnswer(text, ends, tokens, 0.1, seconds, reading(score, threshold, **experts)),
        Verdict("sorry" in text, ends, circles, "zq" not in text),
        phrases="sorry" in text,
        declined_unsteered="sorry" in plain,
        seed=seed,
    )


def evaluation(
    outcomes: Mapping[str, Mapping[str, Sequence[Outcome]]],
    scores: Mapping[str, Mapping[str, Sequence[Score]]] | None = None,
    sweeps: Mapping[str, Mapping[float, Sequence[Outcome]]] | None = None,
    interventions: Mapping[str, Intervention] | None = None,
    sampled: Mapping[str, Mapping[str, Sequence[Outcome]]] | None = None,
    repeats: int = 0,
) -> Evaluation:
    """From outcomes (and scores) by method and suite; every method has the same suites."""
    scores, sampled = scores or {}, sampled or {}
    first = next(iter(outcomes))
    names = dict.fromkeys([*outcomes[first], *scores.get(first, {})])
    suites = [
        Suite(
            name,
            [o.case for o in outcomes[first].get(name, [])] + [QUESTION] * len(scores.get(first, {}).get(name, [])),
        )
        for name in names
    ]
    other = ProfileSteering()  # equal to unsteered, but another object
    methods = [
        Method(name, (interventions or {}).get(name, UNSTEERED if name == "none" else other), f"from {name}")
        for name in outcomes
    ]
    return Evaluation(
        methods,
        suites,
        Coherence(3.5, 0.3),
        "some judge",
        {(m, s): list(outcomes[m].get(s, [])) for m in outcomes for s in names},
        {(m, s): [(QUESTION, x) for x in scores.get(m, {}).get(s, [])] for m in outcomes for s in names},
        {m: {f: list(o) for f, o in sweep.items()} for m, sweep in (sweeps or {}).items()},
        {(m, s): list(sampled.get(m, {}).get(s, [])) for m in outcomes for s in names},
        repeats,
    )


def results(measured: Evaluation) -> Results:
    return Results.of(measured, SETTING)
