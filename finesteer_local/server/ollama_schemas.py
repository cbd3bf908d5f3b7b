"""Ollama's objects, as far as its clients and Open WebUI use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from finesteer_local.server.chat_schemas import ChatRequest, TokenLogprob
from finesteer_local.server.completions_schemas import CompletionRequest
from finesteer_local.server.conversation_schemas import JsonObject, Tools
from finesteer_local.server.known_fields import ANY, OLLAMA_OPTIONS, GivenAsKnown
from finesteer_local.server.sampling_schemas import CommonSampling
from finesteer_local.server.schemas import ERRORS, Decisions, Given, Many, SteeringField

OllamaToolChoice = Annotated[
    Literal["none", "auto", "required"] | None,
    Field(description="Ours: with `required` one of the tools is called, by grammar; in `options` too."),
]


class Options(CommonSampling):
    """How tokens are chosen. What has no counterpart, such as `num_ctx`, is left alone."""

    neutral: ClassVar[Mapping[str, Any]] = OLLAMA_OPTIONS

    mirostat: Literal[0, 1, 2] | None = None
    num_predict: Annotated[int, Field(ge=-2, le=1 << 31)] | None = Field(
        None, description="Longest answer in tokens; below 1 until the context is full."
    )
    steering: SteeringField = None
    tool_choice: OllamaToolChoice = None

    def sampling(self) -> dict[str, Any]:
        """As our own requests have them."""
        found = {name: getattr(self, name) for name in CommonSampling.model_fields}
        n_tokens = self.num_predict if self.num_predict and self.num_predict > 0 else -1
        return {**found, "mirostat_mode": self.mirostat, "stop": self.stops(), "max_tokens": n_tokens}


class OllamaFunctionCall(Given):
    """A call that the model made."""

    name: str
    arguments: JsonObject = Field(default_factory=dict)

    def as_text(self) -> str:
        """The arguments as OpenAI has them."""
        return json.dumps(self.arguments, ensure_ascii=False)


class OllamaToolCall(Given):
    """A call of a tool."""

    function: OllamaFunctionCall


class OllamaMessage(Given):
    """A message of the conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Annotated[Many[str], Field(max_length=0)] | None = Field(None, description="This model reads text.")
    tool_calls: Annotated[Many[OllamaToolCall], Field(max_length=128)] | None = None
    tool_name: str | None = None

    def fields(self, place: int) -> dict[str, Any]:
        """As our own requests have it."""
        found: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_name is not None:
            found["name"] = self.tool_name
        if self.thinking:
            found["reasoning_content"] = self.thinking
        if self.tool_calls:
            found["tool_calls"] = [
                {
                    "id": f"call_{place}_{i}",
                    "function": {"name": call.function.name, "arguments": call.function.as_text()},
                }
                for i, call in enumerate(self.tool_calls)
            ]
        return found


