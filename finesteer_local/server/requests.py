"""From what a client sends to what the engine runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finesteer_local.errors import PromptError
from finesteer_local.runtime.batch import Request, chat_request, completion_request
from finesteer_local.runtime.constraint import ANY_OBJECT, Compiled, compiled, json_schema
from finesteer_local.server.errors import ApiError, prompt_error
from finesteer_local.server.openai_schemas import ChatRequest, CompletionRequest, Message, Tool
from finesteer_local.server.schemas import Steering
from finesteer_local.server.service import Model
from finesteer_local.server.settings import Limits

COMPLETION_TOKENS = 16  # OpenAI's default for raw completions


def of_chat(model: Model, wanted: ChatRequest, limits: Limits) -> tuple[Request, str | None]:
    """The engine's request, and the name of the tool that is called by grammar, if any.

    Raises:
        ApiError, PromptError, ProfileError, UnknownNameError: the request cannot be served.
    """
    options = wanted.options()
    if wanted.logprobs:
        options.update(logprobs=True, top_logprobs=wanted.top_logprobs or 0)
    grammar = _grammar(model, wanted)
    tools = wanted.tools or []
    tool = _called(wanted, tools)
    if tool is not None:
        if grammar is not None:
            raise ApiError(400, "a named tool brings its own grammar; leave out the other", param="tool_choice")
        grammar = _fitting(model, tool["function"]["parameters"], "tools")
        options["tool_choice"] = {"type": "function", "function": {"name": tool["function"]["name"]}}
    if tools and wanted.tool_choice != "none":
        options["tools"] = [one.for_template() for one in tools]
    request = conversation(model, wanted.messages, wanted.steering, limits, **options)
    if grammar is not None:
        request = replace(request, sampling=replace(request.sampling, grammar=grammar))
    request = capped(request, wanted.max_completion_tokens or wanted.max_tokens, limits)
    return request, None if tool is None else str(tool["function"]["name"])


def conversation(
    model: Model, messages: Sequence[Message], steering: Steering | bool | None, limits: Limits, **options: Any
) -> Request:
    """The request for the answer to a conversation."""
    if len(messages) > limits.messages:
        raise ApiError(400, f"a conversation can have {limits.messages:,} messages", param="messages")
    steer, skips = model.policy.steer(steering), model.policy.skips_thinking(steering)
    try:
        given = [message.for_template() for message in messages]
        request = chat_request(model.llama, given, steer=steer, skip_thinking=skips, **options)
        request.check(model.llama, model.engine.n_ctx)
    except PromptError as error:
        raise prompt_error(error, "messages") from error
    return request


def of_completion(model: Model, wanted: CompletionRequest, limits: Limits) -> list[tuple[Request, str]]:
    """The engine's requests, one a prompt, each with the text that its answer begins with: the prompt, or nothing.

    Raises:
        ApiError, PromptError, ProfileError, UnknownNameError: the request cannot be served.
    """
    prompts = wanted.prompts()
    if len(prompts) > limits.prompts:
        raise ApiError(400, f"a request can have {limits.prompts} prompts", param="prompt")
    steer, skips = model.policy.steer(wanted.steering), model.policy.skips_thinking(wanted.steering)
    options = {**wanted.options(), "logprobs": wanted.logprobs, "echo": bool(wanted.echo)}
    grammar = None if wanted.grammar is None else _gbnf(model, wanted.grammar)
    found = []
    for prompt in prompts:
        request = completion_request(model.llama, prompt, steer=steer, skip_thinking=skips, **options)
        try:
            request.check(model.llama, model.engine.n_ctx)
        except PromptError as error:
            raise prompt_error(error, "prompt") from error
        if grammar is not None:
            request = replace(request, sampling=replace(request.sampling, grammar=grammar))
        n_tokens = COMPLETION_TOKENS if wanted.max_tokens is None else wanted.max_tokens
        request = capped(request, n_tokens, limits)
        found.append((request, _text_of(model, prompt) if wanted.echo else ""))
    return found


def capped(request: Request, max_tokens: int | None, limits: Limits) -> Request:
    """`request` with the longest answer that it asks for and that the server gives."""
    longest = limits.max_tokens
    if max_tokens is not None:
        longest = max_tokens if longest is None else min(max_tokens, longest)
    return replace(request, max_tokens=longest)


def _grammar(model: Model, wanted: ChatRequest) -> Compiled | None:
    """What the answer has to fit."""
    format_ = wanted.response_format
    if format_ is None or format_.type == "text":
        return None if wanted.grammar is None else _gbnf(model, wanted.grammar)
    if wanted.grammar is not None:
        raise ApiError(400, "give a grammar or a response_format, not both", param="grammar")
    schema = format_.schema_to_fit
    return _fitting(model, ANY_OBJECT if schema is None else schema, "response_format")


def _fitting(model: Model, schema: Mapping[str, Any], param: str) -> Compiled:
    """What JSON that fits `schema` has to keep to; compiled here, not where all other answers would wait for it."""
    try:
        return compiled(model.llama, json_schema(schema))
    except PromptError as error:
        raise ApiError(400, str(error), param=param) from error


def _gbnf(model: Model, grammar: str) -> Compiled:
    try:
        return compiled(model.llama, grammar)
    except PromptError as error:
        raise ApiError(400, str(error), param="grammar") from error


def _called(wanted: ChatRequest, tools: Sequence[Tool]) -> dict[str, Any] | None:
    """The tool that has to be called."""
    choice = wanted.tool_choice
    if choice in (None, "none", "auto"):
        return None
    if isinstance(choice, str):
        if len(tools) != 1:
            raise ApiError(400, "with several tools, name the one to call; `required` takes one", param="tool_choice")
        return tools[0].for_template()
    assert choice is not None
    for tool in tools:
        if tool.function.name == choice.function.name:
            return tool.for_template()
    raise ApiError(400, f"tools holds no function {choice.function.name!r}", param="tool_choice")


def _text_of(model: Model, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return bytes(model.llama.detokenize(prompt, special=True)).decode(errors="ignore")
