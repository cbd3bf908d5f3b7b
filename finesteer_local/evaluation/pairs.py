"""Preference pairs for the methods that an evaluation trains, prepared as `finesteer-local train` prepares ours."""

from __future__ import annotations

from collections.abc import Sequence

from finesteer_local.training.data import Pair, TrainingData
from finesteer_local.training.model_data import ModelData
from finesteer_local.training.pairs import REPLY_TOKENS, against_replies, clipped, held_out, natural, sample


def sampled(data: TrainingData, seed: int) -> tuple[list[Pair], list[int], list[int]]:
    """The pairs that training takes, and indices for training and for validation."""
    pairs = sample(data, seed)
    return pairs, *held_out([pair.prompt for pair in pairs], seed)


def prepared(model_data: ModelData, data: TrainingData, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs as deltas are taken from them.

    The likeliest chosen answers of a recipe's pool are used; the rejected answer is the model's own reply, where
    the recipe says so and that reply shows the unwanted behaviour; both are cut to their first DELTA_TOKENS tokens.
    """
    pairs = list(pairs)
    if data.pooled:
        pairs = natural(model_data, data, pairs)
    if data.own_replies:
        pairs = against_replies(pairs, model_data.replies(pairs, REPLY_TOKENS), data.judge)
    return [clipped(model_data.llama, pair) for pair in pairs]
