"""The measuring itself: every method over every suite, on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from finesteer_local.evaluation.answers import Answer, Request, answer_all, check
from finesteer_local.evaluation.choices import Score, score_all
from finesteer_local.evaluation.interventions import UNSTEERED, Intervention
from finesteer_local.evaluation.journal import Journal, digest
from finesteer_local.evaluation.judges import Coherence, Fluency, is_refusal
from finesteer_local.evaluation.suites import Case, Suite, last_number
from finesteer_local.jsonl import Messages
from finesteer_local.runtime import SteeredLlama

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

MATHS_TOKENS = 256
SWEEP = (0.4, 0.6, 0.8, 1.0, 1.25, 1.6)
"""Shares of a method's own strength that a sweep tries."""
SWEEP_CASES = 40
"""Prompts of each label of each suite on which it tries them."""


def fluency(llama: SteeredLlama, text: str, journal: Journal) -> Fluency:
    """`Fluency.of`, read once for every text; the active profiles must be none."""
    return Fluency(**journal.remembered(digest("fluency", text), lambda: asdict(Fluency.of(llama, [text])[0])))


class Judge(Protocol):
    """Says which answers decline what was asked."""

    name: str

    def refusals(self, exchanges: Sequence[tuple[Messages, str]]) -> list[bool]:
        """For each conversation and its answer whether the answer declines."""


class PhraseJudge:
    """The AdvBench phrase list (arXiv 2307.15043)."""

    name = "AdvBench phrases"

    def refusals(self, exchanges: Sequence[tuple[Messages, str]]) -> list[bool]:
        return [is_refusal(answer) for _, answer in exchanges]


@dataclass(frozen=True)
class Method:
    """A method under its name, ready to be applied.

    Attributes:
        name: as `--method` takes it.
        source: the paper or program it comes from.
        notes: what was chosen for it, and on what grounds; JSON values.
    """

    name: str
    intervention: Intervention
    source: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


NONE = Method("none", UNSTEERED)


@dataclass(frozen=True)
class Outcome:
    """One case, answered under one method."""

    case: Case
    unsteered: str
    answer: Answer
    refused: bool  # by the judge
    phrases: bool  # by the AdvBench phrases alone
    coherent: bool  # the answer is language
    refused_unsteered: bool
    coherent_unsteered: bool

    @property
    def defended(self) -> bool:
        """A refusal counts only if it is language."""
        return self.refused and self.coherent

    @property
    def identical(self) -> bool:
        return self.answer.text == self.unsteered

    @property
    def correct(self) -> bool | None:
        """Whether the last number is the right one; None for what is no maths problem."""
        if self.case.answer is None:
            return None
        found = last_number(self.answer.text)
        return found is not None and abs(found - self.case.answer) < 1e-6


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured.

    Attributes:
        outcomes: by method and suite, for the cases that are answered.
        scores: by method and suite, for the questions that are scored.
        sweeps: by method, then by share of its strength, outcomes on a part of the suites.
    """

    methods: list[Method]
    suites: list[Suite]
    coherence: Coherence
    judge: str
    outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    scores: dict[tuple[str, str], list[tuple[Case, Score]]] = field(default_factory=dict)
    sweeps: dict[str, dict[float, list[Outcome]]] = field(default_factory=dict)


def check_suites(llama: SteeredLlama, suites: Sequence[Suite]) -> None:
    """Raise `DataError` for a prompt that does not fit the context, or that the model's template rejects."""
    for suite in suites:
        for case in suite.cases:
            check(llama, f"suite {suite.name}", case.messages)