class OllamaRequest(GivenAsKnown):
    """What `/api/chat` and `/api/generate` share."""

    # `truncate` and `shift`: what is longer than the context is an error here.
    neutral: ClassVar[Mapping[str, Any]] = {"keep_alive": ANY, "truncate": ANY, "shift": ANY}

    model: Annotated[str, Field(min_length=1)]
    stream: bool | None = Field(None, description="True unless given.")
    format: Literal["", "json"] | JsonObject | None = Field(None, description="`json`, or a JSON schema.")
    options: Options | None = None
    steering: SteeringField = Field(None, description="As in OpenAI's interface; in `options` too.")
    think: bool | Literal["low", "medium", "high"] | None = Field(
        None, description="Thoughts on, in a field of their own, or off; left out, as the template has it, in the text."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def common(self) -> dict[str, Any]:
        """The fields of our own request."""
        options = self.options or Options.model_validate({})
        steering = options.steering if self.steering is None else self.steering
        found = {"model": None, "steering": steering, **options.sampling()}
        if isinstance(self.format, dict):
            found["response_format"] = {"type": "json_object", "schema": self.format}
        elif self.format:
            found["response_format"] = {"type": "json_object"}
        return found

    def scores(self) -> dict[str, Any]:
        """The fields of a chat's log-probabilities."""
        return {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}


class OllamaChatRequest(OllamaRequest):
    """`POST /api/chat`."""

    messages: Many[OllamaMessage] = Field(default_factory=list)
    tools: Tools | None = None
    tool_choice: OllamaToolChoice = None

    def chat(self, reasoning_effort: str | None) -> ChatRequest | None:
        """Our own request; None only loads the model, which it is."""
        if not self.messages:
            return None
        found = {**self.common(), **self.scores(), "reasoning_effort": reasoning_effort}
        found["messages"] = [message.fields(i) for i, message in enumerate(self.messages)]
        if self.tools:
            found["tools"] = [tool.model_dump(exclude_none=True) for tool in self.tools]
        choice = self.tool_choice or (self.options.tool_choice if self.options else None)
        return ChatRequest.model_validate({**found, "tool_choice": choice})


class OllamaGenerateRequest(OllamaRequest):
    """`POST /api/generate`."""

    prompt: str = ""
    system: str | None = None
    raw: bool | None = Field(None, description="Go on with the prompt as it is, without the model's template.")
    suffix: str | None = Field(None, description="The answer is what stands between prompt and suffix.")
    template: str | None = None
    context: Many[int] | None = None
    images: Many[str] | None = None

    @field_validator("template", "context", "images")
    @classmethod
    def _not_here(cls, value: Any) -> Any:
        if value:
            raise ValueError("this server does not take it")
        return value

    @property
    def is_raw(self) -> bool:
        """Whether the prompt is not rendered by the model's template."""
        return bool(self.raw or self.suffix)

    @model_validator(mode="after")
    def _has_no_template(self) -> OllamaGenerateRequest:
        if self.is_raw and (self.system or self.think):
            raise ValueError("a raw prompt, or one with a suffix, has no template: leave out system and think")
        return self

    def chat(self, reasoning_effort: str | None) -> ChatRequest | CompletionRequest | None:
        """Our own request; None only loads the model, which it is."""
        if not self.prompt:
            return None
        common = self.common()
        if self.is_raw:
            scored = self.top_logprobs or 0 if self.logprobs else None
            found = {**common, "prompt": self.prompt, "suffix": self.suffix, "logprobs": scored}
            return CompletionRequest.model_validate(found)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": self.prompt})
        found = {**common, **self.scores(), "messages": messages, "reasoning_effort": reasoning_effort}
        return ChatRequest.model_validate(found)


class ShowRequest(Given):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None


class OllamaError(BaseModel):
    """An error, as Ollama has it."""

    error: str


class Timed(BaseModel):
    """An answer or a part of it; durations are nanoseconds and come with the last part."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "content_filter"] | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    logprobs: list[TokenLogprob] | None = None
    steering: Decisions | None = None


class OllamaMessageOut(BaseModel):
    """The answer, or a part of it."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = None
    tool_calls: list[OllamaToolCall] | None = None


class OllamaChat(Timed):
    """`/api/chat`'s answer."""

    message: OllamaMessageOut


class OllamaGenerated(Timed):
    """`/api/generate`'s answer."""

    response: str
    thinking: str | None = None


class Details(BaseModel):
    """About the model's file."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Tag(BaseModel):
    """A model in the list."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(BaseModel):
    """The one model."""

    models: list[Tag]


class Loaded(Tag):
    """The loaded model."""

    expires_at: str
    size_vram: int
    context_length: int


class LoadedModels(BaseModel):
    """The one model."""

    models: list[Loaded]


class Shown(BaseModel):
    """About the model."""

    modelfile: str
    parameters: str
    template: str
    modified_at: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]


class Version(BaseModel):
    """The server's version."""

    version: str


OLLAMA_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OllamaError, "description": error["description"]} for status, error in ERRORS.items()
}
