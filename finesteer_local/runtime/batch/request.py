"""What one request asks of the batch: its prompt, its steering, its sampling."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llama_cpp import Llama

from finesteer_local.errors import FineSteerError, OptionError, PromptError
from finesteer_local.runtime.chat import TEMPLATE_OPTIONS
from finesteer_local.runtime.check import answered, asked_for, check_room, checking
from finesteer_local.runtime.compat import model_of
from finesteer_local.runtime.constrained import constraint_of
from finesteer_local.runtime.constraint import Compiled, Constraint
from finesteer_local.runtime.infill import infill_prompt
from finesteer_local.runtime.prompt import (
    NOTHING,
    Message,
    Unsteered,
    chat_completion,
    token_text,
    turn_start,
    unsteered_parts,
)
from finesteer_local.runtime.steered import SteeredLlama
from finesteer_local.runtime.steered_request import Steer, Steering, check_steer
from finesteer_local.runtime.thinking import opened_at


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default not in (inspect.Parameter.empty, None)}


_CHAT_DEFAULTS = _defaults(Llama.create_chat_completion)  # the chat handlers themselves have other ones
_COMPLETION_DEFAULTS = _defaults(Llama.create_completion)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: names, defaults and order are those of `llama_cpp.Llama.create_completion`."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    seed: int | None = None
    """None draws one; `Finished.seed` tells which."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str | Constraint | Compiled | None = None
    """GBNF, or what `constraint.json_schema` makes of a JSON schema."""


GREEDY = Sampling(temperature=0.0)
WHOLE = 1 << 30
"""Tokens; longer than any answer."""


@dataclass(frozen=True)
class Request:
    """One request. Whatever runs beside it, the same request gets the same answer.

    Attributes:
        prompt: tokens, at least one.
        turn, steer, unsteered, skip_thinking: how it is steered, see `steered_request.Steering`.
        max_tokens: longest answer; None goes on until the context is full, 0 decides and generates nothing.
        stop: the answer ends before the first of these.
        logprobs: log-probabilities of the answer's tokens, with this many alternatives each; None for none.
        prompt_logprobs: log-probabilities of the prompt's tokens too, with as many alternatives.
        look_ahead: tokens that are held back while profiles read the answer that may take some of it back; None is what
            one reading needs, `WHOLE` all, for answers that nobody reads before their end.
        checks: only decides: the pass stops after the last gate's layer, nothing is generated, and what was read serves
            no other request.
        answered: tokens that were answered, which profiles that read answers read, of a request that `checks`.
    """

    prompt: Sequence[int]
    turn: int = 0
    steer: tuple[Steer, ...] = ()
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    unsteered: Unsteered = NOTHING
    skip_thinking: bool = False
    look_ahead: int | None = None
    checks: bool = False
    answered: Sequence[int] = ()

    def check(self, llama: SteeredLlama, n_ctx: int) -> None:
        """Check what the caller gave, for a model and the length of its context.

        Raises:
            PromptError: the prompt is empty, has unknown tokens or is too long, or another value is out of its range.
            ProfileError: a strength or scope is out of its range, or a profile was made for another model.
            SteeringError: this model cannot be steered.
        """
        n_vocab, sampling = llama.n_vocab(), self.sampling
        if not self.prompt:
            raise PromptError("the prompt is empty")
        check_room(len(self.prompt), len(self.answered), n_ctx)
        unknown = f"a token is not in the model's vocabulary of {n_vocab:,}"
        if not all(0 <= token < n_vocab for tokens in (self.prompt, self.answered) for token in tokens):
            raise PromptError(unknown)
        if not all(0 <= token < n_vocab for token in sampling.logit_bias):
            raise OptionError(unknown, "logit_bias")
        if not 0 <= self.turn < len(self.prompt):
            raise PromptError("the last user message starts outside of the prompt")
        if (self.look_ahead or 0) < 0:
            raise OptionError("look_ahead must not be negative", "look_ahead")
        if (self.max_tokens or 0) < 0 or (self.logprobs or 0) < 0:
            name = "max_tokens" if (self.max_tokens or 0) < 0 else "logprobs"
            raise OptionError("max_tokens and logprobs must not be negative", name)
        if not all(self.stop):
            raise OptionError("a stop word is empty", "stop")
        if sampling.seed is not None and not 0 <= sampling.seed < 1 << 32:
            raise OptionError(f"seed {sampling.seed} is not in [0, 2^32)", "seed")
        check_steer(self.steer, llama)
        if self.checks and not self.steer:
            raise PromptError("there is no profile to check with")
        if self.answered and not self.checks:
            raise PromptError("what was answered is read by a request that checks, and by no other")

    @property
    def steering(self) -> Steering:
        """How the request is steered."""
        steering = Steering(self.steer, self.turn, self.unsteered, self.skip_thinking)
        return steering if self.skip_thinking and self.sampling.grammar is None else steering.at_once()


