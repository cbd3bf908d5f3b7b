"""The objects of OpenAI's newer interface, `/v1/responses`, as far as text and functions go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from finesteer_local.server.chat_schemas import ChatRequest
from finesteer_local.server.conversation_schemas import JsonObject, joined
from finesteer_local.server.errors import ApiError
from finesteer_local.server.known_fields import ANY, OPENAI
from finesteer_local.server.sampling_schemas import MaxTokens, ReasoningEffort, SamplingFields
from finesteer_local.server.schemas import Decisions, Given, Many, SteeringField

LOGPROBS = "message.output_text.logprobs"


class Part(Given):
    """A part of a message; this model reads text."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str = ""
    refusal: str = ""


def _text(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else joined(part.text or part.refusal for part in content)


class MessageItem(Given):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Many[Part]


class CallItem(Given):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResultItem(Given):
    """What a called function gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Many[Part]


class ReferenceItem(Given):
    """An item of an earlier answer, which the server remembers for a while."""

    type: Literal["item_reference"]
    id: str


Item = MessageItem | CallItem | ResultItem | ReferenceItem


class FunctionTool(Given):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: str | None = None
    parameters: JsonObject | None = Field(None, description="A JSON schema.")
    strict: bool | None = None


class NamedTool(Given):
    """A function by its name."""

    type: Literal["function"]
    name: str


class AllowedTools(Given):
    """The functions that the model may, or has to, choose from."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Many[NamedTool]


class TextFormat(Given):
    """What an answer has to be: text, any JSON, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: JsonObject | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _has_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("schema is missing")
        return self


class TextFields(Given):
    """How an answer's text is."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Given):
    """How much a model thinks; there are no summaries of it."""

    effort: ReasoningEffort = None


class ResponsesRequest(SamplingFields):
    """`POST /v1/responses`."""

    neutral: ClassVar[Mapping[str, Any]] = {
        **{name: values for name, values in OPENAI.items() if name not in ("functions", "function_call")},
        "background": (False,),
        "max_tool_calls": ANY,  # the functions are called by the client
        "truncation": ("disabled",),
    }

    model: str | None = None
    input: Annotated[str, Field(min_length=1)] | Annotated[Many[Item], Field(min_length=1)]
    instructions: str | None = None
    previous_response_id: str | None = Field(None, description="Go on after this answer, while it is remembered.")
    store: bool | None = Field(None, description="False: this answer is not remembered, in memory, for a while.")
    steering: SteeringField = None
    max_output_tokens: MaxTokens = None
    stream: bool | None = None
    text: TextFields | None = None
    tools: Annotated[Many[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: JsonObject | None = None
    include: Many[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def items(self) -> list[Item]:
        """What is new in the conversation."""
        return [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def chat(self, items: Iterable[Item]) -> ChatRequest:
        """The same as a chat; `items` is all of the conversation, without references."""
        found = {name: getattr(self, name) for name in SamplingFields.model_fields}
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        found["messages"] = [*messages, *_messages(items)]
        found |= {"steering": self.steering, "max_tokens": self.max_output_tokens}
        found["chat_template_kwargs"] = self.chat_template_kwargs
        found["reasoning_effort"] = self.reasoning.effort if self.reasoning else None
        if self.tools:
            found["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools
            ]
        found["tool_choice"] = _choice(self.tool_choice)
        if self.text and self.text.format:
            found["response_format"] = _format(self.text.format)
        if LOGPROBS in (self.include or ()):
            found |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        elif self.top_logprobs:
            raise ApiError(400, f"top_logprobs needs include: [{LOGPROBS!r}]", param="top_logprobs")
        return ChatRequest.model_validate(found)


def _messages(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Calls belong to the message of the assistant that they follow, or are one."""
    found: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, MessageItem):
            found.append({"role": item.role, "content": _text(item.content)})
        elif isinstance(item, CallItem):
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            calls = found[-1].setdefault("tool_calls", [])
            calls.append({"id": item.call_id, "type": "function", "function": function})
        elif isinstance(item, ResultItem):
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return found


def _choice(choice: Any) -> Any:
    if isinstance(choice, NamedTool):
        return {"type": "function", "function": {"name": choice.name}}
    if isinstance(choice, AllowedTools):
        tools = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}
    return choice


def _format(wanted: TextFormat) -> dict[str, Any]:
    if wanted.type != "json_schema":
        return {"type": wanted.type}
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.schema_}}


class ResponseUsage(BaseModel):
    """Tokens."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseOut(BaseModel):
    """An answer, with how it was steered; `output` holds messages and calls of functions."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    steering: Decisions | None = None
