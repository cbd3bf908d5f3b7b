"""Prompts for filling in the middle, with the tokens that code models were trained on."""

from __future__ import annotations

from collections.abc import Sequence

from llama_cpp import llama_cpp

from finesteer_local.errors import PromptError
from finesteer_local.runtime.tapped import TappedLlama
from finesteer_local.runtime.tokens import vocab_of

_NONE = -1  # LLAMA_TOKEN_NULL


def infill_prompt(llama: TappedLlama, prefix: str | Sequence[int], suffix: str) -> list[int]:
    """Tokens that ask for what stands between `prefix` and `suffix`, in the order of llama.cpp's own `/infill`.

    What the texts say never becomes a special token.

    Raises:
        PromptError: the model has no tokens for that.
    """
    before, after, middle = _tokens(llama)
    if not can_infill(llama):
        raise PromptError("this model has no tokens for filling in the middle; leave out the suffix")

    def tokens(text: str) -> list[int]:
        return llama.tokenize(text.encode(), add_bos=False, special=False) if text else []

    begins = llama_cpp.llama_vocab_get_add_bos(vocab_of(llama)) and llama.token_bos() != _NONE
    first = [llama.token_bos()] if begins else []
    given = tokens(prefix) if isinstance(prefix, str) else list(prefix)
    return [*first, before, *given, after, *tokens(suffix), middle]


def can_infill(llama: TappedLlama) -> bool:
    """Whether the model has the tokens for it."""
    return _NONE not in _tokens(llama)


def _tokens(llama: TappedLlama) -> tuple[int, int, int]:
    """The tokens before the prefix, before the suffix and before what stands between; -1 where the model has none."""
    vocab = vocab_of(llama)
    before, after = llama_cpp.llama_vocab_fim_pre(vocab), llama_cpp.llama_vocab_fim_suf(vocab)
    return int(before), int(after), int(llama_cpp.llama_vocab_fim_mid(vocab))