def chat_request(
    llama: SteeredLlama,
    messages: Sequence[Message],
    *,
    steer: Sequence[Steer] = (),
    skip_thinking: bool | None = None,
    variables: Mapping[str, Any] | None = None,
    **options: Any,
) -> Request:
    """The request that `llama.create_chat_completion(messages, **options)` makes, with the steering of its own.

    The template's stop words and the grammar of tools or a response format are part of it. `skip_thinking` is that of
    `llama` unless given, `look_ahead` is its own; `variables` are the template's, such as `enable_thinking`
    (`template_variables`).

    Raises:
        PromptError: the model's template rejects the conversation, or an option has no counterpart.
    """
    try:
        template = {k: options[k] for k in TEMPLATE_OPTIONS if options.get(k) is not None}
        template.update(variables or {})
        prompt, arguments = chat_completion(llama, messages, **{**_CHAT_DEFAULTS, **options, **template})
        turn = turn_start(llama, messages, prompt, **template)
        skips = llama.skip_thinking if skip_thinking is None else skip_thinking
        unsteered = NOTHING
        if steer:
            unsteered = unsteered_parts(llama, messages, prompt, skip_thinking=skips, **template)
    except FineSteerError:
        raise
    except Exception as error:  # a template is a program that came with the model
        raise PromptError(f"the model's chat template rejects this conversation: {error}") from error
    return _request(
        prompt, turn, steer, arguments, unsteered=unsteered, skip_thinking=skips, look_ahead=llama.look_ahead
    )


def check_request(
    llama: SteeredLlama,
    prompt: str | Sequence[Message],
    *,
    steer: Sequence[Steer],
    variables: Mapping[str, Any] | None = None,
) -> Request:
    """A request that only finds out what kind of request a prompt is, and what an answer that was given shows:
    `llama.check(prompt)` in a batch.

    Raises:
        PromptError: the model's template rejects the conversation.
        SteeringError: there is no profile, or nothing to check.
    """
    steer = checking(steer)
    request = chat_request(llama, asked_for(prompt), steer=steer, skip_thinking=False, variables=variables)
    return replace(request, checks=True, max_tokens=0, answered=answered(llama, prompt, steer))


def completion_request(
    llama: SteeredLlama,
    prompt: str | Sequence[int],
    *,
    steer: Sequence[Steer] = (),
    skip_thinking: bool | None = None,
    suffix: str | None = None,
    **options: Any,
) -> Request:
    """The request that `llama.create_completion(prompt, **options)` makes, with the steering of its own.

    A raw prompt is one user message: the scope `turn` is all of it. With a `suffix` the answer is what stands between
    the two (`infill_prompt`).

    Raises:
        PromptError: an option has no counterpart, or the model cannot fill in.
    """
    if suffix is not None:
        tokens: Sequence[int] = infill_prompt(llama, prompt, suffix)
    else:
        tokens = _raw_tokens(llama, prompt) if isinstance(prompt, str) else prompt
    skips = llama.skip_thinking if skip_thinking is None else skip_thinking
    unsteered = Unsteered(thinking=opened_at(tokens, token_text(llama), raw=True)) if steer and skips else NOTHING
    arguments = {**_COMPLETION_DEFAULTS, **options}
    return _request(tokens, 0, steer, arguments, unsteered=unsteered, skip_thinking=skips, look_ahead=llama.look_ahead)


def _raw_tokens(llama: SteeredLlama, text: str) -> list[int]:
    """As `llama.create_completion` makes tokens of a raw prompt."""
    model = model_of(llama)
    first = llama.token_bos() if model.token_cls() == -1 else model.token_cls()
    last = llama.token_eos() if model.token_sep() == -1 else model.token_sep()
    tokens = llama.tokenize(text.encode(), add_bos=False, special=True) if text else []
    before = [first] if model.add_bos_token() and first != -1 else []
    after = [last] if model.add_eos_token() or model.token_sep() != -1 else []
    return [*before, *tokens, *after]


def _request(
    prompt: Sequence[int], turn: int, steer: Sequence[Steer], arguments: Mapping[str, Any], **more: Any
) -> Request:
    """From the arguments of `create_completion`."""
    if arguments.get("logits_processor") is not None:
        raise PromptError("requests at once take no logits_processor; use logit_bias or a grammar")
    grammar, stop = arguments.get("grammar"), arguments.get("stop") or []
    names = set(Sampling.__dataclass_fields__) - {"grammar", "logit_bias"}
    return Request(
        prompt=prompt,
        turn=turn,
        steer=tuple(steer),
        sampling=Sampling(
            **{name: arguments[name] for name in names if arguments.get(name) is not None},
            logit_bias={int(k): float(v) for k, v in (arguments.get("logit_bias") or {}).items()},
            grammar=None if grammar is None else constraint_of(grammar),
        ),
        max_tokens=arguments.get("max_tokens") or None,
        stop=(stop,) if isinstance(stop, str) else tuple(word for word in stop if word),
        logprobs=arguments.get("logprobs"),
        prompt_logprobs=bool(arguments.get("echo")) and arguments.get("logprobs") is not None,
        **more,
    )
