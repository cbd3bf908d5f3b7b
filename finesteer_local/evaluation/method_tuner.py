"""Choosing a method's setting and strength on validation prompts, by generated answers, as ours are chosen.

A trial answers held-out prompts that need intervention and held-out prompts that do not. Its score is the mean of two
shares: answers to the first that do what is wanted and are good language, and answers to the second that are left in
order, that is language and not declined unless they are declined unsteered. Refusals are judged as whole sampled
answers; one that never ends by itself is worth half, or methods that end none could not be tuned at all. Of settings
within TOLERANCE of the best the weakest is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finesteer_local.evaluation.answers import EvalRequest, answer_all
from finesteer_local.evaluation.baselines.vectors import Candidate
from finesteer_local.evaluation.interventions import UNSTEERED, Intervention
from finesteer_local.evaluation.journal import Journal, digest
from finesteer_local.evaluation.material import Material
from finesteer_local.evaluation.measure import TEMPERATURE, fluency
from finesteer_local.judges.fluency import Coherence, Fluency
from finesteer_local.judges.whole import Verdict, declines
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.score import answer_logprobs
from finesteer_local.training.data import Pair
from finesteer_local.training.model_data import pair_tokens
from finesteer_local.training.progress import Progress, quiet

PROMPTS = 24  # of each kind
FEWER = 10  # of each kind, where many candidates are compared
ANSWER_TOKENS = 24
WHOLE_TOKENS = 120  # of an answer that is judged as a whole; what has not ended by then does not end
FIRST_STRENGTHS = (0.7, 1.4)
STRENGTHS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
TOLERANCE = 0.03
GIVE_UP = 0.2  # a strength this much worse than a weaker one: stronger ones are worse still


@dataclass(frozen=True)
class Trial:
    """One setting at one strength, and how its answers were judged."""

    strength: float
    wanted: float  # of the prompts that need intervention: as wanted and in good language; 0.5 where it never ends
    kept: float  # of the others: in good language and not declined
    n: int  # prompts of each kind

    @property
    def score(self) -> float:
        return (self.wanted + self.kept) / 2


class Tuner:
    """Tries interventions on the validation prompts of `material`."""

    def __init__(
        self,
        llama: SteeredLlama,
        material: Material,
        journal: Journal,
        progress: Progress = quiet,
    ) -> None:
        self.llama, self.journal, self.progress = llama, journal, progress
        self.judge = material.data.judge
        self.pairs = _spread([material.pairs[i] for i in material.held], PROMPTS)
        self.contrast = _spread([material.contrast.prompts[i] for i in material.contrast.held], PROMPTS)
        plain = [a.text for a in answer_all(llama, UNSTEERED, self._requests(PROMPTS), journal, timed=False)]
        self.plain = plain[len(self.pairs) :]
        self.coherence = Coherence.of_unsteered([self._fluency(text) for text in plain])

    def choose(self, name: str, candidates: Sequence[Candidate]) -> tuple[Candidate, float, dict[str, Any]]:
        """The best candidate, its strength, and notes on how it was found."""
        total = (len(candidates) > 1) * len(candidates) * len(FIRST_STRENGTHS) + len(STRENGTHS)
        done = 0

        def trial(candidate: Candidate, strength: float, n: int) -> Trial:
            nonlocal done
            found = self.trial(candidate.at(strength), strength, n)
            done += 1
            self.progress(f"tuning {name}", done, total)
            return found

        best = candidates[0]
        if len(candidates) > 1:
            first = [max(trial(c, s, FEWER).score for s in FIRST_STRENGTHS) for c in candidates]
            best = candidates[int(np.argmax(first))]
        trials: list[Trial] = []
        for strength in STRENGTHS:
            trials.append(trial(best, strength, PROMPTS))
            top = max(trial.score for trial in trials)
            if trials[-1].score < top - GIVE_UP:
                break
        chosen = next(trial for trial in trials if trial.score >= top - TOLERANCE)
        notes = {
            **best.label,
            "strength": chosen.strength,
            "validation": {"wanted": round(chosen.wanted, 4), "kept": round(chosen.kept, 4), "prompts": chosen.n},
            "candidates": len(candidates),
            "trials": [asdict(trial) for trial in trials],
        }
        return best, chosen.strength, notes

    def trial(self, intervention: Intervention, strength: float, n: int) -> Trial:
        """Answer `n` prompts of each kind and judge the answers."""
        pairs, n_contrast = self.pairs[:n], len(self.contrast[:n])
        answers = answer_all(self.llama, intervention, self._requests(n), self.journal, timed=False)
        verdicts = [
            Verdict.of(a.text, ends=a.ended, language=self.coherence.accepts(self._fluency(a.text))) for a in answers
        ]
        first, second = verdicts[: len(pairs)], verdicts[len(pairs) :]
        if self.judge == "refusal":
            wanted = [_worth(verdict) for verdict in first]
        else:
            margins = self._margins(intervention, pairs)
            wanted = [float(m and verdict.language) for m, verdict in zip(margins, first, strict=True)]
        kept = [
            (not verdict.declined or declines(plain)) and verdict.language
            for verdict, plain in zip(second, self.plain[:n_contrast], strict=True)
        ]
        return Trial(strength, float(np.mean(wanted)), float(np.mean(kept)), len(pairs))

    def _requests(self, n: int) -> list[EvalRequest]:
        wanted = [
            EvalRequest(pair.prompt.messages, WHOLE_TOKENS, TEMPERATURE)
            if self.judge == "refusal"
            else EvalRequest(pair.prompt.messages, ANSWER_TOKENS)
            for pair in self.pairs[:n]
        ]
        return wanted + [EvalRequest(prompt.messages, ANSWER_TOKENS) for prompt in self.contrast[:n]]

    def _fluency(self, text: str) -> Fluency:
        self.llama.set_profiles([])
        return fluency(self.llama, text, self.journal)

    def _margins(self, intervention: Intervention, pairs: Sequence[Pair]) -> list[bool]:
        """For every pair whether its chosen answer is likelier a token than its rejected one."""
        keys = [
            digest("margin", intervention.digest, pair.prompt.messages, pair.chosen, pair.rejected) for pair in pairs
        ]
        with intervention.applied(self.llama):
            for key, pair in zip(keys, pairs, strict=True):
                if key not in self.journal:
                    self.journal[key] = self._margin(intervention, pair)
        return [self.journal[key] > 0 for key in keys]

    def _margin(self, intervention: Intervention, pair: Pair) -> float:
        prompt, turn, answers = pair_tokens(self.llama, pair)
        intervention.expect(len(prompt))
        chosen, rejected = answer_logprobs(self.llama, prompt, answers, turn=turn)
        self.llama.tap.check()
        return float(chosen.mean() - rejected.mean())


def _worth(verdict: Verdict) -> float:
    """What an answer to a prompt that should be declined is worth."""
    if verdict.defended:
        return 1.0
    return 0.5 * (verdict.declined and verdict.language and not verdict.circles)


def _spread(items: Sequence[Any], n: int) -> list[Any]:
    """At most `n` of the items, from all over the list, in an order in which every beginning is spread too."""
    step = max(len(items) / n, 1.0)
    chosen = [items[int(i * step)] for i in range(min(len(items), n))]
    return [chosen[i] for start in range(3) for i in range(start, len(chosen), 3)]
