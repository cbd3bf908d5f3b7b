"""Trials: answers under one setting, judged, and kept so that an interrupted run goes on.

The log-probability margin between chosen and rejected answers ranks the candidates, generated answers decide. Refusals
are judged as a person meets them: whole answers, sampled as `chat` samples them, that decline, end by themselves, do
not go round in circles and are language to their last word (judges/whole.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from finesteer_local import paths
from finesteer_local.judges.fluency import Coherence, Fluency
from finesteer_local.judges.whole import Verdict, circles
from finesteer_local.profile import Profile
from finesteer_local.runtime.trainable import Asked, TrainableModel, WholeAnswer
from finesteer_local.steering import LONG_PROMPT, SHORT_PROMPT, AlwaysGate, Experts
from finesteer_local.training.data import Pair, Prompt, spread
from finesteer_local.training.model_data import answer_tokens, generate, pair_tokens, whole_answers
from finesteer_local.training.progress import Progress
from finesteer_local.training.search import LONG, SEARCHES, SHORT, Layers, Setting, Trial, search_name

_Item = TypeVar("_Item")

MARGIN_PAIRS = 10
MARGIN_TOKENS = 10
PREFERENCES = 64
"""Pairs whose two answers are compared in a trial, where the recipe is judged by margins."""
FREE = 0.1
"""Nats a token that the chosen answers may lose for nothing: as much as another rounding of activations moves them."""
ANSWERS = 48  # of a trial, at most
FEWEST_ANSWERS = 24
"""From so many on answers tell whether they still are language."""
BLOCK, LARGE_BLOCK = 16, 32
"""Answers between two looks at whether a trial is behind the best: what loses is not answered to the end. More where
PyTorch answers: it takes little longer over twice as many."""
BEHIND = 4
"""By so many answers of the same prompts, beyond what is tolerated: chance is behind by as many in one look of ten."""
BY_CHANCE = 2  # answers more or less
OWN_ANSWERS = 48  # unsteered ones, by which language is judged
ANSWER_TOKENS = 40
WHOLE_TOKENS = 160  # of an answer that is judged as a whole; what has not ended by then does not end
TEMPERATURE = 0.8  # of such an answer: that of `chat`
MAX_PROMPT = 600  # letters: every trial reads its prompts anew, and long ones would take most of the time
LONG_TOKENS = range(2 * SHORT_PROMPT, LONG_PROMPT + 1)  # letters say little: what is encoded has a token for every two
LONG_SHARE = 2 / 3  # of the answers of a trial: to prompts of so many tokens, by which the length decay is chosen
FEW_LONG = 8  # fewer say nothing
CONTENDERS = 2
"""So many of the candidates generate answers: those that rank highest."""


class Trials:
    """The trials of one run; arguments are those of `tune.tune`."""

    def __init__(
        self,
        llama: TrainableModel,
        blank: Profile,
        experts: Mapping[int, Experts],
        pairs: Sequence[Pair],
        prompts: Sequence[Prompt],
        judge: str,
        learnt: bool,
        folder: Path,
        progress: Progress,
        n_answers: int = ANSWERS,
        expert: Callable[[Prompt], str] = lambda prompt: "",
        block: int = BLOCK,
    ) -> None:
        self.llama, self.blank, self.experts, self.judge, self.expert = llama, blank, experts, judge, expert
        self._file = folder / "trials.json"
        self._known: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8")) if self._file.exists() else {}
        # The prompts' order goes with it, and what is remembered is told by their places.
        self._block = block = int(self._known.get("block", BLOCK)) if self._known else block
        if block != BLOCK:
            self._known["block"] = block
        self.candidates: list[Layers] = [tuple(sorted(experts))] if learnt else [(layer,) for layer in experts]
        search = SEARCHES[search_name(judge, learnt)]
        # Only a length decay asks how long prompts are.
        counted = prompts if search.length_decays else ()
        self.prompts = {
            SHORT: _blockwise(spread(_brief(prompts, lambda prompt: prompt), n_answers), block),
            LONG: _blockwise(
                spread(
                    [p for p in counted if len(answer_tokens(llama, p.text)) in LONG_TOKENS],
                    round(n_answers * LONG_SHARE),
                ),
                block,
            ),
        }
        # Of few answers, two are more than that.
        by_chance = BY_CHANCE / max(len(self.prompts[SHORT]), 1) if judge == "refusal" else 0.0
        self.search = replace(search, tolerance=max(search.tolerance, by_chance))
        self.pairs = _brief(pairs, lambda pair: pair.prompt)
        self.progress = progress
        self.coherence = Coherence(float("inf"))
        ranking = len(self.candidates) * len(self.search.first_strengths)
        contenders = min(CONTENDERS, len(self.candidates))
        others = 0 if self.search.learnt_for is not None else 2 + 2  # strengths and answer strengths, at the least
        self._total = ranking + 1 + contenders + len(self.search.scopes) - 1 + others + len(self.search.length_decays)
        self._done: set[str] = set()
        self.made: list[Trial] = []
        """All trials, in the order in which they were asked for."""

    def _remembered(self, key: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        if key not in self._known:
            self._remember(key, compute())
        self._tell(key)
        return dict(self._known[key])

    def _remember(self, key: str, found: object) -> None:
        self._known[key] = found
        with paths.atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps(self._known), encoding="utf-8")

    def _tell(self, key: str) -> None:
        self._done.add(key)
        self.progress("tuning", min(len(self._done), self._total), self._total)

    def contenders(self) -> list[Setting]:
        """The candidates that generate answers, each with a strength to begin at."""
        wide = self.search.first_strengths
        if self.judge == "refusal":
            if len(self.candidates) == 1:
                return [self._first(self.candidates[0], wide[0])]
            ranked = sorted(self.candidates, key=lambda layers: -self.margin(layers))
            return [self._first(layers, wide[0]) for layers in ranked[:CONTENDERS]]
        enough = {layers: self._enough(layers) for layers in self.candidates}
        ranked = sorted(enough, key=lambda layers: -self.preference(layers, enough[layers]))
        return [self._first(layers, enough[layers]) for layers in ranked[:CONTENDERS]]

    def _enough(self, layers: Layers) -> float:
        """The weakest of the first strengths that is as good as any."""
        found = {strength: self.preference(layers, strength) for strength in self.search.first_strengths}
        return min(strength for strength in found if found[strength] >= max(found.values()) - self.search.tolerance)

    def _first(self, layers: Layers, strength: float) -> Setting:
        """What a candidate is tried with before anything else was chosen."""
        return Setting(layers, strength, self.search.scopes[0], self.search.first_answer_strength, 0.0)

    def _activate(self, setting: Setting, expert: str = "") -> None:
        profile = replace(
            self.blank,
            gate=AlwaysGate(),
            gate_layer=setting.layers[0],
            experts={
                layer: self.experts[layer].alone(expert) if self.experts[layer].by_kind else self.experts[layer]
                for layer in setting.layers
            },
            scope=setting.scope,
            answer_strength=setting.answer_strength,
            length_decay=setting.length_decay,
        )
        self.llama.set_profiles([profile], strength=setting.strength)

    def margin(self, layers: Layers) -> float:
        """Mean log-probability a token of the chosen answers' beginnings over the rejected ones', steered."""

        def compute() -> dict[str, float]:
            self._activate(self._first(layers, self.search.first_strengths[0]))
            scores = logprobs(self.llama, spread(self.pairs, MARGIN_PAIRS), MARGIN_TOKENS)
            return {"margin": float(np.mean([chosen.mean() - rejected.mean() for chosen, rejected in scores]))}

        return self._remembered(f"margin {_words(layers)}", compute)["margin"]

    def preference(self, layers: Layers, strength: float) -> float:
        """Mean share of the chosen answer in the probability of both, steered, times what is kept of its likelihood."""

        def compute() -> dict[str, float]:
            before = self._unsteered()
            self._activate(self._first(layers, strength))
            wanted, chosen = self._preferred()
            return {"preference": wanted * _kept(before, chosen)}

        return self._remembered(f"preference {_words(layers)} {strength}", compute)["preference"]

    def _preferred(self) -> tuple[float, float]:
        """Of the pairs as `compared`, the mean share and the mean log-probability."""
        found = compared(self.llama, spread(self.pairs, PREFERENCES))
        return float(np.mean([each.share for each in found])), float(np.mean([each.chosen for each in found]))

    def _unsteered(self) -> float:
        """The chosen answers' mean log-probability a token without steering."""

        def compute() -> dict[str, float]:
            self.llama.set_profiles([])
            return {"chosen": self._preferred()[1]}

        return self._remembered("unsteered", compute)["chosen"]

    def calibrate(self, own: Sequence[str]) -> None:
        def compute() -> dict[str, float]:
            self.llama.set_profiles([])
            return asdict(Coherence.of_unsteered(Fluency.throughout(self.llama, own)))

        self.coherence = Coherence(**self._remembered("coherence", compute))

    @property
    def long_tolerance(self) -> float:
        """As many answers as among the short ones: more prompts, less chance."""
        return self.search.tolerance * len(self.prompts[SHORT]) / len(self.prompts[LONG])

    @property
    def asks_long_prompts(self) -> bool:
        """Whether there are enough long prompts to say something."""
        return len(self.prompts[LONG]) >= FEW_LONG

    def trial(self, setting: Setting, prompts: str = SHORT, rivals: Sequence[Trial] = ()) -> Trial:
        """Generate answers under one setting and judge them.

        Args:
            rivals: trials with the same prompts. Whoever falls behind the best of them is given up.
        """
        if self.judge == "refusal":
            left = [rival for rival in rivals if not rival.lost]
            figures = self._refusals(setting, prompts, max(left, key=lambda rival: rival.score, default=None))
        else:
            figures = self._remembered(_key(setting, prompts), lambda: self._preferences(setting, prompts))
        self.made.append(Trial.of(setting, prompts, figures))
        return self.made[-1]

    def _refusals(self, setting: Setting, prompts: str, rival: Trial | None) -> dict[str, Any]:
        """What is said of whole sampled answers."""
        key = _key(setting, prompts)
        other = [] if rival is None else _defended(self._known[_key(rival, prompts)])
        lost = self._behind(self._known.get(key, []), other)
        while not lost and len(known := self._known.get(key, [])) < len(self.prompts[prompts]):
            self._remember(key, known + self._verdicts(setting, prompts, len(known)))
            lost = self._behind(self._known[key], other)
        self._tell(key)
        wanted, ended, coherent = (float(np.mean(each)) for each in zip(*self._known[key], strict=True))
        return {
            "wanted": wanted,
            "ended": ended,
            "coherent": coherent,
            "score": float(np.mean(_defended(self._known[key]))),
            "n_answers": len(self._known[key]),
            "lost": lost,
        }

    def _behind(self, verdicts: Sequence[Sequence[bool]], rival: Sequence[bool]) -> bool:
        """Whether answers are behind a rival's of the same prompts, counting those that both have."""
        n = min(len(verdicts), len(rival))
        return sum(rival[:n]) - sum(_defended(verdicts)[:n]) >= BEHIND + self.search.tolerance * n

    def _verdicts(self, setting: Setting, prompts: str, first: int) -> list[list[bool]]:
        """Of a block of answers, whether each declines, whether it ends and not in circles, whether it is language."""
        block = self.prompts[prompts][first : first + self._block]
        answers = self._answers(setting, block, seed=first)
        self.llama.set_profiles([])
        readings = Fluency.throughout(self.llama, [answer.text for answer in answers])
        verdicts = [
            Verdict.of(answer.text, ends=answer.ended, language=self.coherence.accepts(reading))
            for answer, reading in zip(answers, readings, strict=True)
        ]
        return [[bool(each.declined), each.ends and not each.circles, bool(each.language)] for each in verdicts]

    def _answers(self, setting: Setting, block: Sequence[Prompt], *, seed: int) -> list[WholeAnswer]:
        """To prompts whose kinds are known: no head tells them yet."""
        by_kind = any(self.experts[layer].by_kind for layer in setting.layers)
        experts = [self.expert(prompt) if by_kind else "" for prompt in block]
        found: dict[int, WholeAnswer] = {}
        for expert in sorted(set(experts)):
            self._activate(setting, expert)
            places = [i for i, each in enumerate(experts) if each == expert]
            own = whole_answers(self.llama, [block[i] for i in places], WHOLE_TOKENS, TEMPERATURE, seed=seed)
            found.update(zip(places, own, strict=True))
        return [found[i] for i in range(len(block))]

    def _preferences(self, setting: Setting, prompts: str) -> dict[str, float]:
        """What is said of a recipe that is judged by its pairs."""
        before = self._unsteered()
        self._activate(setting)
        answers = list(generate(self.llama, self.prompts[prompts], ANSWER_TOKENS))
        wanted, chosen = self._preferred()
        self.llama.set_profiles([])
        readings = zip(Fluency.throughout(self.llama, answers), answers, strict=True)
        coherent = float(np.mean([self.coherence.accepts(reading) and not circles(text) for reading, text in readings]))
        return {
            "wanted": wanted,
            "ended": 1.0,
            "coherent": coherent,
            # An answer that is no language is worse than an unsteered one, not only as bad: it counts as one lost.
            "score": max(wanted * coherent - (1 - coherent), 0.0) * _kept(before, chosen),
            "n_answers": len(answers),
        }


