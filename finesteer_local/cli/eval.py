"""`finesteer-local eval`: how often a profile refuses what it should and leaves alone what it should, beside others."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from finesteer_local import paths
from finesteer_local.cli import _progress
from finesteer_local.cli._open import open_steered, short_name
from finesteer_local.cli._options import ModelOptions, model_argument, model_options
from finesteer_local.cli._output import echo_json, json_line, write_text

# As finesteer_local.evaluation.methods has them; importing that would load numpy for a help page.
BASELINES = ("control-vector", "pca", "cast", "alphasteer", "finesteer")
ABLATIONS = ("no-gate", "no-experts", "no-residual", "hard-gate")
METHODS = ("none", *BASELINES, "ours", *ABLATIONS, "baselines", "ablations", "all")
JUDGE_KEY = "FINESTEER_JUDGE_KEY"


@click.command("eval", short_help="Measure a profile on suites of prompts, beside other methods.")
@model_argument
@click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="FILE|NAME",
    help="JSONL rows with `prompt` and `label`, TruthfulQA's CSV, or a built-in suite; repeatable.  "
    "[default: all built-in suites]",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(METHODS),
    help="Repeatable.  [default: none and ours]",
)
@click.option("--recipe", metavar="NAME", help="What the other methods are trained on.  [default: the profile's]")
@click.option("--sweep", is_flag=True, help="Try every method at six strengths around its own, too.")
@click.option("--limit", type=click.IntRange(1), help="At most so many rows of each suite, spread over it.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    help="Longest answer in tokens; maths gets at least 256.",
)
@click.option(
    "--samples",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Sampled answers a prompt, beside the greedy one; 0 for none. Maths is answered greedily alone.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=0.8,
    show_default=True,
    help="Of the sampled answers; that of `chat`.",
)
@click.option(
    "--first-seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the first sampled answer of every prompt; the next ones follow.",
)
@click.option(
    "--judge",
    default="whole",
    show_default=True,
    metavar="whole|phrases|URL",
    help="What says which answers decline: the judge of whole answers, the AdvBench phrases, or an OpenAI-compatible "
    f"endpoint (its key in ${JUDGE_KEY}).",
)
@click.option("--judge-model", metavar="NAME", help="The endpoint's model.")
@click.option("--report", type=click.Path(path_type=Path), help="Write one HTML page with all figures and pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@click.option("--answers", type=click.Path(path_type=Path), help="Write every answer here, as JSONL.")
@click.option("--seed", type=click.IntRange(0), help="Of the other methods' training.  [default: the profile's]")
@click.option("--fresh", is_flag=True, help="Forget what earlier runs with this model have computed.")
@model_options
def command(
    model: str,
    suites: tuple[str, ...],
    methods: tuple[str, ...],
    limit: int | None,
    samples: int,
    first_seed: int,
    judge: str,
    judge_model: str | None,
    report: Path | None,
    as_json: bool,
    answers: Path | None,
    options: ModelOptions,
    **settings: Any,
) -> None:
    """Answer every prompt of the suites unsteered and steered, on the same prompts for every method, and count.

    Whole answers are judged, greedy ones and others that are sampled as `chat` samples them. A refusal counts as a
    defence only if nothing after it takes it back, if the model ends it by itself, and if it is good language to the
    last word: not in circles, and no more surprising to the unsteered model than its own answers are.

    `baselines` are other methods from their papers, trained on the same data as the profile and tuned on the same
    validation prompts; `ablations` are the profile with a part taken out.

    A run that was stopped goes on when the same command is given again.
    """
    if not options.profiles and (not methods or {*methods} & {"ours", "ablations", "all", *ABLATIONS}):
        raise click.UsageError("name at least one profile with --profile")
    asks = judge not in ("whole", "phrases")
    if asks and not judge.startswith(("http://", "https://")):
        raise click.UsageError(f"--judge takes `whole`, `phrases` or a URL, not {judge!r}")
    if asks != (judge_model is not None):
        raise click.UsageError("--judge URL and --judge-model go together")
    for output in (report, answers):
        if output:
            paths.check_writable(output)
    from finesteer_local.evaluation.run import Plan, evaluate
    from finesteer_local.evaluation.suites import load_suites

    loaded = load_suites(suites, limit)
    plan = Plan(
        methods=methods or ("none", "ours"),
        seeds=range(first_seed, first_seed + samples),
        judge=judge,
        judge_model=judge_model or "",
        judge_key=os.environ.get(JUDGE_KEY),
        command=shlex.join(["finesteer-local", *sys.argv[1:]]),
        **settings,
    )
    llama = open_steered(model, options)
    try:
        profiles = [
            replace(
                profile,
                strength=profile.strength if options.strength is None else options.strength,
                scope=options.scope or profile.scope,
            )
            for profile in llama.profiles
        ]
        with _progress.stages() as progress:
            results = evaluate(llama, profiles, loaded, plan, model=short_name(model), progress=progress)
    finally:
        llama.close()
    if answers:
        write_text(answers, "".join(map(json_line, results.rows())))
    if report:
        from finesteer_local.evaluation.report import render

        write_text(report, render(results))
        click.echo(f"The report is {report}", err=True)
    if as_json:
        echo_json(results.as_json())
    else:
        from finesteer_local.cli._eval_table import show

        show(results)
