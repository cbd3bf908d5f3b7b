"""Plain llama.cpp with many sequences, with which benchmarks compare the engine."""

from __future__ import annotations

from collections.abc import Sequence

from finesteer_local.runtime.batch.context import Streams, Token


def bare_tokens(
    streams: Streams, prompts: Sequence[Sequence[int]], lengths: Sequence[int], *, together: bool
) -> list[list[int]]:
    """Greedy answers without us: a `llama_decode` for every prompt, then one for every token of one or all sequences.

    Args:
        lengths: tokens of each answer. Together, the longest must come first: llama.cpp takes neighbours only.
    """
    streams.forget()
    order = sorted(range(len(prompts)), key=lambda i: -lengths[i]) if together else list(range(len(prompts)))
    answers: list[list[int]] = [[] for _ in prompts]
    for group in [order] if together else [[i] for i in order]:
        for place, i in enumerate(group):
            last = len(prompts[i]) - 1
            for start in range(0, len(prompts[i]), streams.n_ubatch):
                chunk = range(start, min(start + streams.n_ubatch, last + 1))
                streams.decode([Token(prompts[i][j], j, place, j == last) for j in chunk])
            answers[i].append(int(streams.logits(last - start).argmax()))
        while going := [i for i in group if len(answers[i]) < lengths[i]]:
            streams.decode(
                [Token(answers[i][-1], len(prompts[i]) + len(answers[i]) - 1, group.index(i), True) for i in going]
            )
            for row, i in enumerate(going):
                answers[i].append(int(streams.logits(row).argmax()))
        streams.keep(0, 0)
    return answers
