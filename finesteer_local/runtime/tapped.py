"""`llama_cpp.Llama` with the tap in its eval callback, and nothing else changed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp
from llama_cpp.llama_tokenizer import LlamaTokenizer

from finesteer_local.runtime.compat import OpenLlama, set_fields
from finesteer_local.runtime.machine import has_accelerator
from finesteer_local.runtime.prompt import chat_prompt, turn_start
from finesteer_local.runtime.tap import Tap
from finesteer_local.runtime.template import tolerant_templates
from finesteer_local.runtime.tokens import detokenise, ends_answer, tokenise, vocab_of

if TYPE_CHECKING:
    from finesteer_local.runtime.harvest import Reader


class TappedLlama(OpenLlama):
    """A drop-in `Llama` whose context has a `tap`. Unarmed, tokens and logits are those of `Llama`, bit for bit."""

    def __init__(self, model_path: str, *, native_tap: bool = True, **kwargs: Any) -> None:
        self.tap = Tap(self.n_embd, native=native_tap)
        with tolerant_templates():
            super().__init__(model_path, **kwargs)
        self._fill_context()

    # Llama.__init__ makes the parameters, fills them in and creates the context in one go; the callback must be in
    # them by then, and there is no argument for it. Their first assignment is the one moment to add it.
    @property
    def context_params(self) -> Any:
        return self._context_params

    @context_params.setter
    def context_params(self, params: Any) -> None:
        self._context_params = set_fields(params, cb_eval=self.tap.callback, cb_eval_user_data=self.tap.user_data)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        return {**state, "native_tap": self.tap.native}

    def _fill_context(self) -> None:
        """Make room for as many tokens as llama.cpp has: it rounds a context up to a multiple of 256."""
        if len(self.input_ids) < self.n_ctx():
            self.input_ids = np.zeros(self.n_ctx(), np.intc)
            if self.keeps_all_logits:
                self.scores = np.zeros((self.n_ctx(), self.n_vocab()), np.single)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """As `Llama.tokenize`, for any text (see `tokens.tokenise`).

        Raises:
            PromptError: the model's tokenizer cannot take it.
        """
        if type(self.tokenizer_) is not LlamaTokenizer:  # the caller's own
            return super().tokenize(text, add_bos, special)
        return tokenise(self, super().tokenize, text, add_bos, special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        """As `Llama.detokenize`, long tokens included (see `tokens.detokenise`)."""
        if type(self.tokenizer_) is not LlamaTokenizer:  # the caller's own
            return super().detokenize(tokens, prev_tokens, special)
        return detokenise(self, tokens, special)

    def tokenizer(self) -> LlamaTokenizer:
        """As `Llama.tokenizer`, as safe as `tokenize`."""
        return _Tokenizer(self)

    @property
    def n_layer(self) -> int:
        return int(llama_cpp.llama_model_n_layer(self.model))

    @property
    def n_parameters(self) -> int:
        return int(llama_cpp.llama_model_n_params(self.model))

    @property
    def turn_end(self) -> int:
        """The token with which the model ends its turn: what its template writes behind an answer.

        `llama_vocab_eot` is no help: it takes any of the names that it knows, of SmolLM2's `<|endoftext|>`.
        """
        talk = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
        prompt = chat_prompt(self, talk)
        vocab = vocab_of(self)
        before = prompt[: turn_start(self, talk, prompt)]
        ends = [token for token in before if ends_answer(vocab, token)]
        return ends[-1] if ends else int(self.token_eos())

    @property
    def offloads(self) -> bool:
        """Whether layers may run on a GPU or on other machines."""
        return self.model_params.n_gpu_layers != 0 and has_accelerator()

    @property
    def plain_gguf(self) -> bool:
        """Whether the model file alone is computed, on this machine's processor."""
        return not (self.offloads or self.lora_path or self.kv_overrides)

    @property
    def settings_of_states(self) -> list[Any]:
        """What decides the hidden states besides the model file."""
        params = self.context_params
        rope = [params.rope_freq_base, params.rope_freq_scale, params.rope_scaling_type]
        adapter = [Path(self.lora_path).stat().st_size, self.lora_scale] if self.lora_path else []
        return [*rope, params.type_k, params.type_v, repr(self.kv_overrides), *adapter]

    def reader(self, layers: Sequence[int]) -> Reader:
        """What reads the model's hidden states at `layers`, in a context of its own."""
        from finesteer_local.runtime.harvest import Harvester  # it is built on this class

        return Harvester(self, layers)

    def share_adapter(self, ctx: Any) -> None:
        """Give another context of this model the LoRA adapter that this one was opened with, if any."""
        if self.adapter is not None:
            adapters: Any = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapter)
            llama_cpp.llama_set_adapters_lora(ctx, adapters, 1, (ctypes.c_float * 1)(self.lora_scale))

    def forget(self) -> None:
        """Empty the KV cache."""
        self.n_tokens = 0
        self.stale = True
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Give the context to something else for the block; afterwards its cache holds what it held."""
        n_tokens, stale = self.n_tokens, self.stale
        size = llama_cpp.llama_state_get_size(self.ctx)
        state = (ctypes.c_uint8 * size)()
        size = llama_cpp.llama_state_get_data(self.ctx, state, size)
        try:
            yield
        finally:
            llama_cpp.llama_state_set_data(self.ctx, state, size)
            self.n_tokens, self.stale = n_tokens, stale

    def keep(self, n_tokens: int) -> int:
        """Drop the cached tokens from `n_tokens` on. Returns how many are left: `n_tokens`, or 0.

        Recurrent memory cannot be cut, only cleared. A sliding window that has moved past `n_tokens` has lost the keys
        and values that the token there would look back at (llama.cpp: `swa_full=False`).
        """
        memory = llama_cpp.llama_get_memory(self.ctx)
        oldest = llama_cpp.llama_memory_seq_pos_min(memory, 0)
        window = llama_cpp.llama_model_n_swa(self.model)
        if oldest > max(n_tokens - window, 0) or not llama_cpp.llama_memory_seq_rm(memory, 0, n_tokens, -1):
            self.forget()
            return 0
        return n_tokens

    def decode_rows(self, tokens: Sequence[int], n_past: int, *, all_rows: bool = False) -> None:
        """Decode `tokens` after `n_past` cached ones; raises what the tap raised.

        The last layer computes, and the head gives logits for, the last token of every batch, or all with `all_rows`.
        """
        for start in range(0, len(tokens), self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            self.decode_batch(chunk, n_past + start, all_rows=all_rows)
            self.tap.check()


class _Tokenizer(LlamaTokenizer):
    def __init__(self, llama: TappedLlama) -> None:
        super().__init__(llama)
        self._llama = llama

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        return self._llama.tokenize(text, add_bos, special)

    def detokenize(self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False) -> bytes:
        return self._llama.detokenize(tokens, prev_tokens, special)
