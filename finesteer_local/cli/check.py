"""`finesteer-local check`: what kind of request a text is, and what an answer to it shows, without writing one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finesteer_local.cli._options import ModelOptions, model_argument, model_options, policy_option, text_or_stdin
from finesteer_local.cli._output import echo_json, json_line
from finesteer_local.errors import ContextLengthError, DataError, ProfileError, PromptError
from finesteer_local.jsonl import messages_of, read_rows

if TYPE_CHECKING:
    from finesteer_local.runtime.check import Check
    from finesteer_local.steering import Decision

FLAGGED = 3
"""The exit code where something was flagged."""
DEFAULT_PROFILE = "safety"


@click.command("check", short_help="Say what kind of request a text is, without answering it.")
@model_argument
@click.argument("text", required=False)
@click.option("--answer", metavar="ANSWER", help="What was answered to TEXT: read it too; `-` reads it from stdin.")
@click.option(
    "--jsonl",
    type=click.Path(path_type=Path),
    help="Check every row, a JSON object with `prompt` or `messages`, which may end with an answer; writes JSONL.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: flagged, kinds, categories, decisions.")
@policy_option
@model_options
def command(
    model: str,
    text: str | None,
    answer: str | None,
    jsonl: Path | None,
    as_json: bool,
    policy: dict[str, str],
    options: ModelOptions,
) -> None:
    """Say what kind of request a text is, without answering it.

    TEXT is what a user asks; `-` reads it from stdin. The profile is safety unless --profile names others. Exits with 3
    where something was flagged, with 0 where nothing was. ANSWER is read to its end by profiles that read answers;
    `finesteer-local profiles watch` lets others learn to.

    \b
    finesteer-local check smollm2 "How do I pick my neighbour's lock?"
    finesteer-local check smollm2 "Decode this and do it: ..." --answer "Sure. First you ..."
    finesteer-local check smollm2 - < mail.txt || echo "look at this"
    """
    if (text is None) == (jsonl is None):
        raise click.UsageError("give a TEXT, or - to read it from stdin, or --jsonl FILE")
    if answer is not None and (jsonl or text == answer == "-"):
        raise click.UsageError("give --answer with a TEXT, and only one of the two from stdin")
    rows = [(row, messages_of(row, where, answered=True)) for where, row in read_rows(jsonl)] if jsonl else []
    if jsonl and not rows:
        raise DataError(f"{jsonl} holds no rows")
    given = [("user", text_or_stdin(text, "the text"))] if text is not None else []
    given += [("assistant", text_or_stdin(answer, "the answer"))] if answer is not None else []

    from dataclasses import replace

    from finesteer_local.cli._open import open_steered

    llama = open_steered(model, replace(options, profiles=options.profiles or (DEFAULT_PROFILE,)), policy=policy)
    if answer is not None:
        _check_it_is_read(llama, model)
    if jsonl:
        flagged = _check_rows(llama, rows)
    else:
        try:
            found = llama.check([{"role": role, "content": words} for role, words in given])
        except ContextLengthError as error:
            remedy = "shorten it or make room with --ctx"
            raise ContextLengthError(error.n_prompt, error.n_ctx, remedy, error.n_answer) from error
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


def _check_it_is_read(llama: Any, model: str) -> None:
    """Raise where none of the profiles that check can read an answer."""
    from finesteer_local.runtime.check import checking

    profiles = [one.profile for one in checking(llama.steer)]
    if not any(profile.answer_gate for profile in profiles):
        name = profiles[0].name
        raise ProfileError(
            f"profile {name!r} does not read answers; let it learn to: finesteer-local profiles watch {name} {model}"
        )


def line(found: Check) -> str:
    """`flagged · cybercrime .81 · safety: score 3.1, threshold .66`, and what an answer that was read shows."""
    from finesteer_local.cli._view import kinds_words, number

    parts = ["flagged" if found.flagged else "not flagged"]
    if found.flagged and found.kinds:
        parts.append(kinds_words(found.kinds))
    for decision in found.decisions:
        score = f"score {number(decision.score)}, threshold {number(decision.threshold)}"
        left = " (left alone)" if decision.g > 0 and not decision.flagged else ""
        parts.append(f"{decision.profile}: {score}{left}{_of_answer(decision)}")
    return " · ".join(parts)


def _of_answer(decision: Decision) -> str:
    """`; shown by the answer at token 24: score 3.1, threshold 1.2`."""
    from finesteer_local.cli._view import number

    found = decision.answer
    if found is None or found.score is None:
        return ""
    score = f"score {number(found.score)}, threshold {number(found.threshold)}"
    if found.opened_at is not None:
        return f"; shown by the answer at token {found.opened_at}: {score}"
    return f"; answer: {score}{' (too short to tell)' if found.score > found.threshold else ''}"
