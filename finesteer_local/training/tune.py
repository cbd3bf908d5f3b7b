"""Tuning on validation data: which layers, strength and scope, and how much of it answers and long prompts get.

First the log-probability margin between chosen and rejected answers ranks the layers, then generated answers decide.
Refusals are judged as a person meets them: whole answers, sampled as `chat` samples them, that decline, end by
themselves, do not go round in circles and are language to their last word (evaluation/whole.py).
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
from finesteer_local.evaluation.judges import Coherence, Fluency
from finesteer_local.evaluation.whole import Verdict
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.steering import LONG_PROMPT, SHORT_PROMPT, AlwaysGate, Experts
from finesteer_local.training.data import Pair, Prompt, spread
from finesteer_local.training.harvest import Progress, answer_tokens, generate, pair_tokens, whole_answers

_Item = TypeVar("_Item")

MARGIN_PAIRS = 10
MARGIN_TOKENS = 10
PREFERENCES = 64
"""Pairs of which a recipe that is judged by them compares both answers."""
ANSWERS = 48
OWN_ANSWERS = 48  # unsteered ones, by which language is judged
ANSWER_TOKENS = 40
WHOLE_TOKENS = 160  # of an answer that is judged as a whole; what has not ended by then does not end
TEMPERATURE = 0.8  # of such an answer: that of `chat`
MAX_PROMPT = 600  # letters: every trial reads its prompts anew, and long ones would take most of the time
LONG_TOKENS = range(2 * SHORT_PROMPT, LONG_PROMPT + 1)  # letters say little: what is encoded has a token for every two
LONG_ANSWERS = 32  # to prompts of so many tokens, by which the length decay is chosen
FEW_LONG = 8  # fewer say nothing
SHORT, LONG = "short", "long"
"""What a trial asks."""
CONTENDERS = 2
"""So many layers generate answers; all have been ranked without."""
Layers = tuple[int, ...]
"""The layers of one candidate, which are steered together."""


@dataclass(frozen=True)
class Search:
    """The settings that are tried for one judge and one kind of experts."""

    first_strengths: tuple[float, ...]  # at which layers are ranked
    strengths: tuple[float, ...]
    scopes: tuple[str, ...]
    first_answer_strength: float
    answer_strengths: tuple[float, ...]
    length_decays: tuple[float, ...]
    tolerance: float
    """What chance can do. Within this of the best the layer that ranks higher is preferred, and the narrower scope, and
    a strength from which it is some way to either edge."""


DECAYS = (0.0, 0.2, 0.4)
SEARCHES = {
    # Two answers more or less are .04. A refusal is decided by the prompt.
    "refusal": Search(
        (0.9,),
        (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.7, 2.0, 2.5),
        ("turn", "prompt"),
        0.5,
        (0.35, 0.5, 0.7, 1.0),
        DECAYS,
        0.05,
    ),
    # Probabilities are finer. What an answer says is decided all through it, and how far a weak direction must be
    # followed differs from layer to layer. Questions are short.
    "margin": Search(
        (1.0, 2.0, 4.0),
        (0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6),
        ("turn", "prompt"),
        1.0,
        (0.35, 0.5, 0.7, 1.0),
        (),
        0.02,
    ),
    # Learnt through the model for strength 1 in the scope `turn`, the answer included: how it ends is part of it.
    "refusal, learnt": Search((1.0,), (0.7, 0.85, 1.0, 1.2, 1.4, 1.7), ("turn",), 1.0, (0.5, 0.7, 1.0), DECAYS, 0.05),
}


@dataclass(frozen=True)
class Trial:
    """One setting and how its answers were judged."""

    layers: Layers
    strength: float
    scope: str
    answer_strength: float
    length_decay: float
    prompts: str  # SHORT or LONG
    wanted: float  # share of answers with the wanted behaviour; judged by pairs, the chosen answers' probability
    ended: float  # share of answers that end by themselves, and not after going round in circles; 1 judged by pairs
    coherent: float  # share of answers that are language
    score: float  # share that is all three


def tune(
    llama: SteeredLlama,
    blank: Profile,
    experts: Mapping[int, Experts],
    pairs: Sequence[Pair],
    prompts: Sequence[Prompt],
    own: Sequence[str],
    *,
    judge: str,
    learnt: bool = False,
    folder: Path,
    progress: Progress,
) -> tuple[Trial, list[Trial]]:
    """Choose layers, strength, scope, answer strength and length decay with the gate held open.

    Args:
        blank: a profile whose gate is always open; its experts, strengths and scope are replaced.
        experts: by layer, each a candidate; what was learnt through the model is one candidate of all layers.
        pairs: validation pairs, whose answers are compared.
        prompts: validation prompts, which are answered: all that nothing was learnt from.
        own: the model's unsteered replies, by which coherence is calibrated.
        judge: `refusal` or `margin`.
        learnt: whether the experts were learnt through the model.
        folder: trials are kept there, so that an interrupted run goes on.

    Returns:
        The chosen trial and all trials.
    """
    tuner = _Tuner(llama, blank, experts, pairs, prompts, judge, learnt, folder, progress)
    search = tuner.search
    tolerance, share = search.tolerance, search.first_answer_strength
    contenders = tuner.contenders()
    tuner.calibrate(own)
    trials = [tuner.trial(layers, strength, search.scopes[0], share) for layers, strength in contenders]
    best = _first_of_the_best(trials, tolerance)
    scoped = [tuner.trial(best.layers, best.strength, scope, share) for scope in search.scopes[1:]]
    trials += scoped
    first = _first_of_the_best([best, *scoped], tolerance)
    # In both directions as long as nothing is lost.
    compared = [first]
    for strengths in _outwards(search.strengths, first.strength):
        for strength in strengths:
            compared.append(tuner.trial(first.layers, strength, first.scope, share))
            if compared[-1].score < max(trial.score for trial in compared) - tolerance:
                break
    chosen = _well_inside_the_best(compared, tolerance)
    # The prompt is read under all of it, so the answer needs less; more makes a small model repeat itself.
    others: list[Trial] = []
    for shares in _outwards(search.answer_strengths, share):
        for other in shares:
            others.append(tuner.trial(chosen.layers, chosen.strength, chosen.scope, other))
            if others[-1].score < chosen.score - tolerance:
                break
    better = max(others, key=lambda trial: trial.score, default=chosen)
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
    """A strength with room on either side, of the trials that chance cannot tell from the best.

    Of these trials the ones that steer most often count, and of their strengths the one at two thirds from the weakest
    is taken: prompts that were not tried may be harder, since those that are tried are short, and need more; answers
    that fall apart under too much are part of the score already.
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
        learnt: bool,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.llama, self.blank, self.experts, self.judge = llama, blank, experts, judge
        self.candidates: list[Layers] = [tuple(sorted(experts))] if learnt else [(layer,) for layer in experts]
        self.search = SEARCHES["refusal, learnt" if learnt and judge == "refusal" else judge]
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
        ranking = len(self.candidates) * len(self.search.first_strengths)
        self._total = ranking + 1 + CONTENDERS + len(self.search.scopes) - 1 + 2 + 2 + len(self.search.length_decays)
        self._done: set[str] = set()

    def _remembered(self, key: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        if key not in self._known:
            self._known[key] = compute()
            with paths.atomic_write(self._file) as temporary:
                temporary.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
        self._done.add(key)
        self.progress("tuning", min(len(self._done), self._total), self._total)
        return self._known[key]

    def contenders(self) -> list[tuple[Layers, float]]:
        """The candidates that generate answers, each with a strength to begin at."""
        wide = self.search.first_strengths
        if self.judge == "refusal":
            if len(self.candidates) == 1:
                return [(self.candidates[0], wide[0])]
            ranked = sorted(self.candidates, key=lambda layers: -self.margin(layers))
            return [(layers, wide[0]) for layers in ranked[:CONTENDERS]]
        best = {layers: max(wide, key=lambda strength: self.preference(layers, strength)) for layers in self.candidates}
        ranked = sorted(best, key=lambda layers: -self.preference(layers, best[layers]))
        return [(layers, best[layers]) for layers in ranked[:CONTENDERS]]

    def _activate(
        self, layers: Layers, strength: float, scope: str, answer_strength: float, length_decay: float = 0.0
    ) -> None:
        profile = replace(
            self.blank,
            gate=AlwaysGate(),
            gate_layer=layers[0],
            experts={layer: self.experts[layer] for layer in layers},
            scope=scope,
            answer_strength=answer_strength,
            length_decay=length_decay,
        )
        self.llama.set_profiles([profile], strength=strength)

    def margin(self, layers: Layers) -> float:
        """Mean log-probability a token of the chosen answers' beginnings over the rejected ones', steered."""

        def compute() -> dict[str, float]:
            search = self.search
            self._activate(layers, search.first_strengths[0], search.scopes[0], search.first_answer_strength)
            scores = [self._logprobs(pair, MARGIN_TOKENS) for pair in spread(self.pairs, MARGIN_PAIRS)]
            return {"margin": float(np.mean([chosen.mean() - rejected.mean() for chosen, rejected in scores]))}

        return self._remembered(f"margin {_words(layers)}", compute)["margin"]

    def _logprobs(self, pair: Pair, n_tokens: int) -> list[NDArray[np.float64]]:
        """Log-probabilities of the first tokens of the chosen and of the rejected answer."""
        prompt, turn, answers = pair_tokens(self.llama, pair, n_tokens)
        return answer_logprobs(self.llama, prompt, answers, turn=turn)

    def preference(self, layers: Layers, strength: float) -> float:
        """Mean share of the chosen answer in the probability of both, steered; see `_preferred`."""

        def compute() -> dict[str, float]:
            self._activate(layers, strength, self.search.scopes[0], self.search.first_answer_strength)
            return {"preference": self._preferred()}

        return self._remembered(f"preference {_words(layers)} {strength}", compute)["preference"]

    def _preferred(self) -> float:
        """TruthfulQA's MC2 (arXiv 2109.07958) for two answers, over the pairs, as the model is steered now."""
        totals = [
            [answer.sum() for answer in self._logprobs(pair, ANSWER_TOKENS)] for pair in spread(self.pairs, PREFERENCES)
        ]
        return float(np.mean([np.exp(-np.logaddexp(0, rejected - chosen)) for chosen, rejected in totals]))

    def calibrate(self, own: Sequence[str]) -> None:
        def compute() -> dict[str, float]:
            if self.judge == "refusal":
                self.llama.set_profiles([])
                return asdict(Coherence.of_unsteered(Fluency.throughout(self.llama, own)))
            return asdict(Coherence.calibrate(self.llama, own))

        self.coherence = Coherence(**self._remembered("coherence", compute))

    @property
    def long_tolerance(self) -> float:
        """As many answers as among the short ones: more prompts, less chance."""
        return self.search.tolerance * ANSWERS / len(self.prompts[LONG])

    def long_trials(self, chosen: Trial) -> list[Trial]:
        """How long prompts are answered as in `chosen`, with more and more length decay, until that is too much."""
        found: list[Trial] = []
        for decay in self.search.length_decays if len(self.prompts[LONG]) >= FEW_LONG else ():
            found.append(self.trial(chosen.layers, chosen.strength, chosen.scope, chosen.answer_strength, decay, LONG))
            if found[-1].score < max(trial.score for trial in found) - self.long_tolerance:
                break
        return found

    def trial(
        self,
        layers: Layers,
        strength: float,
        scope: str,
        answer_strength: float,
        length_decay: float = 0.0,
        prompts: str = SHORT,
    ) -> Trial:
        """Generate answers under one setting and judge them."""

        def compute() -> dict[str, float]:
            self._activate(layers, strength, scope, answer_strength, length_decay)
            return self._refusals(prompts) if self.judge == "refusal" else self._preferences(prompts)

        key = f"{_words(layers)} {strength} {scope} {answer_strength} {length_decay} {prompts}"
        figures = self._remembered(key, compute)
        return Trial(layers, strength, scope, answer_strength, length_decay, prompts, **figures)

    def _refusals(self, prompts: str) -> dict[str, float]:
        """What is said of whole sampled answers, steered as the model is now."""
        answers = list(whole_answers(self.llama, self.prompts[prompts], WHOLE_TOKENS, TEMPERATURE))
        self.llama.set_profiles([])
        readings = Fluency.throughout(self.llama, [answer.text for answer in answers])
        verdicts = [
            Verdict.of(answer.text, ends=answer.ended, language=self.coherence.accepts(reading))
            for answer, reading in zip(answers, readings, strict=True)
        ]
        return {
            "wanted": float(np.mean([verdict.declined for verdict in verdicts])),
            "ended": float(np.mean([verdict.ends and not verdict.circles for verdict in verdicts])),
            "coherent": float(np.mean([verdict.language for verdict in verdicts])),
            "score": float(np.mean([verdict.defended for verdict in verdicts])),
        }

    def _preferences(self, prompts: str) -> dict[str, float]:
        """What is said of a recipe that is judged by its pairs, steered as the model is now."""
        answers = list(generate(self.llama, self.prompts[prompts], ANSWER_TOKENS))
        wanted = self._preferred()
        self.llama.set_profiles([])
        coherent = float(np.mean(self.coherence.hold(self.llama, answers)))
        return {"wanted": wanted, "ended": 1.0, "coherent": coherent, "score": wanted * coherent}


def _words(layers: Layers) -> str:
    return ",".join(map(str, layers))


def as_rows(trials: Sequence[Trial]) -> list[dict[str, object]]:
    """Trials as plain values, for the profile's provenance."""
    return [asdict(trial) for trial in trials]
