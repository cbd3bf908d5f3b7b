"""`/v1/chat/completions` and `/v1/steering/explain`: a chat, and its answer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from finesteer_local.server.conversation_schemas import Message, ResponseFormat, ToolCall, ToolChoice, Tools
from finesteer_local.server.openai_schemas import FinishReason, Usage
from finesteer_local.server.sampling_schemas import Choices, MaxTokens, SamplingFields, StreamOptions, TemplateFields
from finesteer_local.server.schemas import Decisions, Many, SteeringField


class ChatRequest(TemplateFields, SamplingFields):
    """`POST /v1/chat/completions`."""

    model: str | None = None
    messages: Many[Message] = Field(min_length=1)
    steering: SteeringField = None
    max_tokens: MaxTokens = Field(None, description="Longest answer; -1 and 0 until the context ends.")
    max_completion_tokens: MaxTokens = None
    n: Choices = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(
        None,
        description="A named tool, or with `required` one of the tools, is called by grammar; with `auto` the template "
        "tells the model of the tools.",
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class ExplainRequest(TemplateFields):
    """`POST /v1/steering/explain`: the part of a chat request that is decided upon."""

    model: str | None = None
    messages: Many[Message] = Field(min_length=1)
    steering: SteeringField = None
    tools: Tools | None = None


class TopLogprob(BaseModel):
    """A token that might have come."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer."""

    content: list[TokenLogprob] | None


class MessageOut(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None = Field(None, description="The answer, where a profile refused the request at once.")
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: MessageOut
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """An answer, with how it was steered."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    steering: Decisions
