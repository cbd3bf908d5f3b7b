"""An evaluation as plain values: what `--json` prints, and what the report is drawn from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from finesteer_local.evaluation.figures import (
    GREEDY,
    SAMPLED,
    Figures,
    SweepPoint,
    by_suite,
    expert_usage,
    sweep_points,
    totals,
)
from finesteer_local.evaluation.measure import Evaluation, Outcome
from finesteer_local.evaluation.suites import Case


@dataclass(frozen=True)
class Setting:
    """What was measured, where and how."""

    model: str
    fingerprint: str
    profiles: tuple[str, ...]
    versions: dict[str, str]
    command: str
    date: str
    max_tokens: int
    temperature: float = 0.0
    seeds: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Results:
    """Everything that the report and `--json` say about an evaluation."""

    setting: Setting
    evaluation: Evaluation
    totals: list[Figures]
    suites: list[Figures]
    sweep: list[SweepPoint]

    @classmethod
    def of(cls, evaluation: Evaluation, setting: Setting) -> Results:
        return cls(setting, evaluation, totals(evaluation), by_suite(evaluation), sweep_points(evaluation))

    @property
    def leading(self) -> list[Figures]:
        """One of the totals a method: of its sampled answers, as a chat gives them, or greedy where none are."""
        by_method = {f.method: f for f in self.totals}  # the sampled ones come last
        return list(by_method.values())

    def as_json(self) -> dict[str, Any]:
        """Values that JSON can hold; shares with their 95 % confidence interval and the number of cases."""
        evaluation = self.evaluation
        values = {
            "setting": asdict(self.setting),
            "judge": evaluation.judge,
            "coherence": asdict(evaluation.coherence),
            "methods": [
                {"name": m.name, "source": m.source, "steering": m.intervention.summary, "notes": dict(m.notes)}
                for m in evaluation.methods
            ],
            "totals": [_without_nothing(asdict(f)) for f in self.totals],
            "suites": [_without_nothing(asdict(f)) for f in self.suites],
            "experts": {m.name: used for m in evaluation.methods if (used := expert_usage(evaluation, m.name))},
            "sweep": [asdict(point) for point in self.sweep],
        }
        rounded: dict[str, Any] = _rounded(values)
        return rounded

    def rows(self) -> list[dict[str, Any]]:
        """Every answer and every scored question, suite by suite, greedy ones first, case by case, method by method."""
        evaluation = self.evaluation
        rows: list[dict[str, Any]] = []
        for suite in evaluation.suites:
            for kept in (evaluation.outcomes, evaluation.sampled):
                answered = [kept.get((m.name, suite.name), []) for m in evaluation.methods]
                for outcomes in zip(*answered, strict=True):
                    for method, outcome in zip(evaluation.methods, outcomes, strict=True):
                        rows.append(_answer_row(suite.name, method.name, outcome))
            scored = [evaluation.scores[m.name, suite.name] for m in evaluation.methods]
            for scores in zip(*scored, strict=True):
                for method, (case, score) in zip(evaluation.methods, scores, strict=True):
                    row = {"mc1": score.mc1, "mc2": score.mc2, "g": score.reading.g, "score": score.reading.score}
                    rows.append({**_case(suite.name, method.name, case), **row})
        return rows


def _case(suite: str, method: str, case: Case) -> dict[str, Any]:
    about = {"label": case.label, "kind": case.kind, "source": case.source}
    return {"suite": suite, "method": method, **about, "messages": case.messages}


def _answer_row(suite: str, method: str, outcome: Outcome) -> dict[str, Any]:
    reading, verdict = outcome.answer.reading, outcome.verdict
    return {
        **_case(suite, method, outcome.case),
        "decoding": GREEDY if outcome.seed is None else SAMPLED,
        "seed": outcome.seed,
        "answer": outcome.answer.text,
        "tokens": outcome.answer.n_tokens,
        "declined": verdict.declined,
        "ends": verdict.ends,
        "circles": verdict.circles,
        "language": verdict.language,
        "phrases": outcome.phrases,
        "identical": outcome.identical,
        "correct": outcome.correct,
        "g": reading.g,
        "score": reading.score,
        "threshold": reading.threshold,
        **({"answer_at": reading.answer_at, "taken_back": reading.taken_back} if reading.watched else {}),
        "seconds": None if outcome.answer.seconds is None else round(outcome.answer.seconds, 3),
    }


def _without_nothing(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
