"""What a gate learns from: hidden states of the recipe's prompts, of as many as there is time for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finesteer_local.training.data import Prompt, TrainingData
from finesteer_local.training.effort import FIT_SECONDS, MIN_PROMPTS, Deadline
from finesteer_local.training.model_data import ModelData, Turns

PORTION = 2000
"""Prompts that are read between two looks at the clock."""


@dataclass(frozen=True)
class GateData:
    """Prompts that need intervention, then those that do not, and the hidden states of their last turns."""

    positive: list[Prompt]
    contrast: list[Prompt]
    turns: Turns

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
        for n, part in _portions(order, deadline):
            read.append(model_data.turns(part, layer, before=n - len(part), total=len(order)))
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


def _portions(order: Sequence[tuple[bool, Prompt]], deadline: Deadline) -> Iterator[tuple[int, list[Prompt]]]:
    """How many prompts will have been read after a portion, and its prompts."""
    seconds = 0.0  # that the slowest portion took
    for start in range(0, len(order), PORTION):
        part = [prompt for _, prompt in order[start : start + PORTION]]
        n = start + len(part)
        if start >= MIN_PROMPTS and deadline.left < seconds + n * FIT_SECONDS:
            return
        begun = time.monotonic()
        yield n, part
        seconds = max(seconds, time.monotonic() - begun)
