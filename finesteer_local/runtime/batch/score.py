"""Log-probabilities of the tokens of answers and prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from finesteer_local.runtime.batch.answer import TokenScore


def token_score(
    token: int, logits: NDArray[np.float32] | None, n_top: int, text_of: Callable[[int], bytes]
) -> TokenScore:
    """A token's log-probability and the `n_top` likeliest ones, from the logits (n_vocab,) before it, unweighed.

    As `llama_cpp.Llama.logits_to_logprobs`.
    """
    if logits is None:
        return TokenScore(token, text_of(token), None, ())
    shifted = logits - logits.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    n_top = min(n_top, len(logprobs))
    likeliest = np.argpartition(-logprobs, n_top - 1)[:n_top] if n_top else np.empty(0, np.int64)
    likeliest = likeliest[np.argsort(-logprobs[likeliest], kind="stable")]
    top = tuple((int(i), text_of(int(i)), float(logprobs[i])) for i in likeliest)
    return TokenScore(token, text_of(token), float(logprobs[token]), top)
