"""`profiles search`, `get`, `pack` and `index`: profiles that somebody else trained, and publishing one's own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finesteer_local import catalog
from finesteer_local.cli._options import json_option
from finesteer_local.cli._output import echo_json
from finesteer_local.errors import ProfileMismatchError, UnknownNameError, one_line

if TYPE_CHECKING:
    from finesteer_local.identity import ModelIdentity
    from finesteer_local.profile_index import Entry

FromIndex = Callable[[str, "ModelIdentity"], "Path | None"]
"""Called with a profile's name and a model; gives the file of that profile from an index, None where none was taken."""

_index_option = click.option(
    "--index", metavar="URL|FOLDER", default="", help="Ask this index alone, whether it was added before or not."
)


def register(profiles: click.Group) -> None:
    """Add the commands to the group `profiles`."""
    for each in (search, get, pack, index):
        profiles.add_command(each)


@click.command("search")
@click.argument("model", required=False)
@click.option("--name", default="", metavar="NAME", help="Only profiles of this name.")
@_index_option
@json_option
def search(model: str | None, name: str, index: str, as_json: bool) -> None:
    """Look for profiles for MODEL in the indexes, or list all that these have.

    The indexes are those of FINESTEER_INDEX (addresses or folders, with commas between them) and those added with
    `profiles index add`. No other is asked, and each is asked for its list of profiles alone: which model you have is
    looked up here.

    \b
    finesteer-local profiles search smollm2 --index https://example.org/profiles
    """
    from finesteer_local import profile_index

    found = profile_index.search(name, _identity(model).fingerprint if model else "", only=index)
    if as_json:
        echo_json([asdict(entry) for entry in found])
        return
    if not found:
        what = f"profile for {model}" if model else "profile"
        click.echo(f"No index has a {what}. Train one with: finesteer-local train {model or 'MODEL'} --recipe safety")
        return
    from rich.table import Table
    from rich.text import Text

    from finesteer_local.cli._view import output_console
    from finesteer_local.paths import size

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("NAME", "MODEL", "SIZE", "LICENSE", "FIGURES", "INDEX"):
        table.add_column(column, overflow="fold")
    for entry in found:
        table.add_row(
            entry.name,
            Text(entry.model_name or entry.fingerprint[:12]),
            size(entry.size),
            Text(entry.license or "none"),
            Text(_figures(entry)),
            Text(entry.index),
        )
    output_console().print(table)


@click.command("get")
@click.argument("name")
@click.option("--model", metavar="MODEL", help="For which model, where the indexes have the profile for several.")
@_index_option
@click.option("--replace", is_flag=True, help="Put it in place of the one you have.")
def get(name: str, model: str | None, index: str, replace: bool) -> None:
    """Fetch a profile of an index, check it, and keep it where its name finds it.

    Its size, its SHA-256, its signature where the index has a key, and what it says of itself must be as the index
    says.

    \b
    finesteer-local profiles get safety --model ollama:llama3.2
    """
    from finesteer_local import profile_index

    fingerprint = _identity(model).fingerprint if model else ""
    found = profile_index.search(name, fingerprint, only=index)
    if not found:
        for_model = f" for {model}" if model else ""
        raise UnknownNameError(
            f"no index has a profile {name!r}{for_model}; `finesteer-local profiles search` lists all"
        )
    models = sorted({entry.model_name or entry.fingerprint[:12] for entry in found})
    if len({entry.fingerprint for entry in found}) > 1:
        raise ProfileMismatchError(f"{name!r} exists for several models ({', '.join(models)}); add --model MODEL")
    _describe(found[0])
    click.echo(f"added {_add(found[0], replace)}")


@click.command("pack")
@click.argument("profile")
@click.option("--model", metavar="MODEL", help="For which model, where several have such a profile.")
@click.option(
    "-o", "--output", "folder", metavar="FOLDER", default="profiles", show_default=True, type=click.Path(path_type=Path)
)
@click.option("--not-for", multiple=True, metavar="TEXT", help="What it must not be used for; repeatable.")
@click.option("--license", default="", metavar="NAME", help="Instead of the profile's own, such as Apache-2.0.")
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="Sign with this secret key of minisign's.")
def pack(profile: str, model: str | None, folder: Path, not_for: Sequence[str], license: str, key: Path | None) -> None:
    """Write what the publisher of a profile uploads into FOLDER.

    That is the profile, its card (figures, data, what it must not be used for), its SHA-256, its signature, and its
    entry in the folder's index.json. Read the card before you upload it. The folder is an index: put onto a web server
    as it is, its address can be searched.

    \b
    finesteer-local profiles pack safety --model smollm2 -o public --key ~/.minisign/minisign.key
    """
    from finesteer_local.profile_index import pack_profile
    from finesteer_local.profile_index.signatures import is_encrypted

    path = Path(profile).expanduser()
    if not path.is_file():
        path = _own(profile, model)
    key = key.expanduser() if key else None
    password = click.prompt("Password of the key", hide_input=True, err=True) if key and is_encrypted(key) else None
    packed = pack_profile(path, folder, not_for=not_for, license=license, key_file=key, password=password)
    for file, what in ((packed.profile, "the profile"), (packed.card, "its card"), (packed.index, "the index")):
        click.echo(f"{file}: {what}")
    click.echo(f"SHA-256 {packed.sha256}", err=True)
    if packed.key:
        click.echo(f"signed; the public key is {packed.key}", err=True)
    click.echo(f"Try it with: finesteer-local profiles search --index {folder}", err=True)


