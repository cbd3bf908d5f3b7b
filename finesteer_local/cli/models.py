"""`finesteer-local models`: the models that have a name."""

from __future__ import annotations

import click

from finesteer_local import catalog
from finesteer_local.cli._options import json_option
from finesteer_local.cli._output import echo_json
from finesteer_local.paths import models_dir, size


@click.group("models", short_help="List, fetch and remove models.", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, fetch and remove models.

    A model is named by the catalogue (smollm2), by the program that keeps it (ollama:llama3.2, lmstudio:, llama.cpp:,
    jan:, gpt4all:), by its repository on the Hugging Face hub (hf:owner/repo, hf:owner/repo:Q4_K_M,
    hf:owner/repo/file.gguf), or by the path of a GGUF file; a file in the models folder has a name too. Models of other
    programs are read where they are.
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_models, as_json=False)


@command.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List all models on this machine, whoever keeps them, and those of the catalogue.

    Each with its size, its quantisation and architecture, whether it can be steered and which profiles fit. Only the
    beginning of each file is read; `doctor MODEL` tries whether it is really steered.
    """
    from finesteer_local.cli._model_list import model_rows

    rows = model_rows()
    if as_json:
        echo_json(rows)
        return
    from rich.table import Table
    from rich.text import Text

    from finesteer_local.cli._view import one_line, output_console

    def table(*columns: str) -> Table:
        made = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for name in columns:
            made.add_column(name, overflow="fold", justify="right" if name == "SIZE" else "left")
        return made

    console = output_console()
    here, others = [row for row in rows if row["path"]], [row for row in rows if not row["path"]]
    if here:
        shown = table("NAME", "SIZE", "QUANT", "ARCH", "STEERED", "PROFILES")
        for row in here:
            steered = Text("yes") if row["steerable"] else Text(one_line(f"no: {row['problem']}"), style="red")
            shown.add_row(
                Text(one_line(row["name"])),
                size(row["size"]),
                row["quantisation"] or "?",
                Text(one_line(row["architecture"] or "?")),
                steered,
                ", ".join(row["profiles"]),
            )
        console.print(shown)
    if others:
        shown = table("NOT HERE YET", "SIZE", "DESCRIPTION")
        for row in others:
            shown.add_row(row["name"], size(row["size"]), f"{row['description']} ({row['license']})")
        if here:
            console.print()
        console.print(shown)
    console.print(f"\nFolder: {models_dir()}", style="dim", soft_wrap=True, markup=False)


@command.command("pull")
@click.argument("name")
def pull(name: str) -> None:
    """Fetch a model of the catalogue, or of the Hugging Face hub (hf:owner/repo), and check it.

    Of a repository with several quantisations the one is taken that suits this machine's memory; hf:owner/repo:Q4_K_M
    and hf:owner/repo/file.gguf name one. An interrupted download goes on where it stopped. HF_TOKEN, HF_ENDPOINT,
    HF_HUB_CACHE and HF_HUB_OFFLINE are heeded.

    \b
    finesteer-local models pull hf:ggml-org/gemma-3-1b-it-GGUF
    """
    from finesteer_local.cli import _progress
    from finesteer_local.cli._open import note_choice

    with _progress.download(f"fetching {name}") as report:
        path = catalog.pull_model(name, report, note_choice)
    click.echo(path)


@command.command("rm")
@click.argument("name")
def rm(name: str) -> None:
    """Delete a model's file from the models folder."""
    click.echo(f"removed {catalog.remove_model(name)}")
