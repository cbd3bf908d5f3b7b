"""Tuning on validation data: which layer, which strength, which scope, and how much of it the answer gets.

First the log-probability margin between chosen and rejected answers ranks the layers, then generated answers decide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.evaluation.judges import Coherence, is_refusal
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.steering import AlwaysGate, Experts
from finesteer_local.training.data import Pair
from finesteer_local.training.harvest import Progress, answer_tokens, generate

MARGIN_PAIRS = 10
MARGIN_TOKENS = 10
ANSWERS = 24
ANSWER_TOKENS = 40
MAX_PROMPT = 400  # letters: every trial reads its prompts anew, and long ones would take most of the time
FIRST_STRENGTH = 0.9
STRENGTHS = (0.6, 0.7, 0.8, 1.0, 1.1, 1.25, 1.4, 1.7, 2.0, 2.5)
SCOPES = ("turn", "prompt")
FIRST_ANSWER_STRENGTH = 0.5
ANSWER_STRENGTHS = (0.35, 0.7, 1.0)
CONTENDERS = 2
"""So many layers generate answers; the margins have ranked them all."""
TOLERANCE = 0.05
"""What one answer more or less can do. Within this of the best the layer with the better margin is preferred, and the
narrower scope, and a strength from which it is some way to either edge."""


@dataclass(frozen=True)
class Trial:
    """One setting and how its answers were judged."""

    layer: int
    strength: float
    scope: str
    answer_strength: float
    wanted: float  # share of answers with the wanted behaviour; judged by pairs, the chosen answers' probability
    coherent: float  # share of answers that are language
    score: float  # share that is both


def tune(
    llama: SteeredLlama,
    blank: Profile,
    experts: Mapping[int, Experts],
    pairs: Sequence[Pair],
    own: Sequence[str],
    *,
    judge: str,
    folder: Path,
    progress: Progress,
) -> tuple[Trial, list[Trial]]:
    """Choose layer, strength, scope and answer strength with the gate held open.

    Args:
        blank: a profile whose gate is always open; its experts, strengths and scope are replaced.
        experts: the candidates, by layer.
        pairs: validation pairs.
        own: the model's unsteered replies, by which coherence is calibrated.
        judge: `refusal` or `margin`.
        folder: trials are kept there, so that an interrupted run goes on.

    Returns:
        The chosen trial and all trials.
    """
    tuner = _Tuner(llama, blank, experts, pairs, judge, folder, progress)
    ranked = sorted(experts, key=lambda layer: -tuner.margin(layer))
    tuner.calibrate(own)
    trials = [tuner.trial(layer, FIRST_STRENGTH, SCOPES[0]) for layer in ranked[:CONTENDERS]]
    best = _first_of_the_best(trials)
    scoped = [tuner.trial(best.layer, FIRST_STRENGTH, scope) for scope in SCOPES[1:]]
    trials += scoped
    first = _first_of_the_best([best, *scoped])
    # In both directions as long as nothing is lost.
    compared = [first]
    for strengths in _outwards(STRENGTHS, FIRST_STRENGTH):
        for strength in strengths:
            compared.append(tuner.trial(first.layer, strength, first.scope))
            if compared[-1].score < max(trial.score for trial in compared) - TOLERANCE:
                break
    chosen = _well_inside_the_best(compared)
    # The prompt is read under all of it, so the answer needs less; more makes a small model repeat itself.
    others: list[Trial] = []
    for shares in _outwards(ANSWER_STRENGTHS, FIRST_ANSWER_STRENGTH):
        for share in shares:
            others.append(tuner.trial(chosen.layer, chosen.strength, chosen.scope, share))
            if others[-1].score < chosen.score - TOLERANCE:
                break
    better = max(others, key=lambda trial: trial.score)
    return (better if better.score > chosen.score + TOLERANCE else chosen), [*trials, *compared[1:], *others]


def _outwards(values: Sequence[float], centre: float) -> tuple[list[float], list[float]]:
    """The values below the centre and those above it, the nearest first."""
    return sorted((v for v in values if v < centre), reverse=True), sorted(v for v in values if v > centre)


def _first_of_the_best(trials: Sequence[Trial]) -> Trial:
    top = max(trial.score for trial in trials)
    return next(trial for trial in trials if trial.score >= top - TOLERANCE)


def _well_inside_the_best(trials: Sequence[Trial]) -> Trial:
    """Of those that are as good as the best, and of these of those that steer most often, one in the upper half.

    At the lower edge prompts go unsteered that were not tried and are harder than these, which are short; at the upper
    one their answers fall apart, but that is part of the score.
    """
    top = max(trial.score for trial in trials)
    good = [trial for trial in trials if trial.score >= top - TOLERANCE]
    wanted = max(trial.wanted for trial in good)
    most = sorted((trial for trial in good if trial.wanted == wanted), key=lambda trial: trial.strength)
    return most[min(2 * len(most) // 3, len(most) - 1)]


class _Tuner:
    def __init__(
        self,
        llama: SteeredLlama,
        blank: Profile,
        experts: Mapping[int, Experts],
        pairs: Sequence[Pair],
        judge: str,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.llama, self.blank, self.experts, self.judge = llama, blank, experts, judge
        brief = [pair for pair in pairs if len(pair.prompt.text) <= MAX_PROMPT]
        pool = brief if len(brief) >= ANSWERS else pairs
        step = max(len(pool) // ANSWERS, 1)
        self.pairs = list(pool[::step][:ANSWERS])
        self.progress = progress
        self.coherence = Coherence(float("inf"))
        self._file = folder / "trials.json"
        self._known: dict[str, dict[str, float]] = (
            json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        )
        self._done, self._total = 0, len(experts) + 1 + CONTENDERS + len(SCOPES) - 1 + 2 + 2  # and what it walks to

    def _remembered(self, key: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        if key not in self._known:
            self._known[key] = compute()
            with paths.atomic_write(self._file) as temporary:
                temporary.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
        self._done += 1
        self.progress("tuning", min(self._done, self._total), self._total)
        return self._known[key]

    def _activate(self, layer: int, strength: float, scope: str, answer_strength: float) -> None:
        profile = replace(
            self.blank,
            gate=AlwaysGate(),
            gate_layer=layer,
            experts={layer: self.experts[layer]},
            scope=scope,
            answer_strength=answer_strength,
        )
        self.llama.set_profiles([profile], strength=strength)

    def margin(self, layer: int) -> float:
        """Mean log-probability a token of the chosen answers' beginnings over the rejected ones', steered."""

        def compute() -> dict[str, float]:
            self._activate(layer, FIRST_STRENGTH, SCOPES[0], FIRST_ANSWER_STRENGTH)
            scores = [self._logprobs(pair, MARGIN_TOKENS) for pair in self.pairs[:MARGIN_PAIRS]]
            return {"margin": float(np.mean([chosen.mean() - rejected.mean() for chosen, rejected in scores]))}

        return self._remembered(f"margin {layer}", compute)["margin"]

    def _logprobs(self, pair: Pair, n_tokens: int) -> list[NDArray[np.float64]]:
        """Log-probabilities of the first tokens of the chosen and of the rejected answer."""
        answers = [answer_tokens(self.llama, text)[:n_tokens] for text in (pair.chosen, pair.rejected)]
        prompt = chat_prompt(self.llama, pair.prompt.messages)
        turn = turn_start(self.llama, pair.prompt.messages, prompt)
        return answer_logprobs(self.llama, prompt, answers, turn=turn)

    def _preference(self, pair: Pair) -> float:
        """The chosen answer's share of the probability of both: TruthfulQA's MC2 for two answers (arXiv 2109.07958)."""
        chosen, rejected = self._logprobs(pair, ANSWER_TOKENS)
        return float(np.exp(-np.logaddexp(0, rejected.sum() - chosen.sum())))

    def calibrate(self, own: Sequence[str]) -> None:
        def compute() -> dict[str, float]:
            return {"limit": Coherence.calibrate(self.llama, own[: 2 * ANSWERS]).limit}

        self.coherence = Coherence(self._remembered("coherence", compute)["limit"])

    def trial(self, layer: int, strength: float, scope: str, answer_strength: float = FIRST_ANSWER_STRENGTH) -> Trial:
        """Generate answers under one setting and judge them."""

        def compute() -> dict[str, float]:
            self._activate(layer, strength, scope, answer_strength)
            answers = list(generate(self.llama, [pair.prompt for pair in self.pairs], ANSWER_TOKENS))
            if self.judge == "refusal":
                wanted = [float(is_refusal(answer)) for answer in answers]
            else:
                wanted = [self._preference(pair) for pair in self.pairs]
            self.llama.set_profiles([])
            coherent = [self.coherence.holds(self.llama, answer) for answer in answers]
            return {
                "wanted": float(np.mean(wanted)),
                "coherent": float(np.mean(coherent)),
                "score": float(np.mean([w * c for w, c in zip(wanted, coherent, strict=True)])),
            }

        figures = self._remembered(f"{layer} {strength} {scope} {answer_strength}", compute)
        return Trial(layer, strength, scope, answer_strength, **figures)


def as_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Trials as plain values, for the profile's provenance."""
    return [asdict(trial) for trial in trials]
