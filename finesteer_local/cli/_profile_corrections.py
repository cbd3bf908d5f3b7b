"""`finesteer-local profiles corrections`: what was said to be wrong, and its deletion."""

from __future__ import annotations

from dataclasses import asdict

import click

from finesteer_local import corrections
from finesteer_local.cli._options import json_option
from finesteer_local.cli._output import echo_json
from finesteer_local.corrections import STEER


@click.command("corrections")
@click.argument("profile", required=False)
@click.option("--delete", "ids", multiple=True, metavar="ID", help="Delete this one; repeatable.")
@click.option("--delete-all", is_flag=True, help="Delete all of them.")
@json_option
def command(profile: str | None, ids: tuple[str, ...], delete_all: bool, as_json: bool) -> None:
    """List or delete the corrections that /wrong in a chat keeps, of PROFILE or of all profiles.

    They lie in a file on this machine and go nowhere. `profiles refit` takes them into a profile's gate; one that was
    deleted is gone from it after the next refit.
    """
    if delete_all and (ids or profile):
        raise click.UsageError("--delete-all goes alone")
    if delete_all:
        click.echo(f"deleted {_counted(corrections.delete_all())}")
        return
    if ids:
        gone = corrections.delete(ids)
        click.echo(f"deleted {_counted(len(gone))}")
        for name in sorted({each.profile for each in gone}):
            click.echo(f"A refit makes {name} forget: finesteer-local profiles refit {name}", err=True)
        return
    found = corrections.kept(profile)
    if as_json:
        echo_json([{"id": each.id, **asdict(each)} for each in found])
        return
    if not found:
        of = f" of {profile}" if profile else ""
        click.echo(f"No corrections{of}. In a chat, /wrong keeps the last turn as one.")
        return
    from rich.table import Table
    from rich.text import Text

    from finesteer_local.cli._view import one_line, output_console

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("ID", "PROFILE", "SHOULD"):
        table.add_column(column, no_wrap=True)
    table.add_column("QUESTION")
    for each in found:
        should = "be steered" if each.should == STEER else "be left alone"
        table.add_row(each.id, each.profile, should, Text(one_line(each.text, 80)))
    output_console().print(table)


def _counted(n: int) -> str:
    return f"{n} correction{'s' * (n != 1)}"
