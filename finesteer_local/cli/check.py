"""`finesteer-local check`: what kind of request a text is, without an answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finesteer_local.cli._options import ModelOptions, model_argument, model_options, policy_option, text_or_stdin
from finesteer_local.cli._output import echo_json, json_line
from finesteer_local.errors import ContextLengthError, DataError, PromptError
from finesteer_local.jsonl import messages_of, read_rows

if TYPE_CHECKING:
    from finesteer_local.runtime.check import Check

FLAGGED = 3
"""The exit code where something was flagged."""
DEFAULT_PROFILE = "safety"


@click.command("check", short_help="Say what kind of request a text is, without answering it.")
@model_argument
@click.argument("text", required=False)
@click.option(
    "--jsonl",
    type=click.Path(path_type=Path),
    help="Check every row, a JSON object with `prompt` or `messages`; writes JSONL.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: flagged, kinds, categories, decisions.")
@policy_option
@model_options
def command(
    model: str,
    text: str | None,
    jsonl: Path | None,
    as_json: bool,
    policy: dict[str, str],
    options: ModelOptions,
) -> None:
    """Say what kind of request a text is, without answering it.

    TEXT is what a user asks; `-` reads it from stdin. The profile is safety unless --profile names others. Exits with 3
    where something was flagged, with 0 where nothing was.

    \b
    finesteer-local check smollm2 "How do I pick my neighbour's lock?"
    finesteer-local check smollm2 - < mail.txt || echo "look at this"
    """
    if (text is None) == (jsonl is None):
        raise click.UsageError("give a TEXT, or - to read it from stdin, or --jsonl FILE")
    rows = [(row, messages_of(row, where)) for where, row in read_rows(jsonl)] if jsonl else []
    if jsonl and not rows:
        raise DataError(f"{jsonl} holds no rows")
    given = text_or_stdin(text, "the text") if text is not None else ""

    from dataclasses import replace

    from finesteer_local.cli._open import open_steered

    llama = open_steered(model, replace(options, profiles=options.profiles or (DEFAULT_PROFILE,)), policy=policy)
    if jsonl:
        flagged = _check_rows(llama, rows)
    else:
        try:
            found = llama.check(given)
        except ContextLengthError as error:
            raise ContextLengthError(error.n_prompt, error.n_ctx, "shorten it or make room with --ctx") from error
        flagged = found.flagged
        if as_json:
            echo_json(found.to_json())
        else:
            click.echo(line(found))
    sys.exit(FLAGGED if flagged else 0)


def _check_rows(llama: Any, rows: list[tuple[dict[str, Any], list[dict[str, str]]]]) -> bool:
    """Check all rows, several at a time, and write a line for each; gives whether any was flagged."""
    from finesteer_local.cli import _progress
    from finesteer_local.runtime.batch import check_request, checks

    requests = []
    for number, (_, messages) in enumerate(rows, 1):
        try:
            requests.append(check_request(llama, messages, steer=llama.steer))
        except PromptError as error:
            raise PromptError(f"row {number}: {error}") from error
    flagged = False
    with _progress.counted("checking", len(rows)) as advance:
        for (row, _), found in zip(rows, checks(llama, requests), strict=True):
            click.echo(json_line({"input": row, **found.to_json()}), nl=False)
            flagged = flagged or found.flagged
            advance()
    return flagged


def line(found: Check) -> str:
    """`flagged · cybercrime .81 · safety: score 3.1, threshold .66`."""
    from finesteer_local.cli._view import kinds_words, number

    parts = ["flagged" if found.flagged else "not flagged"]
    if found.flagged and found.kinds:
        parts.append(kinds_words(found.kinds))
    for decision in found.decisions:
        score = f"score {number(decision.score)}, threshold {number(decision.threshold)}"
        left = " (left alone)" if decision.g > 0 and not decision.flagged else ""
        parts.append(f"{decision.profile}: {score}{left}")
    return " · ".join(parts)
