"""What a chat request says of its conversation: messages, tools, and what the answer has to be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from finesteer_local.server.schemas import Given, Many


def _is_text(value: dict[str, Any]) -> dict[str, Any]:
    """Tools and schemas may hold anything that JSON has, but text that can be encoded."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("holds text that is not Unicode, a number that is not finite, or nests too deep") from error
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_is_text)]


def joined(parts: Iterable[str]) -> str:
    """Parts of a text as one: a newline comes between two that would run together."""
    whole = ""
    for part in parts:
        runs_on = whole and part and not whole[-1].isspace() and not part[0].isspace()
        whole += f"\n{part}" if runs_on else part
    return whole


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
    content: str | Many[ContentPart] | None = None
    name: str | None = None
    refusal: str | None = Field(None, description="Read where there is no content.")
    reasoning_content: str | None = Field(
        None, description="The thoughts before an answer; the template drops old ones."
    )
    tool_call_id: str | None = None
    tool_calls: Annotated[Many[ToolCall], Field(max_length=128)] | None = None
    function_call: FunctionCall | None = Field(None, description="OpenAI's older form of one tool call.")

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("a message needs content")
        return self

    def for_template(self) -> dict[str, Any]:
        """As the model's chat template reads it."""
        content = self.refusal or "" if self.content is None else self.content
        if not isinstance(content, str):
            content = joined(part.text for part in content)
        found: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": content}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        calls = list(self.tool_calls or [])
        if self.function_call is not None:
            calls.append(ToolCall(id="call_0", function=self.function_call))
        if calls:
            found["tool_calls"] = [call.model_dump() for call in calls]
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


Tools = Annotated[Many[Tool], Field(max_length=128)]


class NamedFunction(Given):
    """A function by its name."""

    name: str


class NamedTool(Given):
    """The tool that the model has to call."""

    type: Literal["function"] = "function"
    function: NamedFunction


class AllowedTools(Given):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: Many[NamedTool]


class AllowedToolsChoice(Given):
    """The tools that the model may, or has to, choose from."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


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
