"""Prompts for filling in the middle, with the tokens that code models were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from llama_cpp import llama_cpp

from finesteer_local.errors import PromptError
from finesteer_local.runtime.tapped import TappedLlama

_NONE = -1  # LLAMA_TOKEN_NULL


def infill_prompt(llama: TappedLlama, prefix: str | Sequence[int], suffix: str) -> list[int]:
    """Tokens that ask for what stands between `prefix` and `suffix`, in the order of llama.cpp's own `/infill`.

    What the texts say never becomes a special token.

    Raises:
        PromptError: the model has no tokens for that.
    """
    vocab = llama._model.vocab
    before, after, middle = (
        int(find(vocab))
        for find in (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
    )
    if _NONE in (before, after, middle):
        raise PromptError("this model has no tokens for filling in the middle; leave out the suffix")

    def tokens(text: str) -> list[int]:
        return llama.tokenize(text.encode(), add_bos=False, special=False) if text else []

    first = [llama.token_bos()] if llama._model.add_bos_token() and llama.token_bos() != _NONE else []
    given = tokens(prefix) if isinstance(prefix, str) else list(prefix)
    return [*first, before, *given, after, *tokens(suffix), middle]
