"""What a gate learns from: hidden states of the recipe's prompts, of as many as there is time for; and the gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from finesteer_local.steering import ContrastiveGate
from finesteer_local.training.data import Prompt, TrainingData
from finesteer_local.training.effort import MIN_PROMPTS, Deadline, fit_seconds, portions
from finesteer_local.training.gates import GateFit, fit_contrastive_gate
from finesteer_local.training.model_data import ModelData, Turns
from finesteer_local.training.teacher import Taught

PORTION = 2000
"""Prompts that are read between two looks at the clock."""


@dataclass(frozen=True)
class GateData:
    """Prompts that need intervention, then those that do not, and the hidden states of their last turns.

    `teachers` are the models whose gates say more of them (teacher.py).
    """

    positive: list[Prompt]
    contrast: list[Prompt]
    turns: Turns
    teachers: Sequence[str] = ()

    @property
    def prompts(self) -> list[Prompt]:
        return [*self.positive, *self.contrast]


def read_for_gate(model_data: ModelData, data: TrainingData, layer: int, deadline: Deadline, *, keep: bool) -> GateData:
    """Read the prompts of `data` at `layer`: all of them, or as many as can be read and learnt from in time.

    The order is the data's own (`TrainingData.ordered`), so what little time allows is a part of what more does.

    Args:
        keep: an interruption ends the reading, and what has been read by then is learnt from.
    """
    order = data.ordered
    read: list[Turns] = []
    n = 0
    try:
        later = partial(fit_seconds, data=data)
        for n, part in portions(order, PORTION, deadline, least=MIN_PROMPTS, later=later):
            read.append(model_data.turns([prompt for _, prompt in part], layer, before=n - len(part), total=len(order)))
    except KeyboardInterrupt:
        if not keep or sum(map(len, read)) < MIN_PROMPTS:
            raise
        n = sum(map(len, read))
    taken = order[:n]
    positive = [i for i, (needs, _) in enumerate(taken) if needs]
    contrast = [i for i, (needs, _) in enumerate(taken) if not needs]
    return GateData(
        positive=[taken[i][1] for i in positive],
        contrast=[taken[i][1] for i in contrast],
        turns=Turns.joined(read, [*positive, *contrast], model_data.folder),
    )


def fit_gate(
    model_data: ModelData,
    data: TrainingData,
    read: GateData,
    *,
    seed: int,
    taught: Taught | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ContrastiveGate, GateFit]:
    """The contrastive gate that learns from what was `read` of `data`; see `gates.fit_contrastive_gate`."""
    positive, contrast = read.turns.parted(len(read.positive))
    return fit_contrastive_gate(
        positive,
        contrast,
        [prompt.family for prompt in read.prompts],
        [prompt.form for prompt in read.prompts],
        [model_data.request_span(prompt) for prompt in read.prompts],
        seed=seed,
        graded=data.judge == "margin",
        taught=taught,
        progress=progress,
    )
