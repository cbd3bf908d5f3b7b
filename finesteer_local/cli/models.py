"""`finesteer-local models`: the models that have a name."""

from __future__ import annotations

from typing import Any

import click

from finesteer_local import catalog
from finesteer_local.cli._options import json_option
from finesteer_local.cli._output import echo_json
from finesteer_local.paths import models_dir, size


@click.group("models", short_help="List, fetch and remove models.", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, fetch and remove models.

    These have a name. Any other GGUF file is given by its path; put into the models folder it has a name too.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models, as_json=False)


@command.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the catalogue and what is in the models folder."""
    installed = {model.name: model for model in catalog.installed_models()}
    entries = catalog.load_catalog()
    rows: list[dict[str, Any]] = []
    for name in [*entries, *(name for name in installed if name not in entries)]:
        entry, model = entries.get(name), installed.get(name)
        rows.append(
            {
                "name": name,
                "size": model.size if model else entry.size if entry else 0,
                "path": str(model.path) if model else None,
                "architecture": entry.architecture if entry else None,
                "license": entry.license if entry else None,
                "description": entry.description if entry else None,
            }
        )
    if as_json:
        echo_json(rows)
        return
    from rich.table import Table

    from finesteer_local.cli._view import one_line, output_console

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("NAME", no_wrap=True)
    table.add_column("SIZE", justify="right", no_wrap=True)
    table.add_column("HERE", no_wrap=True)
    table.add_column("DESCRIPTION")
    for row in rows:
        description = f"{row['description']} ({row['license']})" if row["description"] else "your own file"
        table.add_row(one_line(str(row["name"])), size(row["size"]), "yes" if row["path"] else "no", description)
    console = output_console()
    console.print(table)
    console.print(f"\nFolder: {models_dir()}", style="dim", soft_wrap=True, markup=False)


@command.command("pull")
@click.argument("name")
def pull(name: str) -> None:
    """Fetch a model of the catalogue and check it."""
    from finesteer_local.cli import _progress

    with _progress.download(f"fetching {name}") as report:
        path = catalog.pull_model(name, report)
    click.echo(path)


@command.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Delete a model's file from the models folder."""
    click.echo(f"removed {catalog.remove_model(name)}")
