"""Turns what a client sends into requests that the engine runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from finesteer_local.errors import PromptError
from finesteer_local.runtime.batch import Request, chat_request, completion_request
from finesteer_local.runtime.constraint import Compiled
from finesteer_local.runtime.template import template_text
from finesteer_local.server.chat_schemas import ChatRequest
from finesteer_local.server.completions_schemas import CompletionRequest
from finesteer_local.server.constraints import compiled_for, tools_of
from finesteer_local.server.conversation_schemas import Message, Tool
from finesteer_local.server.errors import ApiError, prompt_error
from finesteer_local.server.schemas import Steering
from finesteer_local.server.service import Model, Service
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
MESSAGES = "messages"


class Prepared(NamedTuple):
    """A client's request as it runs; the engine checks it once it is submitted."""

    requests: list[Request]  # one for each choice
    param: str  # the client's field that the prompts come from
    reading: Callable[[], Reading] = PlainText  # what finds calls of tools in a choice's text
    echoes: Sequence[str] = ()  # what each choice's text begins with


async def prepared(service: Service, wanted: ChatRequest | CompletionRequest, size: int) -> Prepared:
    """What runs for `wanted`, a request of `size` bytes, made beside the event loop.

    Raises:
        ApiError, PromptError, ProfileError, UnknownNameError: the request cannot be served.
        EngineError: the model's engine has failed, or is stuck.
    """
    grammar, limits = await compiled_for(service, wanted), service.settings.limits
    if isinstance(wanted, CompletionRequest):
        return await service.prepare(lambda model: _of_completion(model, wanted, limits, grammar), size)
    return await service.prepare(lambda model: _of_chat(model, wanted, limits, grammar), size)


def _of_chat(model: Model, wanted: ChatRequest, limits: Limits, grammar: Compiled | None) -> Prepared:
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
    reading = _reading(model, told, called, constrained=grammar is not None)
    return Prepared(_choices(request, wanted.n), MESSAGES, reading)


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
        return chat_request(model.llama, given, steer=steer, skip_thinking=skips, variables=variables, **options)
    except PromptError as error:
        raise prompt_error(error, MESSAGES) from error


def _of_completion(model: Model, wanted: CompletionRequest, limits: Limits, grammar: Compiled | None) -> Prepared:
    """`n` requests for each prompt."""
    prompts = wanted.prompts()
    if len(prompts) * (wanted.n or 1) > limits.prompts:
        raise ApiError(400, f"a request can have {limits.prompts} prompts, each counted n times", param="prompt")
    if wanted.suffix and wanted.echo:
        raise ApiError(400, "echo and suffix do not go together; leave one out", param="echo")
    steer, skips = model.policy.steer(wanted.steering), model.policy.skips_thinking(wanted.steering)
    options = {**wanted.options(), "logprobs": wanted.logprobs, "echo": bool(wanted.echo)}
    options["suffix"] = wanted.suffix or None
    n_tokens = COMPLETION_TOKENS if wanted.max_tokens is None else wanted.max_tokens
    found, echoes = list[Request](), list[str]()
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_tokens(model, prompt, "prompt")  # what follows looks at their text before the engine checks them
        try:
            request = completion_request(model.llama, prompt, steer=steer, skip_thinking=skips, **options)
        except PromptError as error:
            raise prompt_error(error, "suffix" if wanted.suffix else "prompt") from error
        if grammar is not None:
            request = replace(request, sampling=replace(request.sampling, grammar=grammar))
        request = capped(request, None if n_tokens == -1 else n_tokens, limits)
        choices = _choices(request, wanted.n)
        found += choices
        echo = "" if not wanted.echo else prompt if isinstance(prompt, str) else text_of(model, prompt)
        echoes += [echo] * len(choices)
    return Prepared(found, "prompt", echoes=echoes)


def capped(request: Request, max_tokens: int | None, limits: Limits) -> Request:
    """`request` with the longest answer that it asks for and that the server gives."""
    longest = limits.max_tokens
    if max_tokens is not None:
        longest = max_tokens if longest is None else min(max_tokens, longest)
    return replace(request, max_tokens=longest)


def check_tokens(model: Model, tokens: list[int], param: str) -> None:
    """Raise `ApiError` for an unknown token: llama.cpp would end the process when we ask for its text."""
    n_vocab = model.llama.n_vocab()
    if any(token >= n_vocab for token in tokens):
        raise ApiError(400, f"a token is not in the model's vocabulary of {n_vocab:,}", param=param)


def text_of(model: Model, tokens: list[int]) -> str:
    """The text of tokens that the model has; what is no whole letter is left out."""
    return bytes(model.llama.detokenize(tokens, special=True)).decode(errors="ignore")
