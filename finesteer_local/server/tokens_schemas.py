"""vLLM's objects around tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

from finesteer_local.server.sampling_schemas import Token
from finesteer_local.server.schemas import Given, Many


class TokenizeRequest(Given):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = Field(None, description="True unless given: with what begins and ends a text.")


class Tokenized(BaseModel):
    """Tokens; `max_model_len` is the context."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(Given):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: Many[Token]


class Detokenized(BaseModel):
    """A text."""

    prompt: Annotated[str, Field(description="Special tokens included.")]


class TokenizerInfo(BaseModel):
    """What a client needs to write prompts itself; null is what the model does not have."""

    tokenizer_class: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
