"""The next token of one sequence, by llama.cpp's own samplers."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llama_cpp import _internals, llama_cpp
from numpy.typing import NDArray

from finesteer_local.errors import PromptError, SteeringError
from finesteer_local.runtime.batch.request import Sampling
from finesteer_local.runtime.steered import SteeredLlama

Logits = NDArray[np.float32]  # (n_vocab,)

_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Sampler:
    """The sampler chain of `llama_cpp.Llama` (`_init_sampler`): bias, penalties, grammar, then how to choose.

    Raises:
        PromptError: the grammar does not parse.
    """

    def __init__(self, llama: SteeredLlama, sampling: Sampling, seed: int) -> None:
        self._n_vocab = llama.n_vocab()
        self._greedy = sampling.temperature == 0.0
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        self._weighs = bool(sampling.logit_bias) or penalties != (1.0, 0.0, 0.0)
        self._weigh = _chain()
        if sampling.logit_bias:
            self._weigh.add_logit_bias(self._n_vocab, dict(sampling.logit_bias))
        self._weigh.add_penalties(self._n_vocab, llama.last_n_tokens_size, *penalties)
        self._choose = _chain()
        if not self._greedy:
            _add_choice(self._choose, sampling, seed, self._n_vocab)
        self._grammar = None if sampling.grammar is None else _Grammar(llama, sampling.grammar)

    def sample(self, logits: Logits) -> int:
        """Choose a token and remember it.

        Raises:
            SteeringError: the logits are not finite.
            PromptError: the grammar allows no token.
        """
        if self._greedy and not self._weighs:
            token = int(logits.argmax())  # NaN is the greatest to NumPy
            if not np.isfinite(logits[token]):
                raise SteeringError(_NOT_FINITE)
            if self._grammar is None:
                return token
        elif not np.isfinite(logits.max()):
            raise SteeringError(_NOT_FINITE)
        token = self._from(logits)
        self._weigh.accept(token)
        self._choose.accept(token)
        if self._grammar is not None:
            self._grammar.accept(token)
        return token

    def _from(self, logits: Logits) -> int:
        candidates = _Candidates(logits)
        candidates.apply(self._weigh.sampler)
        if self._grammar is not None:
            # Greedy, the likeliest token is right if the grammar allows it: the other tokens need no look.
            if self._greedy:
                token = candidates.likeliest()
                if self._grammar.allows(token):
                    return token
            candidates.apply(self._grammar.sampler)
            if not candidates.any_left:
                raise PromptError("the grammar allows no token of this model's vocabulary here")
        if self._greedy:
            return candidates.likeliest()
        candidates.apply(self._choose.sampler)
        return candidates.selected()

    def close(self) -> None:
        self._weigh.close()
        self._choose.close()
        if self._grammar is not None:
            self._grammar.close()


_NOT_FINITE = "the model's logits are not finite; a lower strength may help, or the model file is damaged"


def _chain() -> Any:
    return _internals.LlamaSampler()  # type: ignore[no-untyped-call]


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

    @property
    def any_left(self) -> bool:
        return bool(self._data["logit"].max() > -np.inf)

    def selected(self) -> int:
        # A sampler may have put the tokens elsewhere.
        return int(self._array.data[self._array.selected].id)


class _Grammar:
    """llama.cpp's grammar sampler. It ends the process on a token that it does not allow: ask before `accept`."""

    def __init__(self, llama: SteeredLlama, text: str) -> None:
        self.sampler = llama_cpp.llama_sampler_init_grammar(llama._model.vocab, text.encode(), b"root")
        if not self.sampler:
            raise PromptError("the grammar is not valid GBNF, or has no rule `root`")

    def allows(self, token: int) -> bool:
        data = (llama_cpp.llama_token_data * 1)(llama_cpp.llama_token_data(token, 0.0, 0.0))
        array = llama_cpp.llama_token_data_array(data, 1, -1, False)
        llama_cpp.llama_sampler_apply(self.sampler, ctypes.byref(array))
        return bool(data[0].logit > -np.inf)

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self.sampler, token)

    def close(self) -> None:
        if self.sampler:
            llama_cpp.llama_sampler_free(self.sampler)
            self.sampler = None

    def __del__(self) -> None:
        self.close()
