"""`finesteer-local bench`: what steering costs beside llama.cpp alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from finesteer_local import paths
from finesteer_local.cli import _progress
from finesteer_local.cli._options import CommaSeparated, gpu_layers_option, model_argument, rpc_option, threads_option
from finesteer_local.cli._output import write_text
from finesteer_local.errors import FineSteerError

# As finesteer_local.bench.run has them; importing that would load numpy for a help page.
PARTS = ("decode", "ttft", "profiles", "harvest", "batch", "start")


def _part_problem(part: str) -> str | None:
    return None if part in PARTS else f"{part!r} is none of {', '.join(PARTS)}"


_PARTS = CommaSeparated("PART,...", _part_problem)


@click.command("bench", short_help="Measure what steering costs beside llama.cpp alone.")
@model_argument
@click.option(
    "-p", "--profile", "names", multiple=True, metavar="NAME|FILE", help="What steers.  [default: a random stand-in]"
)
@click.option("--what", type=_PARTS, default=PARTS, help=f"Only these of {', '.join(PARTS)}.")
@click.option("--quick", is_flag=True, help="A minute or two: few rounds, short prompts. The figures are rough.")
@click.option("--rounds", metavar="N", type=click.IntRange(1, 1000), help="Rounds, instead of each part's own number.")
@click.option("--recipe", metavar="NAME", default="safety", show_default=True, help="Whose prompts `harvest` reads.")
@click.option(
    "--transformers",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Measure Hugging Face transformers with hooks beside it; DIR holds the same model.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write everything here.")
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Draw plots into this folder (SVG).")
@click.option("--ctx", metavar="N", type=click.IntRange(64), help="Context.  [default: for the prompts]")
@threads_option
@gpu_layers_option
@rpc_option
def command(
    model: str,
    names: tuple[str, ...],
    json_file: Path | None,
    plots: Path | None,
    ctx: int | None,
    threads: int | None,
    gpu_layers: int,
    **settings: Any,
) -> None:
    """Measure MODEL with llama-cpp-python alone and with us, in turns, and print medians and ratios.

    Every round measures every way once, in a new order, so that all of them meet the same machine; a ratio is the
    median over the rounds of what two ways gave in the same round. Gates are held shut or open. Let nothing else run
    meanwhile.

    Ctrl-C prints what was measured so far.
    """
    _check_outputs(json_file, plots)
    from finesteer_local.bench import Results, measure
    from finesteer_local.cli._bench_table import show
    from finesteer_local.cli._open import fetch_model, find_profile
    from finesteer_local.identity import read_model_identity
    from finesteer_local.profile import Profile

    path = fetch_model(model)
    identity = read_model_identity(path)
    profiles = [Profile.load(find_profile(name, identity, model, path)) for name in names]
    results = Results()
    stopped: BaseException | None = None
    try:
        with _progress.stages() as progress:
            measure(
                path,
                profiles,
                results,
                n_ctx=ctx or 0,
                n_threads=threads,
                n_gpu_layers=gpu_layers,
                progress=progress,
                **settings,
            )
    except (KeyboardInterrupt, FineSteerError) as error:
        stopped = error  # what was measured is shown all the same
    show(results)
    if json_file:
        write_text(json_file, json.dumps(results.to_json(), ensure_ascii=False, indent=1) + "\n")
    if plots:
        from finesteer_local.bench.plots import draw

        for file in draw(results, plots):
            click.echo(f"plot: {file}", err=True)
    if stopped:
        raise click.Abort if isinstance(stopped, KeyboardInterrupt) else stopped


def _check_outputs(json_file: Path | None, plots: Path | None) -> None:
    """Fail now where the results could not be written, not after minutes of measuring."""
    if json_file:
        paths.check_writable(json_file)
    if plots:
        paths.check_writable(paths.ensure_dir(plots) / "plot.svg")
