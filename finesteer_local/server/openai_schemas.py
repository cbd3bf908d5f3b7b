"""What OpenAI's interfaces share in their answers, and the list of models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class PromptDetails(BaseModel):
    """How many of the prompt's tokens came from the cache."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ModelOut(BaseModel):
    """A model; `context` is ours: tokens of a request with its answer."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    context: int


class Models(BaseModel):
    """The one model."""

    object: Literal["list"] = "list"
    data: list[ModelOut]
