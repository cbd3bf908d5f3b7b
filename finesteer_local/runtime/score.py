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
    if other := getattr(llama, "answer_logprobs", None):  # a model of training's other backend has no llama.cpp context
        scores: list[NDArray[np.float64]] = other(prompt, answers, turn)
        return scores
    llama.forget()
    for answer in answers:
        tokens = list(answer)
        if llama.n_tokens != len(prompt):
            llama._expect_prompt(turn)
            llama.eval(prompt)
            first = _log_softmax(_logits(llama, -1, 1))[0]  # (n_vocab,)
        scores = [first[tokens[0]]]
        for start in range(0, len(tokens) - 1, llama.n_batch):
            read = tokens[start : len(tokens) - 1][: llama.n_batch]
            llama._batch.set_batch(batch=read, n_past=len(prompt) + start, logits_all=True)
            llama._ctx.decode(llama._batch)
            rows = _log_softmax(_logits(llama, 0, len(read)))
            scores += [row[token] for row, token in zip(rows, tokens[start + 1 :], strict=False)]
        results.append(np.array(scores, np.float64))
        llama.keep(len(prompt))  # where the memory cannot be cut, the prompt is read again
        llama._requires_eval = True  # the logits at hand are not the prompt's
    return results


def _logits(llama: SteeredLlama, first: int, n_rows: int) -> NDArray[np.float32]:
    """Rows of the last decode's logits from `first` on, (n_rows, n_vocab)."""
    pointer = llama_cpp.llama_get_logits_ith(llama.ctx, first)
    return np.ctypeslib.as_array(pointer, shape=(n_rows, llama.n_vocab())).copy()


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
