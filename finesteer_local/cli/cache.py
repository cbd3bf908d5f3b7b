"""`finesteer-local cache`: the hidden states that were harvested and are kept."""

from __future__ import annotations

import time

import click

from finesteer_local import state_cache
from finesteer_local.cli._options import json_option
from finesteer_local.cli._output import echo_json
from finesteer_local.paths import size


@click.group("cache", short_help="Show or clear the kept hidden states.", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Show or clear the hidden states that training and evaluation keep.

    With them the same prompts are never read twice by the same model. FINESTEER_CACHE_GB sets how many gigabytes are
    kept (4 without it, 0 for none); what was not used for longest goes first.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(show, as_json=False)


@command.command("show")
@json_option
def show(as_json: bool) -> None:
    """List what is kept, by model and layer."""
    rows, limit = state_cache.kept(), state_cache.limit()
    total = sum(row.n_bytes for row in rows)
    if as_json:
        listed = [vars(row) for row in rows]
        echo_json({"folder": str(state_cache.folder()), "limit": limit, "bytes": total, "kept": listed})
        return
    from rich.table import Table

    from finesteer_local.cli._view import one_line, output_console

    console = output_console()
    if rows:
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        table.add_column("MODEL", overflow="fold")
        for title in ("LAYER", "PROMPTS", "SIZE"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("LAST USED", no_wrap=True)
        for row in rows:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used))
            table.add_row(one_line(row.model), str(row.layer), f"{row.n_prompts:,}", size(row.n_bytes), used)
        console.print(table)
    console.print(f"{size(total)} of at most {size(limit)} in {state_cache.folder()}", soft_wrap=True, markup=False)


@command.command("clear")
def clear() -> None:
    """Delete everything that is kept."""
    click.echo(f"freed {size(state_cache.clear())}")