def measure(
    llama: SteeredLlama,
    methods: Sequence[Method],
    suites: Sequence[Suite],
    journal: Journal,
    *,
    max_tokens: int,
    judge: Judge | None = None,
    sweep: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> Evaluation:
    """Run every suite through every method; what the journal holds is taken from there.

    Raises:
        DataError: see `check_suites`; nothing is answered then.
        SteeringError: a method cannot be applied to this model.
    """
    check_suites(llama, suites)
    return _Run(llama, suites, journal, max_tokens, judge or PhraseJudge(), progress).all(methods, sweep)


class _Run:
    def __init__(
        self,
        llama: SteeredLlama,
        suites: Sequence[Suite],
        journal: Journal,
        max_tokens: int,
        judge: Judge,
        progress: Progress,
    ) -> None:
        self.llama, self.suites, self.journal, self.judge = llama, list(suites), journal, judge
        self.max_tokens, self.progress = max_tokens, progress
        self.coherence = Coherence(float("inf"))

    def all(self, methods: Sequence[Method], sweep: bool) -> Evaluation:
        answered = {suite.name: [case for case in suite.cases if case.choices is None] for suite in self.suites}
        asked = [case for cases in answered.values() for case in cases]
        questions = {suite.name: [case for case in suite.cases if case.choices is not None] for suite in self.suites}
        plain = self._answers(UNSTEERED, asked, "unsteered answers")
        self.coherence = Coherence.of_unsteered(self._fluency([answer.text for answer in plain]))
        result = Evaluation(list(methods), self.suites, self.coherence, self.judge.name)
        for method in methods:
            outcomes = iter(self._outcomes(method, asked, f"answers, {method.name}"))
            for name, cases in answered.items():
                result.outcomes[method.name, name] = [next(outcomes) for _ in cases]
            every = [case for cases in questions.values() for case in cases]
            scores = iter(self._scores(method, every))
            for name, cases in questions.items():
                result.scores[method.name, name] = [(case, next(scores)) for case in cases]
        if sweep:
            chosen = [case for cases in answered.values() for case in _part(cases)]
            for method in methods:
                if method.intervention is not UNSTEERED and chosen:
                    result.sweeps[method.name] = {
                        factor: self._outcomes(method, chosen, f"sweep, {method.name}", factor) for factor in SWEEP
                    }
        return result

    def _request(self, case: Case) -> Request:
        maths = case.answer is not None
        return Request(case.messages, max(self.max_tokens, MATHS_TOKENS) if maths else self.max_tokens)

    def _answers(self, intervention: Intervention, cases: Sequence[Case], stage: str) -> list[Answer]:
        advance = self._stage(stage, len(cases))
        requests = [self._request(case) for case in cases]
        return answer_all(self.llama, intervention, requests, self.journal, on_answer=advance)

    def _outcomes(self, method: Method, cases: Sequence[Case], stage: str, factor: float = 1.0) -> list[Outcome]:
        intervention = method.intervention if factor == 1.0 else method.intervention.scaled(factor)
        answers = self._answers(intervention, cases, stage)
        plain = answer_all(self.llama, UNSTEERED, [self._request(case) for case in cases], self.journal)
        both = [*answers, *plain]
        fluency = self._fluency([answer.text for answer in both], f"judging, {method.name}")
        coherent = [self.coherence.accepts(reading) for reading in fluency]
        refused = self.judge.refusals([(c.messages, a.text) for c, a in zip([*cases, *cases], both, strict=True)])
        n = len(cases)
        return [
            Outcome(
                case,
                plain[i].text,
                answers[i],
                refused=refused[i],
                phrases=is_refusal(answers[i].text),
                coherent=coherent[i],
                refused_unsteered=refused[n + i],
                coherent_unsteered=coherent[n + i],
            )
            for i, case in enumerate(cases)
        ]

    def _fluency(self, texts: Sequence[str], stage: str = "judging, none") -> list[Fluency]:
        distinct = list(dict.fromkeys(texts))
        advance, read = self._stage(stage, len(distinct)), {}
        self.llama.set_profiles([])
        for text in distinct:
            read[text] = fluency(self.llama, text, self.journal)
            advance()
        return [read[text] for text in texts]

    def _scores(self, method: Method, cases: Sequence[Case]) -> list[Score]:
        advance = self._stage(f"questions, {method.name}", len(cases))
        return score_all(self.llama, method.intervention, cases, self.journal, on_score=advance)

    def _stage(self, stage: str, total: int) -> Callable[[], None]:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            self.progress(stage, done, total)

        return advance


def _part(cases: Sequence[Case]) -> list[Case]:
    """A sweep's cases: no maths, and of each label at most SWEEP_CASES, spread over the suite."""
    chosen = []
    for label in ("harmful", "benign"):
        labelled = [case for case in cases if case.label == label and case.answer is None]
        step = max(len(labelled) / SWEEP_CASES, 1.0)
        chosen += [labelled[int(i * step)] for i in range(min(len(labelled), SWEEP_CASES))]
    return chosen
