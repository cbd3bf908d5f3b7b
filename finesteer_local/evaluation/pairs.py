"""Preference pairs for the methods that an evaluation trains, prepared as `finesteer-local train` prepares ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finesteer_local.evaluation.judges import is_refusal
from finesteer_local.runtime import SteeredLlama
from finesteer_local.training.data import Pair, Prompt, TrainingData, split
from finesteer_local.training.harvest import TrainingHarvest, answer_tokens

MAX_PAIRS = 160
REPLY_TOKENS = 24
NATURAL = 8  # answers of a pool that are used
JUDGES = 5  # prompts by which they are chosen
DELTA_TOKENS = 10


def sampled(data: TrainingData, seed: int) -> tuple[list[Pair], list[int], list[int]]:
    """At most MAX_PAIRS pairs, every kind and wrapper with its share, and indices for training and for validation."""
    pairs = list(data.pairs)
    if len(pairs) > MAX_PAIRS:
        _, chosen = split(len(pairs), [_group(p.prompt) for p in pairs], seed, share=MAX_PAIRS / len(pairs))
        if len(chosen) < MAX_PAIRS // 2:  # many small groups: the share of each rounds to nothing
            chosen = sorted(np.random.default_rng(seed).permutation(len(pairs)).tolist())
        pairs = [pairs[i] for i in chosen[:MAX_PAIRS]]
    learn, held = held_out([pair.prompt for pair in pairs], seed)
    return pairs, learn, held


def held_out(prompts: Sequence[Prompt], seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, every kind and wrapper with its share."""
    learn, held = split(len(prompts), [_group(prompt) for prompt in prompts], seed)
    if not held:  # every kind is small: hold out every fifth
        held = list(range(0, len(prompts), 5))
        learn = [i for i in range(len(prompts)) if i % 5]
    return learn, held


def _group(prompt: Prompt) -> str:
    return prompt.family or prompt.kind


def prepared(harvest: TrainingHarvest, data: TrainingData, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs as deltas are taken from them.

    Of a recipe's pool of chosen answers the likeliest are used; the rejected answer is the model's own reply, where
    the recipe says so and that reply shows the unwanted behaviour; both are cut to their first DELTA_TOKENS tokens.
    """
    pairs = list(pairs)
    pool = sorted({pair.chosen for pair in pairs})
    if data.recipe and NATURAL < len(pool) <= len(pairs) // 2:
        judges = [pair.prompt for pair in pairs[:: max(len(pairs) // JUDGES, 1)][:JUDGES]]
        order = np.argsort(-harvest.likelihood(judges, pool, DELTA_TOKENS), kind="stable")
        pairs = [replace(pair, chosen=pool[order[i % NATURAL]]) for i, pair in enumerate(pairs)]
    if data.own_replies:
        replies = harvest.replies(pairs, REPLY_TOKENS)
        pairs = [
            replace(pair, rejected=reply)
            if reply.strip() and not (data.judge == "refusal" and is_refusal(reply))
            else pair
            for pair, reply in zip(pairs, replies, strict=True)
        ]
    return [
        replace(pair, chosen=_cut(harvest.llama, pair.chosen), rejected=_cut(harvest.llama, pair.rejected))
        for pair in pairs
    ]


def _cut(llama: SteeredLlama, text: str) -> str:
    tokens = answer_tokens(llama, text)[:DELTA_TOKENS]
    return llama.detokenize(tokens).decode("utf-8", errors="ignore") or text
