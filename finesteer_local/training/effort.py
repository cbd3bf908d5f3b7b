"""How much a training does: fixed amounts, or what fits into the minutes that it may take.

What steers is learnt and tuned first. The gate comes last, and learns from as many of the recipe's prompts as the rest
of the time allows (gate_data.py). So a plan only has to choose how thoroughly the first part is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.training.data import Prompt, TrainingData, spread
from finesteer_local.training.layers import candidate_layers
from finesteer_local.training.model_data import ModelData, generate
from finesteer_local.training.optimise import ANSWERS as LESSONS
from finesteer_local.training.optimise import Example, learn_whole, whole_batches
from finesteer_local.training.pairs import MAX_PAIRS, OWN_TOKENS, lesson
from finesteer_local.training.progress import quiet
from finesteer_local.training.search import search_name
from finesteer_local.training.teacher import PROMPTS
from finesteer_local.training.trials import ANSWERS, OWN_ANSWERS

_Item = TypeVar("_Item")

MIN_PROMPTS = 1000
"""From so many prompts a gate learns, if a recipe has them, however little time there is."""
MIN_WATCHED = 128
"""From fewer of the model's own answers no answers' gate is learnt."""
FIT_SECONDS = 3e-3
"""That fitting a gate and the kinds takes for each prompt, beside reading it."""
TAUGHT_SECONDS = 2e-3
"""The same where a teacher gives the gate its beginning (teacher.py)."""
_FIRST_PART = 0.5
"""At most this share of the time goes into what steers; the gate decides on everything else."""
TUNING_PART = 1 / 3
"""So much of the time tuning has in any case, also where learning has left less."""
LAST_PART = 0.2
"""And this share, at most, into the answers' gate, where there is to be one."""
_ASKED = 16  # answers that tell how fast the model writes
_READ, _LONGEST = 192, 400  # prompts that tell how fast it is read, and the letters of each
_LESSONS = 4  # batches that tell how fast answers are learnt through the model
_COUNTED = 400  # prompts of which the tokens are counted
SETTING_UP = 25.0  # seconds: loading, the lower layers, and what else does not grow


@dataclass(frozen=True)
class Effort:
    """What a training does at most.

    Attributes:
        prompts: from which the gate learns; None: all that the recipe has.
        share: of the pairs from which experts are learnt.
        lessons: whole answers that are learnt through the model.
        answers: of a trial.
        watched: whole answers of the model's own from which the answers' gate learns; 0 for no such gate.
    """

    prompts: int | None
    share: float
    lessons: int
    answers: int
    watched: int = 0

    @property
    def name(self) -> str:
        """What tells it from others that learn what steers from more or less."""
        return f"{self.share:g}-{self.lessons}"


EFFORTS = {
    "quick": Effort(4_000, 1 / 3, 240, 16, 256),
    "standard": Effort(10_000, 2 / 3, 320, 32, 512),
    "full": Effort(None, 1.0, LESSONS, ANSWERS, 1_024),
}
"""Each doubling of the prompts is worth .04 to .08 of the plain requests that a small model's gate recognises,
whichever they are (docs/experiments.md)."""
SMALL = 300_000_000
"""Parameters up to which a model needs all of the lessons to decline in good order; a larger one, half of them."""
LARGE = 1_000_000_000
_FALL = 0.7
"""From so many parameters on a gate reads fewer prompts: half as many at 2.7 billion, a quarter at seven. Otherwise the
prompts of `standard` would be the better part of an hour on a laptop there."""


