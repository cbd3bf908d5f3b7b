"""Chooses the pairs that directions are learnt from, and their answers, for our experts and for other methods alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from finesteer_local.judges.phrases import is_refusal
from finesteer_local.runtime.trainable import TrainableModel
from finesteer_local.training.data import (
    MIN_PAIRS,
    PLAIN,
    WRAPPED,
    Pair,
    Prompt,
    TrainingData,
    first_equal,
    split,
    spread,
)
from finesteer_local.training.model_data import ModelData

MAX_PAIRS = 240
"""Most pairs of a recipe whose rejected answers are the model's own replies: each pair costs a reply."""
MAX_GIVEN_PAIRS = 640
"""Most pairs of a recipe whose pairs bring both answers, which are only read."""
REPLY_TOKENS = 12
"""Longest own reply of the model; only its beginning counts, see DELTA_TOKENS."""
OWN_TOKENS = 24
"""Length of the unsteered answers that set the limits for language; shorter ones set them nearly twice too high."""
NATURAL = 8
"""Of a pool of chosen answers, the likeliest ones are used, so many."""
JUDGES = 5
"""Prompts after which the likelihood of the chosen answers is measured."""
_SENTENCE = re.compile(r"(?<=[.!?。])\s*")
LESSON = 900
"""Most pairs whose whole answers are learnt through the model, those that are held out included."""
HANDFUL = 5
"""So many different answers one vector is learnt from, where a pool has more."""
DELTA_TOKENS = 10
"""Answers are compared over their first tokens: that is where a behaviour is decided, and what follows is topic."""


def sample(data: TrainingData, seed: int, share: float = 1.0) -> list[Pair]:
    """As many pairs as training takes, every kind and wrapper with its share; or only a share of so many."""
    pairs, most = data.pairs, round(share * (MAX_PAIRS if data.own_replies else MAX_GIVEN_PAIRS))
    if len(pairs) <= most:
        return list(pairs)
    groups = [pair.prompt.family or pair.prompt.kind for pair in pairs]
    _, sampled = split(len(pairs), groups, seed, share=most / len(pairs))
    if len(sampled) < most // 2:  # many small groups: the share of each rounds to nothing
        sampled = list(range(len(pairs)))
    if len(sampled) > most:  # or is rounded up to one each: no more of the list's beginning than of its end
        sampled = sorted(np.random.default_rng(seed).permutation(sampled)[:most].tolist())
    return [pairs[i] for i in sampled]


def lesson(data: TrainingData, seed: int) -> list[Pair]:
    """Pairs whose chosen answers are learnt whole: plain and wrapped requests by equal shares, the requests of every
    expert by equal ones of these, and every kind with its own.

    Where the answers come from pools, each expert's are those that begin alike.

    Pages and foreign requests are left to the gate: they cost most, and ask for the same. Where a recipe has little
    else, they are learnt from as well.
    """
    found: list[Pair] = []
    for form in (PLAIN, WRAPPED):
        groups = by_expert(data, [pair for pair in data.pairs if pair.prompt.form == form])
        if len(groups) > 1:
            groups.pop("", None)  # nobody knows which of the answers fits them
        for pairs in groups.values():
            drawn = list(range(len(pairs)))
            if len(pairs) > LESSON // 2 // len(groups):
                kinds = [pair.prompt.family or pair.prompt.kind for pair in pairs]
                drawn = split(len(pairs), kinds, seed, share=LESSON / 2 / len(groups) / len(pairs))[1]
            found += [pairs[i] for i in drawn]
    if len(found) < MIN_PAIRS:
        drawn = sorted(np.random.default_rng(seed).permutation(len(data.pairs))[:LESSON].tolist())
        found = [data.pairs[i] for i in drawn]
    if not data.pooled:
        return found
    return [pair for pairs in by_expert(data, found).values() for pair in decline_alike(pairs)]


def by_expert(data: TrainingData, pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs by the expert that their prompts are for, "" where a recipe names none; experts in order."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(data.expert(pair.prompt), []).append(pair)
    return dict(sorted(groups.items()))


def decline_alike(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs whose chosen answers are dealt from a handful: the shortest that begin with the pool's commonest sentence.

    A sampled answer is decided by its first tokens. Where the lessons open in many ways, samples fall between them, and
    half of what a small model then says is no refusal. How they go on is mixed likewise: of sixteen endings it made new
    ones, which meant nothing or offered help after all; five it says as they are (docs/experiments.md).
    """
    pool = sorted({pair.chosen for pair in pairs})
    openings = Counter(_SENTENCE.split(text, maxsplit=1)[0] for text in pool)
    common, n = openings.most_common(1)[0]
    alike = [text for text in pool if text.startswith(common)] if n > 1 else pool
    plain = sorted(alike, key=len)[:HANDFUL]
    return [replace(pair, chosen=plain[i % len(plain)]) for i, pair in enumerate(pairs)]


def held_out(prompts: Sequence[Prompt], seed: int) -> tuple[list[int], list[int]]:
    """Indices for training and validation, every kind and wrapper with its share; equal prompts stay together."""
    first = first_equal(prompts)
    distinct = [i for i in range(len(prompts)) if first[i] == i]
    _, chosen = split(len(distinct), [prompts[i].family or prompts[i].kind for i in distinct], seed)
    held = {distinct[i] for i in chosen} or set(distinct[::5])  # every kind is small: hold out every fifth
    return [i for i, j in enumerate(first) if j not in held], [i for i, j in enumerate(first) if j in held]


def natural(model_data: ModelData, data: TrainingData, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs whose chosen answers, where a recipe deals out a pool of them, are those the model finds likeliest itself.

    Answers in the model's own voice agree on a direction; foreign ones cancel each other out. Where kinds have experts
    of their own, each of these has its own pool.
    """
    pool = sorted({pair.chosen for pair in pairs})
    if len(pool) <= NATURAL or len(pool) > len(pairs) // 2:
        return list(pairs)
    likelihood = model_data.likelihood([pair.prompt for pair in spread(pairs, JUDGES)], pool, DELTA_TOKENS)
    ranked = [pool[i] for i in np.argsort(-likelihood, kind="stable")]
    experts = [data.expert(pair.prompt) for pair in pairs]
    found = list(pairs)
    for expert in set(experts):
        places = [i for i, each in enumerate(experts) if each == expert]
        own = {pairs[i].chosen for i in places}
        best = [answer for answer in ranked if answer in own][:NATURAL]
        for n, i in enumerate(places):
            found[i] = replace(pairs[i], chosen=best[n % len(best)])
    return found


def against_replies(pairs: Sequence[Pair], replies: Sequence[str], judge: str) -> list[Pair]:
    """Pairs whose rejected answer is the model's own reply, except where that already is what is wanted."""
    return [
        pair if not reply.strip() or (judge == "refusal" and is_refusal(reply)) else replace(pair, rejected=reply)
        for pair, reply in zip(pairs, replies, strict=True)
    ]


def clipped(llama: TrainableModel, pair: Pair) -> Pair:
    """The pair with both answers cut to their first DELTA_TOKENS tokens."""

    def cut(text: str) -> str:
        tokens = llama.tokenize(text.encode(), add_bos=False, special=False)[:DELTA_TOKENS]
        return llama.detokenize(tokens).decode("utf-8", errors="ignore") or text

    return replace(pair, chosen=cut(pair.chosen), rejected=cut(pair.rejected))