class Compared(NamedTuple):
    """A pair's two answers by their first `ANSWER_TOKENS` tokens, as the model is steered.

    Attributes:
        share: TruthfulQA's MC2 (arXiv 2109.07958) for two answers: of the chosen one in the probability of both.
        chosen: its mean log-probability a token.
    """

    share: float
    chosen: float


def compared(llama: TrainableModel, pairs: Sequence[Pair]) -> list[Compared]:
    """How likely the answers of every pair are, as the model is steered now."""
    return [
        Compared(float(np.exp(-np.logaddexp(0, rejected.sum() - chosen.sum()))), float(chosen.mean()))
        for chosen, rejected in logprobs(llama, pairs, ANSWER_TOKENS)
    ]


def _kept(before: float, chosen: float) -> float:
    """What is left of a chosen answer's likelihood, a token; 1 where it has lost no more than `FREE`.

    Too strong a direction makes the rejected answer less likely still, so that their share grows while all that the
    model says falls apart, fluently (docs/experiments.md).
    """
    return float(np.exp(min(chosen - before + FREE, 0.0)))


def logprobs(llama: TrainableModel, pairs: Sequence[Pair], n_tokens: int) -> list[list[NDArray[np.float64]]]:
    """For every pair the log-probabilities of the first tokens of its chosen and of its rejected answer."""
    tokens = (pair_tokens(llama, pair, n_tokens) for pair in pairs)
    return llama.many_logprobs([Asked(each.prompt, each.answers, each.turn) for each in tokens])


def _brief(items: Sequence[_Item], prompt: Callable[[_Item], Prompt]) -> Sequence[_Item]:
    """Those whose prompt is short, where there are enough of them."""
    brief = [item for item in items if len(prompt(item).text) <= MAX_PROMPT]
    return brief if len(brief) >= ANSWERS else items


def _blockwise(prompts: Sequence[Prompt], block: int) -> list[Prompt]:
    """The prompts so that every block of so many holds some from all over them."""
    n_blocks = -(-len(prompts) // block)
    return [prompt for i in range(n_blocks) for prompt in prompts[i::n_blocks]]


def _key(setting: Setting, prompts: str) -> str:
    """By which a trial is kept."""
    parts = (setting.strength, setting.scope, setting.answer_strength, setting.length_decay, prompts)
    return " ".join([_words(setting.layers), *map(str, parts)])


def _defended(verdicts: Sequence[Sequence[bool]]) -> list[bool]:
    return [all(verdict) for verdict in verdicts]


def _words(layers: Layers) -> str:
    return ",".join(map(str, layers))
