"""OpenAI's objects, as far as llama.cpp has a counterpart; descriptions say what is ours."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from finesteer_local.server.schemas import Decisions, Given, SteeringField

_MAX_SEED = (1 << 63) - 1


def _is_text(value: dict[str, Any]) -> dict[str, Any]:
    """Tools and schemas may hold anything that JSON has, but text that can be encoded."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("holds text that is not Unicode, a number that is not finite, or nests too deep") from error
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_is_text)]
Word = Annotated[str, Field(min_length=1, max_length=1024)]
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Token = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]


class StreamOptions(Given):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class CommonSampling(Given):
    """How tokens are chosen, as OpenAI's and Ollama's clients both write it. Null is the same as left out."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="0.8 unless given; 0 is greedy."
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=100)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-_MAX_SEED - 1, le=_MAX_SEED)] | None = Field(None, description="-1 draws one.")
    stop: Word | Annotated[list[Word], Field(max_length=16)] | None = None


class SamplingFields(CommonSampling):
    """How tokens are chosen: llama.cpp's own defaults unless given."""

    mirostat_mode: Literal[0, 1, 2] | None = None
    logit_bias: dict[BiasKey, Bias] | None = Field(None, max_length=1024)
    grammar: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = Field(
        None, description="GBNF, llama.cpp's grammar format."
    )

    def options(self) -> dict[str, Any]:
        """As llama-cpp-python takes them."""
        names = SamplingFields.model_fields.keys() - {"grammar", "seed"}
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        # llama.cpp draws a seed itself where it is -1 or 2^32 - 1.
        seed = None if self.seed in (None, -1) else self.seed % ((1 << 32) - 1)
        defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
        return {**defaults, **given, "seed": seed}


# --- chat ---


class ContentPart(Given):
    """A part of a message; this model reads text."""

    type: Literal["text"]
    text: str


class FunctionCall(Given):
    """A call that the model made; `arguments` is JSON as text."""

    name: str
    arguments: str


class ToolCall(Given):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Given):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """As the model's chat template reads it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content or [])
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        for name in ("name", "tool_call_id"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.tool_calls:
            found["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return found


class Function(Given):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: JsonObject | None = Field(None, description="A JSON schema.")


class Tool(Given):
    """A tool: a function."""

    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        """As llama-cpp-python takes it."""
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        function = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": parameters,
        }
        return {"type": "function", "function": function}


class NamedFunction(Given):
    """A function by its name."""

    name: str


class NamedTool(Given):
    """The tool that the model has to call."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Given):
    """A schema with a name."""

    name: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")


class ResponseFormat(Given):
    """What an answer has to be: text, any JSON, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: JsonObject | None = Field(None, alias="schema", description="As llama-cpp-python has it.")

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("json_schema.schema is missing")
        return self

    @property
    def schema_to_fit(self) -> dict[str, Any] | None:
        """The schema, if there is one."""
        if self.type == "json_schema":
            return self.json_schema.schema_ if self.json_schema else None
        return self.schema_ if self.type == "json_object" else None


class ChatRequest(SamplingFields):
    """`POST /v1/chat/completions`."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    steering: SteeringField = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="A named tool is called, by grammar; with `auto` the template tells the model of the tools."
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class ExplainRequest(Given):
    """`POST /v1/steering/explain`: the part of a chat request that is decided upon."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    steering: SteeringField = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None


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
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(BaseModel):
    """The one answer."""

    index: int
    message: MessageOut
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class PromptDetails(BaseModel):
    """Of the prompt's tokens, those that did not have to be read."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """An answer, with how it was steered."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    steering: Decisions


# --- completions ---

PromptText = Annotated[str, Field(min_length=1)]
PromptTokens = Annotated[list[Token], Field(min_length=1)]
Prompt = (
    PromptText
    | Annotated[list[PromptText], Field(min_length=1)]
    | PromptTokens
    | Annotated[list[PromptTokens], Field(min_length=1)]
)


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`: text goes on as it is, without a chat template."""

    model: str | None = None
    prompt: Prompt = Field(description="Text or tokens, or a list of either: one choice each.")
    steering: SteeringField = None
    max_tokens: Annotated[int, Field(ge=0)] | None = Field(None, description="16 unless given.")
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = Field(None, description="Begin the text with the prompt; with logprobs, of its tokens too.")
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

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


# --- models ---


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
