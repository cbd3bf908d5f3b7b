"""`finesteer-local serve`: the model behind OpenAI's and Ollama's interfaces, with a page."""

from __future__ import annotations

import os
from contextlib import suppress

import click

from finesteer_local.cli._options import (
    ModelOptions,
    WatchOptions,
    model_argument,
    model_options,
    policy_option,
    skip_thinking_option,
    watch_options,
)
from finesteer_local.errors import FineSteerError, StalledError


@click.command("serve", short_help="Serve a model over HTTP, steered per request, with a web page.")
@model_argument
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option(
    "--port", default=8080, show_default=True, metavar="N", type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option(
    "--api-key",
    envvar="FINESTEER_API_KEY",
    show_envvar=True,
    metavar="KEY",
    help="Clients have to send it. Needed where others can reach the server.",
)
@click.option(
    "--allow-host",
    "host_names",
    multiple=True,
    metavar="NAME",
    help="A further name under which clients reach the server, such as a proxy's; repeatable.",
)
@click.option(
    "-r",
    "--require-profile",
    "required",
    multiple=True,
    metavar="NAME|FILE",
    help="A profile that requests can strengthen, but neither weaken nor switch off; repeatable.",
)
@click.option(
    "--parallel",
    default=4,
    show_default=True,
    metavar="N",
    type=click.IntRange(1, 256),
    help="Requests answered at the same time; each takes memory for a whole context.",
)
@click.option(
    "--queue", default=64, show_default=True, metavar="N", type=click.IntRange(0), help="Requests that may wait."
)
@click.option(
    "--max-tokens", metavar="N", type=click.IntRange(1), help="Longest answer.  [default: until the context is full]"
)
@click.option(
    "--max-body",
    default=1 << 20,
    show_default=True,
    metavar="BYTES",
    type=click.IntRange(1024),
    help="Largest request.",
)
@click.option(
    "--time-limit",
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(1, 86400),
    help="Longest time for a request, waiting included; then its answer is cut.",
)
@click.option(
    "--stall-limit",
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(1, 86400),
    help="Longest time without a token or a piece of a prompt; then requests end with an error, later the server.",
)
@click.option(
    "--corrections/--no-corrections",
    default=None,
    help="Keep what clients say was decided wrongly, for `profiles refit`.  [default: kept, unless --host, --api-key "
    "or --allow-host let others in]",
)
@click.option("-v", "--verbose", is_flag=True, help="Log every request.")
@skip_thinking_option
@policy_option
@watch_options
@model_options
def command(
    model: str,
    host: str,
    port: int,
    api_key: str | None,
    host_names: tuple[str, ...],
    required: tuple[str, ...],
    parallel: int,
    queue: int,
    max_tokens: int | None,
    max_body: int,
    time_limit: float,
    stall_limit: float,
    corrections: bool | None,
    verbose: bool,
    skip_thinking: bool,
    policy: dict[str, str],
    watch: WatchOptions,
    options: ModelOptions,
) -> None:
    """Serve a model over HTTP, steered per request, with a web page.

    MODEL is a name that `finesteer-local models` lists, hf:owner/repo, or the path of a GGUF file. The profiles steer
    requests that do not say how they want to be steered. Clients of OpenAI's and of Ollama's API work unchanged; the
    page is at /.

    \b
    finesteer-local serve smollm2 --profile safety
    """
    from finesteer_local.server import require_extra

    require_extra()
    from finesteer_local.cli._open import fetch_model, find_profile
    from finesteer_local.identity import read_model_identity
    from finesteer_local.profile import Profile
    from finesteer_local.server.serve import serve
    from finesteer_local.server.settings import Limits, ServerSettings, check_address, model_name, plain_host

    host = plain_host(host)
    check_address(host, api_key)
    path = fetch_model(model)
    identity = read_model_identity(path)
    profiles: dict[str, Profile] = {}
    must: set[str] = set()
    for given in dict.fromkeys((*required, *options.profiles)):
        profile = Profile.load(find_profile(given, identity, model, path))
        profile.check_model(identity)
        if profile.name in profiles:
            raise FineSteerError(f"two profiles have the name {profile.name!r}; give one of them")
        profiles[profile.name] = profile
        if given in required:
            must.add(profile.name)
    settings = ServerSettings(
        path=path,
        identity=identity,
        name=model_name(model),
        profiles=tuple(profiles.values()),
        required=frozenset(must),
        strength=options.strength,
        scope=options.scope,
        kinds=policy,
        skip_thinking=skip_thinking,
        on_answer=watch.on_answer,
        look_ahead=watch.look_ahead,
        ctx=options.ctx,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        rpc=options.rpc,
        host=host,
        host_names=frozenset(name.lower() for name in host_names),
        api_key=api_key or None,
        corrections=corrections,
        limits=Limits(
            parallel=parallel,
            queue=queue,
            max_tokens=max_tokens,
            body=max_body,
            seconds=time_limit,
            stall=stall_limit,
        ),
    )
    steered = ", ".join(f"{name} (required)" if name in must else name for name in profiles) or "no profile"

    def say(text: str) -> None:
        with suppress(OSError):  # where nobody reads, or the log's disk is full, requests are answered all the same
            click.echo(text)

    try:
        serve(
            settings,
            port,
            verbose=verbose,
            on_listening=lambda url: say(f"{settings.name} · {steered} · {url}"),
            on_ready=lambda: say("Ready. Ctrl-C stops."),
        )
    except StalledError as error:
        with suppress(OSError):
            click.echo(f"Error: {error}", err=True)
        os._exit(1)  # a thread that is stuck would keep the interpreter from ending
