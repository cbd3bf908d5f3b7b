"""The next token of one sequence, by llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from finesteer_local.errors import SteeringError
from finesteer_local.runtime.batch.request import Sampling
from finesteer_local.runtime.compat import new_sampler
from finesteer_local.runtime.constraint import compiled
from finesteer_local.runtime.steered import SteeredLlama

Logits = NDArray[np.float32]  # (n_vocab,)

_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Sampler:
    """The sampler chain of `llama_cpp.Llama` (`_init_sampler`): bias, penalties, grammar, then how to choose.

    Raises:
        PromptError: the grammar does not compile (`constraint.compiled`).
    """

    def __init__(self, llama: SteeredLlama, sampling: Sampling, seed: int) -> None:
        self._n_vocab = llama.n_vocab()
        self._greedy = sampling.temperature == 0.0
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        self._weighs = bool(sampling.logit_bias) or penalties != (1.0, 0.0, 0.0)
        self._weigh = new_sampler()
        if sampling.logit_bias:
            self._weigh.add_logit_bias(self._n_vocab, dict(sampling.logit_bias))
        self._weigh.add_penalties(self._n_vocab, llama.last_n_tokens_size, *penalties)
        self._choose = new_sampler()
        if not self._greedy:
            _add_choice(self._choose, sampling, seed, self._n_vocab)
        self._grammar = None if sampling.grammar is None else compiled(llama, sampling.grammar)
        self._constraint = None if self._grammar is None else self._grammar.begin()

    def sample(self, logits: Logits) -> int:
        """Choose a token and remember it.

        Raises:
            SteeringError: the logits are not finite.
            PromptError: the grammar allows no token, or has become too complex.
        """
        if self._greedy and not self._weighs:
            token = int(logits.argmax())  # NaN is the greatest to NumPy
            if not np.isfinite(logits[token]):
                raise SteeringError(_NOT_FINITE)
            if self._constraint is not None:
                allowed = self._constraint.allowed()
                token = token if allowed[token] else int(np.where(allowed, logits, np.float32(-np.inf)).argmax())
                self._constraint.accept(token)
            return token
        if not np.isfinite(logits.max()):
            raise SteeringError(_NOT_FINITE)
        token = self._from(logits)
        self._weigh.accept(token)
        self._choose.accept(token)
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def go_back(self, tokens: Sequence[int]) -> None:
        """Go on as after `tokens`, those of the answer that are left; what is drawn next is as random as before."""
        self._weigh.reset()
        self._constraint = None if self._grammar is None else self._grammar.begin()
        for token in tokens:
            self._weigh.accept(token)
            if self._constraint is not None:
                self._constraint.accept(token)

    def _from(self, logits: Logits) -> int:
        candidates = _Candidates(logits)
        candidates.apply(self._weigh.sampler)
        if self._constraint is not None:
            candidates.leave(self._constraint.allowed())
        if self._greedy:
            return candidates.likeliest()
        candidates.apply(self._choose.sampler)
        return candidates.selected()

    def close(self) -> None:
        self._weigh.close()
        self._choose.close()
        self._constraint = None


_NOT_FINITE = "the model's logits are not finite; a lower strength may help, or the model file is damaged"


def _add_choice(chain: Any, sampling: Sampling, seed: int, n_vocab: int) -> None:
    if sampling.temperature < 0.0:
        chain.add_dist(seed)
    elif sampling.mirostat_mode == 1:
        chain.add_mirostat(n_vocab, seed, sampling.mirostat_tau, sampling.mirostat_eta, 100)
    elif sampling.mirostat_mode == 2:
        chain.add_mirostat_v2(seed, sampling.mirostat_tau, sampling.mirostat_eta)
    else:
        chain.add_top_k(sampling.top_k)
        chain.add_typical(sampling.typical_p, 1)
        chain.add_top_p(sampling.top_p, 1)
        chain.add_min_p(sampling.min_p, 1)
        chain.add_temp(sampling.temperature)
        chain.add_dist(seed)


class _Candidates:
    """llama_token_data_array over all tokens, as `llama_sampler_sample` builds it."""

    def __init__(self, logits: Logits) -> None:
        self._data = np.empty(len(logits), _TOKEN)
        self._data["id"] = np.arange(len(logits), dtype=np.int32)
        self._data["logit"] = logits
        self._data["p"] = 0
        pointer = ctypes.cast(self._data.ctypes.data, llama_cpp.llama_token_data_p)
        self._array = llama_cpp.llama_token_data_array(pointer, len(logits), -1, False)

    def apply(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(self._array))

    def likeliest(self) -> int:
        """The first of the likeliest tokens; samplers that weigh leave the tokens in their places."""
        return int(self._data["id"][self._data["logit"].argmax()])

    def leave(self, allowed: NDArray[np.bool_]) -> None:
        """Rule out all other tokens. Samplers that weigh leave the tokens in their places."""
        self._data["logit"][~allowed] = -np.inf

    def selected(self) -> int:
        # A sampler may have put the tokens elsewhere.
        return int(self._array.data[self._array.selected].id)
