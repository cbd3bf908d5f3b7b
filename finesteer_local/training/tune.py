"""Tuning on validation data: which layer, which strength, which scope, and how much of it answers and long prompts get.

First the log-probability margin between chosen and rejected answers ranks the layers, then generated answers decide.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.evaluation.judges import Coherence, is_refusal
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.steering import LONG_PROMPT, SHORT_PROMPT, AlwaysGate, Experts
from finesteer_local.training.data import Pair, Prompt, spread
from finesteer_local.training.harvest import Progress, answer_tokens, generate, pair_tokens

_Item = TypeVar("_Item")

MARGIN_PAIRS = 10
MARGIN_TOKENS = 10
PREFERENCES = 64
"""Pairs of which a recipe that is judged by them compares both answers."""
ANSWERS = 48
OWN_ANSWERS = 48  # unsteered ones, by which language is judged
ANSWER_TOKENS = 40
MAX_PROMPT = 600  # letters: every trial reads its prompts anew, and long ones would take most of the time
LONG_TOKENS = range(2 * SHORT_PROMPT, LONG_PROMPT + 1)  # letters say little: what is encoded has a token for every two
LONG_ANSWERS = 64  # to prompts of so many tokens, by which the length decay is chosen
FEW_LONG = 8  # fewer say nothing
SHORT, LONG = "short", "long"
"""What a trial asks."""
SCOPES = ("turn", "prompt")
ANSWER_STRENGTHS = (0.35, 0.5, 0.7, 1.0)
CONTENDERS = 2
"""So many layers generate answers; all have been ranked without."""


@dataclass(frozen=True)
class Search:
    """Where it is looked, by the recipe's judge."""

    first_strengths: tuple[float, ...]  # at which layers are ranked
    strengths: tuple[float, ...]
    first_answer_strength: float
    length_decays: tuple[float, ...]
    tolerance: float
    """What chance can do. Within this of the best the layer that ranks higher is preferred, and the narrower scope, and
    a strength from which it is some way to either edge."""


SEARCHES = {
    # Two answers more or less are .04. A refusal is decided by the prompt.
    "refusal": Search(
        (0.9,), (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.7, 2.0, 2.5), 0.5, (0.0, 0.15, 0.3, 0.45), 0.05
    ),
    # Probabilities are finer. What an answer says is decided all through it, and how far a weak direction must be
    # followed differs from layer to layer. Questions are short.
    "margin": Search((1.0, 2.0, 4.0), (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6), 1.0, (), 0.02),
}


@dataclass(frozen=True)
class Trial:
    """One setting and how its answers were judged."""

    layer: int
    strength: float
    scope: str
    answer_strength: float
    length_decay: float
    prompts: str  # SHORT or LONG
    wanted: float  # share of answers with the wanted behaviour; judged by pairs, the chosen answers' probability
    coherent: float  # share of answers that are language
    score: float  # share that is both


def tune(
    llama: SteeredLlama,
    blank: Profile,
    experts: Mapping[int, Experts],
    pairs: Sequence[Pair],
    prompts: Sequence[Prompt],
    own: Sequence[str],
    *,
    judge: str,
    folder: Path,
    progress: Progress,
) -> tuple[Trial, list[Trial]]:
    """Choose layer, strength, scope, answer strength and length decay with the gate held open.

    Args:
        blank: a profile whose gate is always open; its experts, strengths and scope are replaced.
        experts: the candidates, by layer.
        pairs: validation pairs, whose answers are compared.
        prompts: validation prompts, which are answered: all that nothing was learnt from.
        own: the model's unsteered replies, by which coherence is calibrated.
        judge: `refusal` or `margin`.
        folder: trials are kept there, so that an interrupted run goes on.

    Returns:
        The chosen trial and all trials.
    """
    tuner = _Tuner(llama, blank, experts, pairs, prompts, judge, folder, progress)
    search = SEARCHES[judge]
    tolerance, share = search.tolerance, search.first_answer_strength
    contenders = tuner.contenders()
    tuner.calibrate(own)
    trials = [tuner.trial(layer, strength, SCOPES[0], share) for layer, strength in contenders]
    best = _first_of_the_best(trials, tolerance)
    scoped = [tuner.trial(best.layer, best.strength, scope, share) for scope in SCOPES[1:]]
    trials += scoped
    first = _first_of_the_best([best, *scoped], tolerance)
    # In both directions as long as nothing is lost.
    compared = [first]
    for strengths in _outwards(search.strengths, first.strength):
        for strength in strengths:
            compared.append(tuner.trial(first.layer, strength, first.scope, share))
            if compared[-1].score < max(trial.score for trial in compared) - tolerance:
                break
    chosen = _well_inside_the_best(compared, tolerance)
    # The prompt is read under all of it, so the answer needs less; more makes a small model repeat itself.
    others: list[Trial] = []
    for shares in _outwards(ANSWER_STRENGTHS, share):
        for other in shares:
            others.append(tuner.trial(chosen.layer, chosen.strength, chosen.scope, other))
            if others[-1].score < chosen.score - tolerance:
                break
    better = max(others, key=lambda trial: trial.score)
    chosen = better if better.score > chosen.score + tolerance else chosen
    longer = tuner.long_trials(chosen)
    if longer:
        chosen = replace(chosen, length_decay=_first_of_the_best(longer, tuner.long_tolerance).length_decay)
    return chosen, [*trials, *compared[1:], *others, *longer]


