"""`finesteer-local profiles`: the profiles that have a name."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finesteer_local import catalog
from finesteer_local.cli import _profile_adapt, _profile_corrections, _profile_index, _profile_parts, _profile_refit
from finesteer_local.cli._options import json_option
from finesteer_local.cli._output import echo_json
from finesteer_local.errors import DownloadError, ProfileError, UnknownNameError

if TYPE_CHECKING:
    from finesteer_local.catalog import ProfileRef
    from finesteer_local.profile import Profile

_MAX_DOWNLOAD = 256 << 20

model_option = click.option("--model", metavar="MODEL", help="For which model, where several have such a profile.")


@click.group("profiles", short_help="List, show, add, adapt, correct and remove profiles.", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, show, add and remove profiles, adapt, correct and teach them, and look for or publish them."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_profiles, model=None, as_json=False)


command.add_command(_profile_adapt.command)
command.add_command(_profile_corrections.command)
command.add_command(_profile_refit.command)


@command.command("list")
@click.option("--model", metavar="MODEL", help="Only those for this model.")
@json_option
def list_profiles(model: str | None, as_json: bool) -> None:
    """List your own profiles and those that came with the package."""
    refs = catalog.available_profiles(_fingerprint(model))
    if as_json:
        echo_json([{**asdict(ref), "path": str(ref.path)} for ref in refs])
        return
    if not refs:
        click.echo("No profiles yet. Train one with: finesteer-local train MODEL --recipe safety")
        return
    from rich.table import Table
    from rich.text import Text

    from finesteer_local.cli._view import one_line, output_console

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("NAME", no_wrap=True)
    table.add_column("MODEL")
    table.add_column("FROM", no_wrap=True)
    table.add_column("DESCRIPTION")
    for ref in refs:
        about = Text(one_line(ref.problem), style="red") if ref.problem else Text(one_line(ref.description))
        origin = "package" if ref.bundled else "you"
        table.add_row(ref.name, Text(one_line(ref.model_name or ref.fingerprint, 40)), origin, about)
    output_console().print(table)


@command.command("show")
@click.argument("name")
@model_option
@json_option
def show(name: str, model: str | None, as_json: bool) -> None:
    """Show what a profile holds (as `inspect` does)."""
    from finesteer_local.cli.inspect import show_profile
    from finesteer_local.profile import Profile

    for ref in _named(name, model):
        show_profile(Profile.load(ref.path), ref.path, as_json)


@command.command("add")
@click.argument("source", metavar="FILE|URL|hf:OWNER/REPO/FILE")
@click.option("--replace", is_flag=True, help="Put it in place of the one you have, without asking.")
@click.option("--sha256", metavar="HEX", help="Take it only if this is its SHA-256.")
def add(source: str, replace: bool, sha256: str | None) -> None:
    """Copy a profile to where its name finds it.

    It comes from a file, from the web (https), or from a Hugging Face repository (hf:owner/repo/file, with @revision at
    the end where it is not the main one). What it does and for which model is shown; one that you have is replaced only
    if you say so.
    """
    import tempfile

    from finesteer_local.cli import _progress
    from finesteer_local.download import download, is_remote
    from finesteer_local.paths import sha256_of
    from finesteer_local.profile import Profile

    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise click.UsageError("--sha256 takes 64 hexadecimal digits")
    with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        path = Path(source)
        if is_remote(source):
            path = Path(folder) / "profile.gguf"
            with _progress.download(f"fetching {source}") as report:
                download(source, path, limit=_MAX_DOWNLOAD, checked=sha256 is not None, on_progress=report)
        elif not path.expanduser().is_file():
            raise ProfileError(f"no such file: {source!r}")
        path = path.expanduser()
        digest = sha256_of(path)
        if sha256 is not None and digest != sha256.lower():
            raise DownloadError(f"{source} has the SHA-256 {digest}, not {sha256.lower()}; it was not added")
        profile = Profile.load(path)
        _show(profile, path.stat().st_size, digest)
        known = catalog.profile_target(profile)
        if known.exists() and not replace and sys.stdin.isatty() and sys.stderr.isatty():
            same = "the same file" if sha256_of(known) == digest else "another one"
            question = f"You have a profile {profile.name!r} for {profile.model.name} already, {same}. Replace it?"
            if not click.confirm(question, err=True):
                click.echo("Nothing was changed.", err=True)
                return
            replace = True
        click.echo(f"added {catalog.add_profile(path, replace)}")


def _show(profile: Profile, n_bytes: int, digest: str) -> None:
    """What a profile does and for which model, on stderr: a user decides by it."""
    from finesteer_local.cli._view import gate_tokens, one_line, steering_words
    from finesteer_local.paths import size

    model = profile.model
    gate = (
        "none: it steers every prompt"
        if profile.gate.kind == "always"
        else f"{profile.gate.kind}, {gate_tokens(profile)}"
    )
    for name, value in {
        "profile": profile.name,
        "": one_line(profile.description),
        "for": one_line(f"{model.name} ({model.architecture}, {model.n_layer} layers, {model.n_embd} wide)"),
        "gate": gate,
        "steers": steering_words(profile),
        "license": one_line(profile.license),
        "file": f"{size(n_bytes)}, SHA-256 {digest}",
    }.items():
        if value:
            click.echo(f"  {name:<8} {value}", err=True)


@command.command("rm")
@click.argument("name")
@model_option
def rm(name: str, model: str | None) -> None:
    """Delete one of your own profiles."""
    click.echo(f"removed {catalog.remove_profile(name, _fingerprint(model))}")


def _fingerprint(model: str | None) -> str | None:
    if model is None:
        return None
    from finesteer_local.cli._open import fetch_model
    from finesteer_local.identity import read_model_identity

    return read_model_identity(fetch_model(model)).fingerprint


def _named(name: str, model: str | None) -> list[ProfileRef]:
    refs = catalog.available_profiles(_fingerprint(model))
    named = [ref for ref in refs if ref.name == name]
    if not named:
        import difflib

        near = difflib.get_close_matches(name, {ref.name for ref in refs}, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `finesteer-local profiles` lists them"
        raise UnknownNameError(f"unknown profile {name!r}{hint}")
    return named


_profile_index.register(command)
_profile_parts.register(command)
