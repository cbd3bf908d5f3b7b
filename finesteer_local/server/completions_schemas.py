"""`/v1/completions`: text that goes on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from finesteer_local.server.conversation_schemas import ResponseFormat
from finesteer_local.server.openai_schemas import FinishReason, Usage
from finesteer_local.server.sampling_schemas import Choices, MaxTokens, SamplingFields, StreamOptions, Token
from finesteer_local.server.schemas import Decisions, Many, SteeringField

PromptText = Annotated[str, Field(min_length=1)]
PromptTokens = Annotated[Many[Token], Field(min_length=1)]
Prompt = (
    PromptText
    | Annotated[Many[PromptText], Field(min_length=1)]
    | PromptTokens
    | Annotated[Many[PromptTokens], Field(min_length=1)]
)


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`: text goes on as it is, without a chat template."""

    model: str | None = None
    prompt: Prompt = Field(description="Text or tokens, or a list of either: one choice each.")
    steering: SteeringField = None
    suffix: str | None = Field(None, description="The answer is what stands between prompt and suffix.")
    max_tokens: MaxTokens = Field(None, description="16 unless given; -1 until the context ends, 0 nothing.")
    n: Choices = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = Field(None, description="Begin the text with the prompt; with logprobs, of its tokens too.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = Field(None, description="As for a chat.")

    def prompts(self) -> list[str | list[int]]:
        """One a choice."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


class Logprobs(BaseModel):
    """Log-probabilities of a text, token by token; null for a text's first."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """The text that goes on one prompt, with how it was steered."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason
    steering: Decisions


class Completion(BaseModel):
    """What follows the prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