@click.group("index", short_help="Say which indexes are asked.", invoke_without_command=True)
@click.pass_context
def index(ctx: click.Context) -> None:
    """List, add and remove the indexes of profiles that are asked."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_indexes)


@index.command("list")
def list_indexes() -> None:
    """List the indexes that are asked, in their order."""
    from finesteer_local.profile_index import named_indexes

    for each in named_indexes():
        key = f", signs with {each.key}" if each.key else ""
        click.echo(f"{each.place} ({'FINESTEER_INDEX' if each.by_variable else 'added'}{key})")


@index.command("add")
@click.argument("place", metavar="URL|FOLDER")
def add(place: str) -> None:
    """Ask an index from now on: an https address or a folder, with #KEY at the end where you know its public key.

    It is asked when you search, when you get a profile, and when `chat` lacks one. It learns your address and which
    file you fetch, as any web server does, and nothing else. A key that it signs with is kept: another one later is
    refused.
    """
    from finesteer_local.profile_index import add_index

    added, n_profiles = add_index(place)
    click.echo(f"added {added.place} ({n_profiles} profiles)")


@index.command("rm")
@click.argument("place", metavar="URL|FOLDER")
def remove(place: str) -> None:
    """Ask an index no longer, and forget its key."""
    from finesteer_local.profile_index import remove_index

    click.echo(f"removed {remove_index(place)}")


def offer_from_index(yes: bool) -> FromIndex:
    """What `chat` does for a profile that is not here: look into the indexes that the user named, and ask.

    With `yes` it does not ask. An index that cannot be read is a note: the profile can still be trained.
    """

    def offered(name: str, identity: ModelIdentity) -> Path | None:
        from finesteer_local import profile_index

        if not profile_index.named_indexes():
            return None
        found = profile_index.search(
            name, identity.fingerprint, on_failure=lambda text: click.secho(text, dim=True, err=True)
        )
        if not found:
            return None
        entry = found[0]
        _describe(entry)
        if not yes:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise UnknownNameError(
                    f"there is no profile {name!r} for {identity.name} here, but {entry.index} has one; add --yes to "
                    f"fetch it, or: finesteer-local profiles get {name} --model MODEL"
                )
            if not click.confirm(f"Fetch it from {entry.index}?", default=True, err=True):
                return None
        return _add(entry, replace=False)

    return offered


def _add(entry: Entry, replace: bool) -> Path:
    from finesteer_local import profile_index
    from finesteer_local.cli import _progress

    with tempfile.TemporaryDirectory(prefix="finesteer-") as folder:
        with _progress.download(f"fetching {entry.name}") as report:
            path = profile_index.fetch_entry(entry, Path(folder), report)
        return catalog.add_profile(path, replace)


def _describe(entry: Entry) -> None:
    """What an index says of a profile, on stderr: a user decides by it."""
    from finesteer_local.paths import size

    for name, value in {
        "profile": entry.name,
        "": entry.description,
        "for": f"{entry.model_name} ({entry.architecture})",
        "figures": _figures(entry),
        "license": entry.license or "none",
        "file": f"{size(entry.size)}, SHA-256 {entry.sha256}",
        "index": f"{entry.index}, {f'signed with {entry.key}' if entry.key else 'not signed'}",
        "card": entry.card,
    }.items():
        if value:
            click.echo(f"  {name:<8} {one_line(value)}", err=True)


def _figures(entry: Entry) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in list(entry.figures.items())[:6])


def _identity(model: str) -> ModelIdentity:
    from finesteer_local.cli._open import fetch_model
    from finesteer_local.identity import read_model_identity

    return read_model_identity(fetch_model(model))


def _own(name: str, model: str | None) -> Path:
    if model:
        return catalog.resolve_profile(name, _identity(model))
    named = [ref for ref in catalog.available_profiles() if ref.name == name]
    if not named:
        raise UnknownNameError(f"unknown profile {name!r}; `finesteer-local profiles` lists them")
    if len(named) > 1:
        models = ", ".join(ref.model_name for ref in named)
        raise ProfileMismatchError(f"{name!r} exists for several models ({models}); add --model MODEL")
    return named[0].path