def _outwards(values: Sequence[float], centre: float) -> tuple[list[float], list[float]]:
    """The values below the centre and those above it, the nearest first."""
    return sorted((v for v in values if v < centre), reverse=True), sorted(v for v in values if v > centre)


def _first_of_the_best(trials: Sequence[Trial], tolerance: float) -> Trial:
    top = max(trial.score for trial in trials)
    return next(trial for trial in trials if trial.score >= top - tolerance)


def _well_inside_the_best(trials: Sequence[Trial], tolerance: float) -> Trial:
    """Of those that are as good as the best, and of these of those that steer most often, one in the upper half.

    At the lower edge prompts go unsteered that were not tried and are harder than these, which are short; at the upper
    one their answers fall apart, but that is part of the score.
    """
    top = max(trial.score for trial in trials)
    good = [trial for trial in trials if trial.score >= top - tolerance]
    wanted = max(trial.wanted for trial in good)
    most = sorted((trial for trial in good if trial.wanted == wanted), key=lambda trial: trial.strength)
    return most[min(2 * len(most) // 3, len(most) - 1)]


def _brief(items: Sequence[_Item], prompt: Callable[[_Item], Prompt]) -> Sequence[_Item]:
    """Those whose prompt is short, where there are enough of them."""
    brief = [item for item in items if len(prompt(item).text) <= MAX_PROMPT]
    return brief if len(brief) >= ANSWERS else items


class _Tuner:
    def __init__(
        self,
        llama: SteeredLlama,
        blank: Profile,
        experts: Mapping[int, Experts],
        pairs: Sequence[Pair],
        prompts: Sequence[Prompt],
        judge: str,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.llama, self.blank, self.experts, self.judge = llama, blank, experts, judge
        self.search = SEARCHES[judge]
        # Only a length decay asks how long prompts are.
        counted = prompts if self.search.length_decays else ()
        self.prompts = {
            SHORT: spread(_brief(prompts, lambda prompt: prompt), ANSWERS),
            LONG: spread([p for p in counted if len(answer_tokens(llama, p.text)) in LONG_TOKENS], LONG_ANSWERS),
        }
        self.pairs = _brief(pairs, lambda pair: pair.prompt)
        self.progress = progress
        self.coherence = Coherence(float("inf"))
        self._file = folder / "trials.json"
        self._known: dict[str, dict[str, float]] = (
            json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        )
        ranking = len(experts) * len(self.search.first_strengths)
        self._total = ranking + 1 + CONTENDERS + len(SCOPES) - 1 + 2 + 2 + len(self.search.length_decays)  # or so
        self._done: set[str] = set()

    def _remembered(self, key: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        if key not in self._known:
            self._known[key] = compute()
            with paths.atomic_write(self._file) as temporary:
                temporary.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
        self._done.add(key)
        self.progress("tuning", min(len(self._done), self._total), self._total)
        return self._known[key]

    def contenders(self) -> list[tuple[int, float]]:
        """The layers to be tried, each with a strength to begin at."""
        if self.judge == "refusal":
            ranked = sorted(self.experts, key=lambda layer: -self.margin(layer))
            return [(layer, self.search.first_strengths[0]) for layer in ranked[:CONTENDERS]]
        wide = self.search.first_strengths
        best = {layer: max(wide, key=lambda strength: self.preference(layer, strength)) for layer in self.experts}
        ranked = sorted(best, key=lambda layer: -self.preference(layer, best[layer]))
        return [(layer, best[layer]) for layer in ranked[:CONTENDERS]]

    def _activate(
        self, layer: int, strength: float, scope: str, answer_strength: float, length_decay: float = 0.0
    ) -> None:
        profile = replace(
            self.blank,
            gate=AlwaysGate(),
            gate_layer=layer,
            experts={layer: self.experts[layer]},
            scope=scope,
            answer_strength=answer_strength,
            length_decay=length_decay,
        )
        self.llama.set_profiles([profile], strength=strength)

    def margin(self, layer: int) -> float:
        """Mean log-probability a token of the chosen answers' beginnings over the rejected ones', steered."""

        def compute() -> dict[str, float]:
            self._activate(layer, self.search.first_strengths[0], SCOPES[0], self.search.first_answer_strength)
            scores = [self._logprobs(pair, MARGIN_TOKENS) for pair in spread(self.pairs, MARGIN_PAIRS)]
            return {"margin": float(np.mean([chosen.mean() - rejected.mean() for chosen, rejected in scores]))}

        return self._remembered(f"margin {layer}", compute)["margin"]

    def _logprobs(self, pair: Pair, n_tokens: int) -> list[NDArray[np.float64]]:
        """Log-probabilities of the first tokens of the chosen and of the rejected answer."""
        prompt, turn, answers = pair_tokens(self.llama, pair, n_tokens)
        return answer_logprobs(self.llama, prompt, answers, turn=turn)

    def preference(self, layer: int, strength: float) -> float:
        """Mean share of the chosen answer in the probability of both, steered; see `_preferred`."""

        def compute() -> dict[str, float]:
            self._activate(layer, strength, SCOPES[0], self.search.first_answer_strength)
            return {"preference": self._preferred()}

        return self._remembered(f"preference {layer} {strength}", compute)["preference"]

    def _preferred(self) -> float:
        """TruthfulQA's MC2 (arXiv 2109.07958) for two answers, over the pairs, as the model is steered now."""
        totals = [
            [answer.sum() for answer in self._logprobs(pair, ANSWER_TOKENS)] for pair in spread(self.pairs, PREFERENCES)
        ]
        return float(np.mean([np.exp(-np.logaddexp(0, rejected - chosen)) for chosen, rejected in totals]))

    def calibrate(self, own: Sequence[str]) -> None:
        def compute() -> dict[str, float]:
            return {"limit": Coherence.calibrate(self.llama, own).limit}

        self.coherence = Coherence(self._remembered("coherence", compute)["limit"])

    @property
    def long_tolerance(self) -> float:
        """As many answers as among the short ones: more prompts, less chance."""
        return self.search.tolerance * ANSWERS / len(self.prompts[LONG])

    def long_trials(self, chosen: Trial) -> list[Trial]:
        """How long prompts are answered as in `chosen`, with more and more length decay, until that is too much."""
        found: list[Trial] = []
        for decay in self.search.length_decays if len(self.prompts[LONG]) >= FEW_LONG else ():
            found.append(self.trial(chosen.layer, chosen.strength, chosen.scope, chosen.answer_strength, decay, LONG))
            if found[-1].score < max(trial.score for trial in found) - self.long_tolerance:
                break
        return found

    def trial(
        self,
        layer: int,
        strength: float,
        scope: str,
        answer_strength: float,
        length_decay: float = 0.0,
        prompts: str = SHORT,
    ) -> Trial:
        """Generate answers under one setting and judge them."""

        def compute() -> dict[str, float]:
            self._activate(layer, strength, scope, answer_strength, length_decay)
            answers = list(generate(self.llama, self.prompts[prompts], ANSWER_TOKENS))
            if self.judge == "refusal":
                wanted = [float(is_refusal(answer)) for answer in answers]
            else:
                wanted = [self._preferred()] * len(answers)
            self.llama.set_profiles([])
            coherent = self.coherence.hold(self.llama, answers)
            return {
                "wanted": float(np.mean(wanted)),
                "coherent": float(np.mean(coherent)),
                "score": float(np.mean([w * c for w, c in zip(wanted, coherent, strict=True)])),
            }

        key = f"{layer} {strength} {scope} {answer_strength} {length_decay} {prompts}"
        figures = self._remembered(key, compute)
        return Trial(layer, strength, scope, answer_strength, length_decay, prompts, **figures)


def as_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Trials as plain values, for the profile's provenance."""
    return [asdict(trial) for trial in trials]
