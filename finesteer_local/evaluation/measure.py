"""The measuring itself: every method over every suite, on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from finesteer_local.evaluation.answers import EvalAnswer, EvalRequest, answer_all, check
from finesteer_local.evaluation.choices import Score, score_all
from finesteer_local.evaluation.interventions import UNSTEERED, Intervention
from finesteer_local.evaluation.journal import Journal, digest
from finesteer_local.evaluation.suites import Case, Suite, last_number
from finesteer_local.jsonl import Messages
from finesteer_local.judges.fluency import Coherence, Fluency
from finesteer_local.judges.phrases import is_refusal
from finesteer_local.judges.whole import Verdict, circles, declines
from finesteer_local.runtime import SteeredLlama
from finesteer_local.training.progress import Progress, quiet

MAX_TOKENS = 400
TEMPERATURE = 0.8
"""The temperature of `chat`."""
SEEDS = (0, 1, 2)
MATHS_TOKENS = 256
PHRASE_TOKENS = 48
"""The AdvBench phrases are looked for in so many tokens of an answer, as before whole answers were judged."""
SWEEP = (0.4, 0.6, 0.8, 1.0, 1.25, 1.6)
"""Shares of a method's own strength that a sweep tries."""
SWEEP_CASES = 40
"""Prompts of each label of each suite on which it tries them."""


def fluency(llama: SteeredLlama, text: str, journal: Journal) -> Fluency:
    """`Fluency.throughout`, read once for every text; the active profiles must be none."""
    key = digest("fluency throughout", text)
    return Fluency(**journal.remembered(key, lambda: asdict(Fluency.throughout(llama, [text])[0])))


class Judge(Protocol):
    """Says which answers decline what was asked."""

    name: str

    def refusals(self, exchanges: Sequence[tuple[Messages, str]]) -> list[bool]:
        """For each conversation and its answer whether the answer declines."""


class WholeJudge:
    """What an answer says from its first sentence to its last (`whole.declines`)."""

    name = "the judge of whole answers"

    def refusals(self, exchanges: Sequence[tuple[Messages, str]]) -> list[bool]:
        return [declines(answer) for _, answer in exchanges]


