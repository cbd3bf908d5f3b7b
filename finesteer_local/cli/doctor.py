"""`finesteer-local doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from finesteer_local.cli._options import ModelOptions, model_options
from finesteer_local.cli._output import echo_json

if TYPE_CHECKING:
    from finesteer_local.doctor import Finding

_SIGNS = {"good": ("✓", "green"), "note": ("·", "yellow"), "broken": ("✗", "red")}


@click.command("doctor", short_help="Say what works on this machine, and what to do about the rest.")
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="For programs, and for reporting a problem.")
@model_options
@click.pass_context
def command(ctx: click.Context, model: str | None, as_json: bool, options: ModelOptions) -> None:
    """Look at versions, processor, devices and folders; with MODEL, try everything that a steered answer needs.

    With a model it is opened, the tap and the control vector are tried on it, its profiles are applied, and answers are
    timed steered and unsteered. Ends with exit code 1 only where something that is needed does not work.
    """
    if options.profiles and model is None:
        raise click.UsageError("--profile needs a MODEL")
    found = list(_told(_findings(model, options), silent=as_json))
    works = all(finding.state != "broken" for finding in found)
    if as_json:
        listed = [vars(finding) for finding in found]
        echo_json({"works": works, "findings": listed})
    ctx.exit(0 if works else 1)


def _findings(model: str | None, options: ModelOptions) -> Iterator[Finding]:
    from finesteer_local.cli import _progress
    from finesteer_local.cli._open import fetch_model, find_profile
    from finesteer_local.doctor import BROKEN, Finding, examine_installation, examine_model
    from finesteer_local.errors import FineSteerError
    from finesteer_local.identity import read_model_identity

    works = True
    for finding in examine_installation(options.threads, rpc=options.rpc):
        works = works and not (finding.topic == "llama.cpp" and finding.state == BROKEN)
        yield finding
    if model is None or not works:
        return
    try:
        path = fetch_model(model)
        identity = read_model_identity(path)
    except FineSteerError as error:
        yield Finding("model", model, "cannot be used", BROKEN, str(error))
        return
    profiles, missing = [], []
    for name in options.profiles:
        try:
            profiles.append(find_profile(name, identity, model, path))
        except FineSteerError as error:
            missing.append(Finding("steering", f"profile {name}", "cannot be used", BROKEN, str(error)))
    with _progress.waiting(f"trying {path.name}"):
        yield from examine_model(path, profiles=profiles, **options.arguments())
    yield from missing


def _told(findings: Iterator[Finding], *, silent: bool) -> Iterator[Finding]:
    """Print each as it comes."""
    if silent:
        yield from findings
        return
    from rich.padding import Padding
    from rich.text import Text

    from finesteer_local.cli._view import one_line, output_console

    console, topic = output_console(), ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            console.print(Text(topic, style="bold"))
        sign, style = _SIGNS[finding.state]
        line = Text.assemble((sign, style), " ", (one_line(finding.name), "bold" if style == "red" else ""), ": ")
        console.print(Padding(line + Text(one_line(finding.says, 400)), (0, 0, 0, 2), expand=False))
        if finding.remedy:
            console.print(Padding(Text(f"→ {one_line(finding.remedy, 400)}", style=style), (0, 0, 0, 4), expand=False))
        yield finding
