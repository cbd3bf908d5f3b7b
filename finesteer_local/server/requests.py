"""From what a client sends to what the engine runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from finesteer_local.errors import PromptError
from finesteer_local.runtime.batch import Request, chat_request, completion_request
from finesteer_local.runtime.constraint import Compiled
from finesteer_local.runtime.template import template_text
from finesteer_local.server.constraints import tools_of
from finesteer_local.server.conversation_schemas import Message, Tool
from finesteer_local.server.errors import ApiError, prompt_error
from finesteer_local.server.openai_schemas import ChatRequest, CompletionRequest
from finesteer_local.server.schemas import Steering
from finesteer_local.server.service import Model
from finesteer_local.server.settings import Limits
from finesteer_local.server.template_fields import variables
from finesteer_local.server.tool_calls import (
    OPENING,
    ChosenCall,
    NamedCall,
    PlainText,
    Reading,
    TaggedCalls,
)

COMPLETION_TOKENS = 16  # OpenAI's default for raw completions


class Chat(NamedTuple):
    """A chat request as it runs."""

    requests: list[Request]  # one a choice; they differ in their seeds
    reading: Callable[[], Reading]  # what finds calls of tools in a choice's text


def of_chat(model: Model, wanted: ChatRequest, limits: Limits, grammar: Compiled | None) -> Chat:
    """The engine's requests for a chat; `grammar` is what `constraints.compiled_for` gives.

    Raises:
        ApiError, PromptError, ProfileError, UnknownNameError: the request cannot be served.
    """
    options = wanted.options()
    if wanted.logprobs:
        options.update(logprobs=True, top_logprobs=wanted.top_logprobs or 0)
    elif wanted.top_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    told, called = tools_of(wanted)
    if told:
        options["tools"] = [one.for_template() for one in told]
    request = conversation(model, wanted.messages, wanted.steering, limits, variables(model.llama, wanted), **options)
    if grammar is not None:
        request = replace(request, sampling=replace(request.sampling, grammar=grammar))
    longest = wanted.max_tokens if wanted.max_completion_tokens is None else wanted.max_completion_tokens
    request = capped(request, None if longest is not None and longest < 1 else longest, limits)
    return Chat(_choices(request, wanted.n), _reading(model, told, called, constrained=grammar is not None))


def _reading(model: Model, told: list[Tool], called: list[Tool], *, constrained: bool) -> Callable[[], Reading]:
    if len(called) > 1:
        return ChosenCall
    if called:
        return partial(NamedCall, called[0].function.name)
    calls_by_tags = told and not constrained and OPENING in (template_text(model.llama) or "")
    return TaggedCalls if calls_by_tags else PlainText


def _choices(request: Request, n: int | None) -> list[Request]:
    """`request` as often as wanted; where it has a seed, the next ones have the next seeds."""
    seed = request.sampling.seed
    found = [request]
    for i in range(1, n or 1):
        next_seed = None if seed is None else (seed + i) % ((1 << 32) - 1)
        found.append(replace(request, sampling=replace(request.sampling, seed=next_seed)))
    return found


def conversation(
    model: Model,
    messages: Sequence[Message],
    steering: Steering | bool | None,
    limits: Limits,
    variables: Mapping[str, Any],
    **options: Any,
) -> Request:
    """The request for the answer to a conversation."""
    if len(messages) > limits.messages:
        raise ApiError(400, f"a conversation can have {limits.messages:,} messages", param="messages")
    steer, skips = model.policy.steer(steering), model.policy.skips_thinking(steering)
    try:
        given = [message.for_template() for message in messages]
        request = chat_request(model.llama, given, steer=steer, skip_thinking=skips, variables=variables, **options)
        request.check(model.llama, model.engine.n_ctx)
    except PromptError as error:
        raise prompt_error(error, "messages") from error
    return request


def of_completion(
    model: Model, wanted: CompletionRequest, limits: Limits, grammar: Compiled | None
) -> list[tuple[Request, str]]:
    """The engine's requests, `n` for each prompt, each with the text that its answer begins with, the prompt or none.

    Raises:
        ApiError, PromptError, ProfileError, UnknownNameError: the request cannot be served.
    """
    prompts = wanted.prompts()
    if len(prompts) * (wanted.n or 1) > limits.prompts:
        raise ApiError(400, f"a request can have {limits.prompts} prompts, each counted n times", param="prompt")
    if wanted.suffix and wanted.echo:
        raise ApiError(400, "echo and suffix do not go together; leave one out", param="echo")
    steer, skips = model.policy.steer(wanted.steering), model.policy.skips_thinking(wanted.steering)
    options = {**wanted.options(), "logprobs": wanted.logprobs, "echo": bool(wanted.echo)}
    options["suffix"] = wanted.suffix or None
    n_tokens = COMPLETION_TOKENS if wanted.max_tokens is None else wanted.max_tokens
    found = []
    for prompt in prompts:
        try:
            request = completion_request(model.llama, prompt, steer=steer, skip_thinking=skips, **options)
        except PromptError as error:
            raise prompt_error(error, "suffix" if wanted.suffix else "prompt") from error
        try:
            request.check(model.llama, model.engine.n_ctx)
        except PromptError as error:
            raise prompt_error(error, "prompt") from error
        if grammar is not None:
            request = replace(request, sampling=replace(request.sampling, grammar=grammar))
        request = capped(request, None if n_tokens == -1 else n_tokens, limits)
        echo = _text_of(model, prompt) if wanted.echo else ""
        found += [(choice, echo) for choice in _choices(request, wanted.n)]
    return found


def capped(request: Request, max_tokens: int | None, limits: Limits) -> Request:
    """`request` with the longest answer that it asks for and that the server gives."""
    longest = limits.max_tokens
    if max_tokens is not None:
        longest = max_tokens if longest is None else min(max_tokens, longest)
    return replace(request, max_tokens=longest)


def _text_of(model: Model, prompt: str | list[int]) -> str:
    if isinstance(prompt, str):
        return prompt
    return bytes(model.llama.detokenize(prompt, special=True)).decode(errors="ignore")