def effort_of(quality: str, n_parameters: int) -> Effort:
    """What a quality means for a model of this size; all of the recipe's prompts are all whatever it costs."""
    effort = EFFORTS[quality]
    if n_parameters > SMALL:
        effort = replace(effort, lessons=effort.lessons // 2)
    if effort.prompts is None or n_parameters <= LARGE:
        return effort
    return replace(effort, prompts=max(MIN_PROMPTS, round(effort.prompts * (LARGE / n_parameters) ** _FALL)))


@dataclass(frozen=True)
class Pace:
    """How fast this machine is with the loaded model: seconds.

    Attributes:
        answer: to one of many prompts that are answered together, short.
        read: a prompt, up to the gate's layer.
        lesson: an answer that is learnt through the model; 0 where none is.
        watched: a whole answer from which the answers' gate learns, asked and read; 0 where there is no such gate.
        fit: a prompt, once it has been read, for gate and kinds.
    """

    answer: float
    read: float
    lesson: float
    watched: float = 0.0
    fit: float = FIT_SECONDS

    @classmethod
    def measured(
        cls, model_data: ModelData, data: TrainingData, layer: int, weights: Any = None, *, watches: bool = False
    ) -> Pace:
        """From a few of the recipe's prompts; nothing is kept of them.

        Args:
            weights: of the model for PyTorch, where it is learnt through.
            watches: whether the answers' gate is learnt.
        """
        llama, answering = model_data.llama, model_data.answering
        asked = spread(data.positive, _ASKED)
        list(generate(answering, asked[:1], 4))  # the first answer also pays for setting up
        started = time.monotonic()
        list(generate(answering, asked, OWN_TOKENS))
        answer = (time.monotonic() - started) / len(asked)
        learning = 0.0 if weights is None else _lesson_seconds(llama, data, weights)
        watched = answer * _WATCHED if watches else 0.0
        fit = fit_seconds(1, data)
        return cls(answer, _read_seconds(model_data, data, layer), learning, watched, fit)

    def first_part(self, effort: Effort, *, learns: bool, judge: str) -> float:
        """Seconds for what steers: learning and tuning."""
        trials = _TRIALS[search_name(judge, learns)]
        learning = effort.lessons * self.lesson if learns else effort.share * MAX_PAIRS * self.answer * _PAIR
        return learning + (OWN_ANSWERS + trials * effort.answers) * self.answer

    def gate(self, n_prompts: int) -> float:
        """Seconds for a gate that learns from so many prompts."""
        return n_prompts * (self.read + self.fit)

    def answers_gate(self, n_answers: int) -> float:
        """Seconds for a gate that learns from so many of the model's own answers."""
        return n_answers * self.watched

    def whole(self, effort: Effort, n_prompts: int, *, learns: bool, judge: str) -> float:
        """Seconds for a training whose gate learns from so many prompts."""
        first = SETTING_UP + self.first_part(effort, learns=learns, judge=judge)
        return first + self.answers_gate(effort.watched) + self.gate(n_prompts)


_TRIALS = {"refusal, learnt": 3.0, "refusal": 16.0, "margin": 14.0}
"""Settings that are tried, each with all answers of a trial, which are longer than those of the measurement; a trial on
long prompts counts as several, one that is given up as a part."""
_WATCHED = 4.0
"""Answers' worth of time that a whole one takes: it is four times as long as those of the measurement, and some end."""
_PAIR = 1.5  # answers' worth of time that a pair takes: the reply, and reading it and the chosen answer


def fit_seconds(n_prompts: int, data: TrainingData) -> float:
    """Seconds that gate and kinds take for so many of the prompts of `data`, once these have been read."""
    taught = bool(data.teachers) and n_prompts <= PROMPTS
    return n_prompts * (TAUGHT_SECONDS if taught else FIT_SECONDS)


def _read_seconds(model_data: ModelData, data: TrainingData, layer: int) -> float:
    """Seconds that a prompt takes in the mean, from the time of short ones and the tokens of all."""
    everything: list[Prompt] = [*data.positive, *data.contrast]
    short = [prompt for prompt in spread(everything, 4 * _READ) if len(prompt.text) <= _LONGEST]
    a_token = model_data.timed(spread(short, _READ), layer)
    counted = [prompt for prompt in spread(everything, _COUNTED) if model_data.fits(prompt)]
    return a_token * sum(map(model_data.own_tokens, counted)) / len(counted)


def _lesson_seconds(llama: TrainableModel, data: TrainingData, weights: Any) -> float:
    """Seconds that learning an answer through the model takes: one batch of middling length, scaled to all."""
    pairs = lesson(data, 0)
    layers = candidate_layers(llama.n_layer, data.judge, learns=True)
    batches = whole_batches(llama, pairs, end=llama.turn_end, seed=0)
    middling = sorted(batches, key=_n_computed)[len(batches) // 2 :][:_LESSONS]
    learn_whole(weights, layers, middling[:1], quiet)  # the first one also pays for setting up
    started = time.monotonic()
    learn_whole(weights, layers, middling, quiet)
    a_token = (time.monotonic() - started) / sum(map(_n_computed, middling))
    return a_token * sum(map(_n_computed, batches)) / sum(map(len, batches))


def _n_computed(batch: Sequence[Example]) -> int:
    """Tokens that a batch costs: padding is computed, too."""
    return len(batch) * max(len(example.prompt) + len(example.answer) for example in batch)


def fitting(minutes: float, pace: Pace, n_parameters: int, *, learns: bool, judge: str) -> Effort:
    """The most that can be done in this time with a model of this size, with all of the recipe's prompts that are left
    time for."""
    most = minutes * 60 * _FIRST_PART - SETTING_UP
    efforts = [effort_of(quality, n_parameters) for quality in EFFORTS]
    fits = [each for each in efforts if pace.first_part(each, learns=learns, judge=judge) <= most]
    watched = 0
    if pace.watched:
        last = minutes * 60 * LAST_PART
        watched = min(int(last / pace.watched), max(each.watched for each in EFFORTS.values()))
        watched = watched if watched >= MIN_WATCHED else 0
    return replace(fits[-1] if fits else efforts[0], prompts=None, watched=watched)


def least_seconds(effort: Effort, pace: Pace, n_prompts: int, *, learns: bool, judge: str) -> float:
    """Seconds that this takes with no more of the recipe's `n_prompts` than a gate needs."""
    return pace.whole(effort, min(n_prompts, MIN_PROMPTS), learns=learns, judge=judge)


def portions(
    items: Sequence[_Item],
    size: int,
    deadline: Deadline,
    *,
    least: int,
    later: Callable[[int], float] = lambda n: 0.0,
) -> Iterator[tuple[int, Sequence[_Item]]]:
    """How many items will have been worked on after a portion, and its items: as many portions as there is time for.

    Args:
        size: of a portion.
        least: so many items are worked on in any case, and no more of them first where it is late already.
        later: seconds that so many items will take once all are there.
    """
    seconds = 0.0  # that the slowest portion took
    first = min(least, size) if deadline.left <= 0 else size
    for start, n in pairwise(sorted({0, *range(first, len(items), size), len(items)})):
        if start >= least and deadline.left < seconds + later(n):
            return
        begun = time.monotonic()
        yield n, items[start:n]
        seconds = max(seconds, time.monotonic() - begun)


class Deadline:
    """Until when something must be done; with None there is time for everything.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; infinite where there is no deadline."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    def sooner(self, seconds: float) -> Deadline:
        """The same, so many seconds before it."""
        return Deadline(None if self._end is None else self.left - seconds)


NO_DEADLINE = Deadline(None)
