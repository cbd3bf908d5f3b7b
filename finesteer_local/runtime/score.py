"""Log-probabilities of given answers, for tuning and evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from finesteer_local.runtime.steered import SteeredLlama


def answer_logprobs(
    llama: SteeredLlama, prompt: Sequence[int], answers: Sequence[Sequence[int]], *, turn: int = 0
) -> list[NDArray[np.float64]]:
    """Log-probability of each token of each answer after `prompt`, steered as the active profiles decide.

    The prompt is read once for all answers; its cache is left at the prompt's end.

    Args:
        prompt: prompt tokens, at least one.
        answers: tokens of the answers, none empty.
        turn: index of the first token of the last user message, as `turn_start` gives it.

    Returns:
        For every answer its tokens' log-probabilities, float64, shape (n_answer,).
    """
    prompt, results = list(prompt), []
    llama.forget()
    for answer in answers:
        tokens = list(answer)
        if llama.n_tokens != len(prompt):
            llama.expect(turn)
            llama.eval(prompt)
            first = _logits(llama, -1, 1).copy()  # (1, n_vocab); the next decode overwrites llama.cpp's own
        scores = [*_logprobs(first, tokens[:1])]
        for start in range(0, len(tokens) - 1, llama.n_batch):
            read = tokens[start : len(tokens) - 1][: llama.n_batch]
            llama.decode_batch(read, len(prompt) + start, all_rows=True)
            scores += [*_logprobs(_logits(llama, 0, len(read)), tokens[start + 1 : start + 1 + len(read)])]
        results.append(np.array(scores, np.float64))
        llama.keep(len(prompt))  # where the memory cannot be cut, the prompt is read again
        llama.stale = True  # the logits at hand are not the prompt's
    return results


def _logits(llama: SteeredLlama, first: int, n_rows: int) -> NDArray[np.float32]:
    """Rows of the last decode's logits from `first` on, (n_rows, n_vocab): llama.cpp's memory until the next decode."""
    pointer = llama_cpp.llama_get_logits_ith(llama.ctx, first)
    return np.ctypeslib.as_array(pointer, shape=(n_rows, llama.n_vocab()))


def _logprobs(logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float64]:
    """Log-probability of one token a row, (n_rows,).

    Row by row in the logits' own precision, summed in float64: a row stays in the cache, where float64 copies of all
    rows (20 MB for 50 tokens of a vocabulary of 49,152) cost more time than the model.
    """
    scores = np.empty(len(tokens), np.float64)
    for i, (row, token) in enumerate(zip(logits, tokens, strict=True)):
        top = row.max()
        scores[i] = np.float64(row[token]) - top - np.log(np.exp(row - top).sum(dtype=np.float64))
    return scores
