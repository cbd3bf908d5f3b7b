"""OpenAI's objects, as far as llama.cpp has a counterpart; descriptions say what is ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from finesteer_local.server.conversation_schemas import (
    JsonObject,
    Message,
    ResponseFormat,
    ToolCall,
    ToolChoice,
    Tools,
)
from finesteer_local.server.known_fields import OPENAI, GivenAsKnown
from finesteer_local.server.schemas import Decisions, Given, Many, SteeringField

MAX_CHOICES = 8
MAX_STOPS = 128
_MAX_SEED = (1 << 63) - 1


Word = Annotated[str, Field(max_length=1024)]
MaxTokens = Annotated[int, Field(ge=-1)] | None
Choices = Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
_MAX_BIASES = 1024
Token = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]


def _few(value: Any) -> Any:
    """Each of a million entries would be told of otherwise."""
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise ValueError(f"has {len(value):,} tokens, and at most {_MAX_BIASES:,} can be biased")
    return value


class StreamOptions(Given):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


class CommonSampling(GivenAsKnown):
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
    stop: Word | Annotated[Many[Word], Field(max_length=MAX_STOPS)] | None = Field(
        None, description="Empty words are none."
    )

    def stops(self) -> list[str]:
        """The stop words, each once."""
        words = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return list(dict.fromkeys(word for word in words if word))


class SamplingFields(CommonSampling):
    """How tokens are chosen: llama.cpp's own defaults unless given."""

    neutral: ClassVar[Mapping[str, Any]] = OPENAI

    mirostat_mode: Literal[0, 1, 2] | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], BeforeValidator(_few)] | None = Field(None, max_length=_MAX_BIASES)
    grammar: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = Field(
        None, description="GBNF, llama.cpp's grammar format."
    )

    def options(self) -> dict[str, Any]:
        """As llama-cpp-python takes them."""
        names = SamplingFields.model_fields.keys() - {"grammar", "seed", "stop"}
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        # llama.cpp draws a seed itself where it is -1 or 2^32 - 1.
        seed = None if self.seed in (None, -1) else self.seed % ((1 << 32) - 1)
        defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.0}
        return {**defaults, **given, "seed": seed, "stop": self.stops()}


class TemplateFields(Given):
    """What a chat's template reads beside the messages."""

    chat_template_kwargs: JsonObject | None = Field(
        None,
        description="The template's own variables, such as `enable_thinking`; those that it does not read are refused.",
    )
    reasoning_effort: ReasoningEffort = Field(
        None,
        description="As far as the template has it: as a grade, or `none` as no thoughts and any other as thoughts.",
    )


# --- chat ---


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
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(BaseModel):
    """An answer."""

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
