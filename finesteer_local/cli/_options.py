"""Options that several commands share, each defined once, and the objects they become."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from finesteer_local.errors import PromptError

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

# As finesteer_local.profile and .steering have them; importing those would load numpy for a help page.
SCOPES = ("response", "turn", "prompt")
MAX_STRENGTH = 100.0
ACTIONS = ("leave", "report", "steer", "refuse")
ON_ANSWER = ("report", "steer", "rewind", "stop", "off")


@dataclass(frozen=True)
class ModelOptions:
    """How a model is opened. None is the profile's, the model's or llama.cpp's own choice."""

    profiles: tuple[str, ...] = ()
    strength: float | None = None
    scope: str | None = None
    ctx: int = 0
    threads: int | None = None
    gpu_layers: int = -1
    rpc: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """As `runtime.open_model` takes them; the profiles are names yet."""
        return {
            "strength": self.strength,
            "scope": self.scope,
            "n_ctx": self.ctx,
            "n_threads": self.threads,
            "n_gpu_layers": self.gpu_layers,
            "rpc": self.rpc,
        }


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The rest is llama.cpp's own default, with no repeat penalty."""

    temperature: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None

    def arguments(self) -> dict[str, Any]:
        """As llama-cpp-python takes them."""
        return {
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.05,
            "repeat_penalty": 1.0,
        }


@dataclass(frozen=True)
class WatchOptions:
    """What is done once an answer shows what its prompt hid. None is the profile's own choice."""

    on_answer: str | None = None
    look_ahead: int | None = None


class CommaSeparated(click.ParamType):  # type: ignore[type-arg]
    """A tuple of texts, written with commas between them.

    Args:
        name: for messages.
        problem: what is wrong with one of them, None where nothing is.
    """

    def __init__(self, name: str, problem: Callable[[str], str | None]) -> None:
        self.name, self._problem = name, problem

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        parts = tuple(part.strip() for part in str(value).split(","))
        for part in parts:
            if problem := self._problem(part):
                self.fail(problem, param, ctx)
        return parts


def _endpoint_problem(endpoint: str) -> str | None:
    host, _, port = endpoint.rpartition(":")
    if host and ":" not in host and port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16:
        return None
    return f"{endpoint!r} is not host:port"


def rpc_option(function: F) -> F:
    """--rpc HOST:PORT[,HOST:PORT...], as a tuple in the argument `rpc`."""
    return click.option(
        "--rpc",
        type=CommaSeparated("host:port,...", _endpoint_problem),
        default=(),
        metavar="HOST:PORT,...",
        help="Spread the model over these machines too, each with a `finesteer-local worker`.",
    )(function)


def model_argument(function: F) -> F:
    """MODEL: a name of the catalogue or a path."""
    return click.argument("model", metavar="MODEL")(function)


def threads_option(function: F) -> F:
    """--threads N."""
    text = "Threads.  [default: this machine's cores]"
    return click.option("--threads", metavar="N", type=click.IntRange(1), help=text)(function)


def gpu_layers_option(function: F) -> F:
    """--gpu-layers N."""
    text = "Layers on the GPU, if llama.cpp was built for one; -1 is all.  [default: -1]"
    return click.option("--gpu-layers", metavar="N", type=click.IntRange(-1), default=-1, help=text)(function)


def new_profile_options(function: F) -> F:
    """--output FILE and --force, for `_open.check_new_profile` and `_open.keep_profile`."""
    file = click.Path(path_type=Path)
    output = click.option("-o", "--output", type=file, help="Write the profile here, not to your profiles.")
    return output(click.option("--force", is_flag=True, help="Replace the output file if it exists.")(function))