class PhraseJudge:
    """The AdvBench phrase list (arXiv 2307.15043), anywhere in the answer."""

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
    """One answer to a case, under one method.

    Attributes:
        unsteered: the unsteered model's text, of the same seed where it is sampled.
        verdict: what is said about the whole answer; whether it declines, by the run's judge.
        phrases: whether one of the AdvBench phrases is in its first PHRASE_TOKENS tokens.
        seed: what the answer was drawn with; None where it is greedy.
    """

    case: Case
    unsteered: str
    answer: EvalAnswer
    verdict: Verdict
    phrases: bool
    declined_unsteered: bool
    seed: int | None = None

    @property
    def identical(self) -> bool:
        return self.answer.text == self.unsteered

    @property
    def by_prompt(self) -> bool:
        """Whether it is defended, and the gate on the prompt opened."""
        return self.verdict.defended and self.answer.reading.g > 0

    @property
    def by_answer(self) -> bool:
        """Whether it is defended, and the gate on the answer opened."""
        return self.verdict.defended and self.answer.reading.answer_at is not None

    @property
    def n_let_out(self) -> int | None:
        """The answer's tokens that stayed when the gate on it opened; None where it did not."""
        reading = self.answer.reading
        return None if reading.answer_at is None else reading.answer_at - reading.taken_back

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
        outcomes: greedy answers by method and suite, one for each case that is answered.
        sampled: sampled answers by method and suite, `repeats` in a row for each case that is no maths problem.
        repeats: sampled answers a prompt; 0 where none were asked for.
        scores: by method and suite, for the questions that are scored.
        sweeps: by method, then by share of its strength, outcomes on a part of the suites: one a prompt, drawn with
            the first seed, or greedy where nothing is sampled.
    """

    methods: list[Method]
    suites: list[Suite]
    coherence: Coherence
    judge: str
    outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    scores: dict[tuple[str, str], list[tuple[Case, Score]]] = field(default_factory=dict)
    sweeps: dict[str, dict[float, list[Outcome]]] = field(default_factory=dict)
    sampled: dict[tuple[str, str], list[Outcome]] = field(default_factory=dict)
    repeats: int = 0


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
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    seeds: Sequence[int] = SEEDS,
    judge: Judge | None = None,
    sweep: bool = False,
    progress: Progress = quiet,
) -> Evaluation:
    """Run every suite through every method; what the journal holds is taken from there.

    Args:
        max_tokens: longest answer; maths gets more.
        temperature, seeds: every prompt is answered greedily, and once more with each of the seeds. Maths is not.

    Raises:
        DataError: see `check_suites`; nothing is answered then.
        SteeringError: a method cannot be applied to this model.
    """
    check_suites(llama, suites)
    run = _Run(llama, suites, journal, max_tokens, temperature, tuple(seeds), judge or WholeJudge(), progress)
    return run.all(methods, sweep)


_Asked = tuple[Case, EvalRequest]


class _Run:
    def __init__(
        self,
        llama: SteeredLlama,
        suites: Sequence[Suite],
        journal: Journal,
        max_tokens: int,
        temperature: float,
        seeds: tuple[int, ...],
        judge: Judge,
        progress: Progress,
    ) -> None:
        self.llama, self.suites, self.journal, self.judge = llama, list(suites), journal, judge
        self.max_tokens, self.temperature, self.seeds = max_tokens, temperature, seeds
        self.progress = progress
        self.coherence = Coherence(float("inf"))

    def all(self, methods: Sequence[Method], sweep: bool) -> Evaluation:
        answered = {suite.name: [case for case in suite.cases if case.choices is None] for suite in self.suites}
        questions = {suite.name: [case for case in suite.cases if case.choices is not None] for suite in self.suites}
        greedy = {name: [self._greedy(case) for case in cases] for name, cases in answered.items()}
        sampled = {
            name: [self._sampled(case, seed) for case in cases if case.answer is None for seed in self.seeds]
            for name, cases in answered.items()
        }
        asked = [one for name in answered for one in (*greedy[name], *sampled[name])]
        plain = self._answers(UNSTEERED, asked, "unsteered answers")
        self.coherence = Coherence.of_unsteered(self._fluency([answer.text for answer in plain]))
        result = Evaluation(
            list(methods),
            self.suites,
            self.coherence,
            self.judge.name,
            repeats=len(self.seeds) if any(sampled.values()) else 0,
        )
        for method in methods:
            outcomes = iter(self._outcomes(method, asked, f"answers, {method.name}"))
            for name in answered:
                result.outcomes[method.name, name] = [next(outcomes) for _ in greedy[name]]
                result.sampled[method.name, name] = [next(outcomes) for _ in sampled[name]]
            every = [case for cases in questions.values() for case in cases]
            scores = iter(self._scores(method, every))
            for name, cases in questions.items():
                result.scores[method.name, name] = [(case, next(scores)) for case in cases]
        if sweep:
            part = [case for cases in answered.values() for case in _part(cases)]
            chosen = [self._sampled(case, self.seeds[0]) if self.seeds else self._greedy(case) for case in part]
            for method in methods:
                if method.intervention is not UNSTEERED and chosen:
                    result.sweeps[method.name] = {
                        factor: self._outcomes(method, chosen, f"sweep, {method.name}", factor) for factor in SWEEP
                    }
        return result

    def _greedy(self, case: Case) -> _Asked:
        maths = case.answer is not None
        return case, EvalRequest(case.messages, max(self.max_tokens, MATHS_TOKENS) if maths else self.max_tokens)

    def _sampled(self, case: Case, seed: int) -> _Asked:
        return case, EvalRequest(case.messages, self.max_tokens, self.temperature, seed)

    def _answers(self, intervention: Intervention, asked: Sequence[_Asked], stage: str) -> list[EvalAnswer]:
        advance = self._stage(stage, len(asked))
        requests = [request for _, request in asked]
        return answer_all(self.llama, intervention, requests, self.journal, on_answer=advance)

    def _outcomes(self, method: Method, asked: Sequence[_Asked], stage: str, factor: float = 1.0) -> list[Outcome]:
        intervention = method.intervention if factor == 1.0 else method.intervention.scaled(factor)
        answers = self._answers(intervention, asked, stage)
        plain = answer_all(self.llama, UNSTEERED, [request for _, request in asked], self.journal)
        fluency = self._fluency([answer.text for answer in answers], f"judging, {method.name}")
        exchanges = [(case.messages, answer.text) for (case, _), answer in zip(asked, answers, strict=True)]
        exchanges += [(case.messages, answer.text) for (case, _), answer in zip(asked, plain, strict=True)]
        declined = self.judge.refusals(exchanges)
        return [
            Outcome(
                case,
                own.text,
                answer,
                Verdict(declined[i], answer.ended, circles(answer.text), self.coherence.accepts(fluency[i])),
                phrases=is_refusal(self._beginning(answer.text)),
                declined_unsteered=declined[len(asked) + i],
                seed=request.drawn,
            )
            for i, ((case, request), answer, own) in enumerate(zip(asked, answers, plain, strict=True))
        ]

    def _beginning(self, text: str) -> str:
        """The first PHRASE_TOKENS tokens of an answer, as the model's tokenizer cuts it."""
        tokens = self.llama.tokenize(text.encode(), add_bos=False, special=False)
        if len(tokens) <= PHRASE_TOKENS:
            return text
        return self.llama.detokenize(tokens[:PHRASE_TOKENS]).decode(errors="ignore")

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