def json_option(function: F) -> F:
    """--json, as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="For programs.")(function)


def model_options(function: F) -> F:
    """Add the options of `ModelOptions`; the command gets them as `options`."""
    return _collected(
        function,
        "options",
        ModelOptions,
        click.option(
            "-p",
            "--profile",
            "profiles",
            multiple=True,
            metavar="NAME|FILE",
            help="Steer with this profile; repeatable.",
        ),
        click.option(
            "--strength",
            metavar="X",
            type=click.FloatRange(0, MAX_STRENGTH),
            help="Instead of the profile's own; 0 steers nothing.",
        ),
        click.option(
            "--scope", type=click.Choice(SCOPES), help="Which tokens are steered, instead of the profile's own."
        ),
        click.option(
            "--ctx", metavar="N", type=click.IntRange(0), default=0, help="Context in tokens.  [default: 4096]"
        ),
        threads_option,
        gpu_layers_option,
        rpc_option,
    )


def sampling_options(*, temperature: float, max_tokens: int | None) -> Decorator[Any]:
    """Add the options of `Sampling`; the command gets them as `sampling`."""
    limit = f"{max_tokens}" if max_tokens else "until the context is full"

    def decorate(function: F) -> F:
        return _collected(
            function,
            "sampling",
            Sampling,
            click.option(
                "--temperature",
                metavar="X",
                type=click.FloatRange(0, 100),
                default=temperature,
                show_default=True,
                help="0 always takes the likeliest token.",
            ),
            click.option(
                "--seed", metavar="N", type=click.IntRange(0, 2**32 - 2), help="Makes a temperature above 0 repeatable."
            ),
            click.option(
                "--max-tokens",
                metavar="N",
                type=click.IntRange(1),
                default=max_tokens,
                help=f"Longest answer in tokens.  [default: {limit}]",
            ),
        )

    return decorate


def system_option(function: F) -> F:
    """--system TEXT."""
    return click.option("--system", metavar="TEXT", help="System prompt.")(function)


def skip_thinking_option(function: F) -> F:
    """--skip-thinking."""
    text = "Leave unsteered what a reasoning model thinks before it answers (<think>...</think>)."
    return click.option("--skip-thinking", is_flag=True, help=text)(function)


def _policy(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        kind, _equals, action = text.partition("=")
        if not kind or action not in ACTIONS:
            raise click.BadParameter(f"{text!r} is not KIND=ACTION, with an action of {', '.join(ACTIONS)}")
        found[kind] = action
    return found


def policy_option(function: F) -> F:
    """--policy KIND=ACTION, repeatable, as a dictionary in the argument `policy`."""
    return click.option(
        "--policy",
        multiple=True,
        metavar="KIND=ACTION",
        callback=_policy,
        help="What is done about a kind of request: steer, refuse at once, report only, or leave alone; repeatable.",
    )(function)


def watch_options(function: F) -> F:
    """Add the options of `WatchOptions`; the command gets them as `watch`."""
    return _collected(
        function,
        "watch",
        WatchOptions,
        click.option(
            "--on-answer",
            type=click.Choice(ON_ANSWER),
            help="What is done once an answer shows what its prompt hid: tell, steer the rest, take it back and steer, "
            "end it, or do not look.  [default: the profile's]",
        ),
        click.option(
            "--look-ahead",
            metavar="N",
            type=click.IntRange(0, 4096),
            help="Tokens that are held back while an answer is read, so that they can be taken back.  "
            "[default: what one look needs]",
        ),
    )


def checked_text(text: str, what: str = "the prompt") -> str:
    """Return `text` from the command line, if it is not empty and was UTF-8.

    Raises:
        PromptError: it is not.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python keeps bytes that are not UTF-8 as lone surrogates
        raise PromptError(f"{what} is not UTF-8 text") from error
    if not text.strip():
        raise PromptError(f"{what} is empty")
    return text


def text_or_stdin(text: str, what: str) -> str:
    """`text` from the command line, or what stdin holds where it is `-`.

    Raises:
        PromptError: it is empty, or not UTF-8.
    """
    if text != "-":
        return checked_text(text, what)
    return checked_text(decoded(sys.stdin.buffer.read(), f"{what} on stdin"), f"{what} on stdin")


def decoded(data: bytes, what: str) -> str:
    """Decode text that was read as bytes.

    Raises:
        PromptError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{what} is not UTF-8 text (byte {error.start + 1:,}); convert it first") from error


def _collected(function: F, name: str, kind: type[Any], *options: Callable[[Any], Any]) -> F:
    """Wrap `function` so that the values of `options` reach it as one `kind` in the argument `name`."""
    fields = kind.__dataclass_fields__

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        mine = {field: kwargs.pop(field) for field in fields}
        return function(*args, **kwargs, **{name: kind(**mine)})

    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper  # type: ignore[return-value]
