"""`finesteer-local run`: one answer, or one for every row of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finesteer_local.cli._options import (
    ModelOptions,
    Sampling,
    WatchOptions,
    checked_text,
    model_argument,
    model_options,
    policy_option,
    sampling_options,
    skip_thinking_option,
    system_option,
    text_or_stdin,
    watch_options,
)
from finesteer_local.cli._output import json_line, opened
from finesteer_local.errors import DataError
from finesteer_local.jsonl import ROLES, is_text, read_rows
from finesteer_local.paths import check_writable

if TYPE_CHECKING:
    from finesteer_local.cli._answers import TimedAnswer
    from finesteer_local.runtime import SteeredLlama


@click.command("run", short_help="Answer one prompt, or a file of prompts.")
@model_argument
@click.argument("prompt", required=False)
@click.option(
    "--jsonl",
    type=click.Path(path_type=Path),
    help="Answer every row, a JSON object with `prompt` or `messages`; writes JSONL.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here instead of to stdout.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: answer, decisions, usage, timings.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Rows of --jsonl answered at the same time.  [default: 8, fewer where the context is long]",
)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a chat template.")
@click.option("--explain", is_flag=True, help="Say on stderr what the gate decided.")
@system_option
@skip_thinking_option
@policy_option
@watch_options
@model_options
@sampling_options(temperature=0.0, max_tokens=512)
def command(
    model: str,
    prompt: str | None,
    jsonl: Path | None,
    output: Path | None,
    as_json: bool,
    parallel: int | None,
    raw: bool,
    explain: bool,
    system: str | None,
    skip_thinking: bool,
    policy: dict[str, str],
    watch: WatchOptions,
    options: ModelOptions,
    sampling: Sampling,
) -> None:
    """Answer one prompt, or a file of prompts.

    PROMPT is the question; `-` reads it from stdin. Greedy unless --temperature is given: the same prompt gets the
    same answer.

    \b
    finesteer-local run smollm2 --profile safety "How do I kill a Python process?"
    git diff | finesteer-local run smollm2 --system "Write a commit message." -
    """
    if (prompt is None) == (jsonl is None):
        raise click.UsageError("give a PROMPT, or - to read it from stdin, or --jsonl FILE")
    if parallel is not None and jsonl is None:
        raise click.UsageError("--parallel is for the rows of --jsonl")
    if raw and system is not None:
        raise click.UsageError("--raw takes no --system: there is no chat template to put it in")
    if system is not None:
        checked_text(system, "the system prompt")
    if output and str(output) != "-":
        check_writable(output)
    rows = _read_rows(jsonl, raw) if jsonl else []
    text = text_or_stdin(prompt, "the prompt") if prompt is not None else ""

    from finesteer_local.cli._open import open_steered

    llama = open_steered(model, options, policy=policy, watch=watch)
    llama.skip_thinking = skip_thinking
    _note_plain_format(llama, raw)
    if jsonl:
        _run_rows(llama, rows, sampling, raw, system, parallel, output, explain)
    else:
        _run_one(llama, text if raw else _messages({"prompt": text}, system), sampling, output, as_json, explain)


def _run_one(
    llama: SteeredLlama,
    prompt: str | list[dict[str, str]],
    sampling: Sampling,
    output: Path | None,
    as_json: bool,
    explain: bool,
) -> None:
    from finesteer_local.cli._answers import FILTERED, LENGTH, engine_of, whole_answer

    with engine_of(llama) as engine:
        if as_json or output:
            answer = whole_answer(engine, prompt, sampling)
            text = json.dumps(_result(llama, answer), ensure_ascii=False, indent=2) if as_json else answer.text
            with opened(output) as file:
                file.write(text.rstrip("\n") + "\n")
        else:
            from finesteer_local.cli._view import AnswerWriter

            out = AnswerWriter(exact=True)
            answer = whole_answer(engine, prompt, sampling, out.write)
            out.end()
    if explain:
        _explain(answer)
    if answer.finish == FILTERED and not as_json:
        click.secho("(ended: the answer showed what a profile is to prevent; --on-answer)", dim=True, err=True)
    if answer.finish == LENGTH and not as_json:
        click.secho(
            f"(stopped at {answer.n_answer} tokens; --max-tokens and --ctx raise the limit)", dim=True, err=True
        )


def _run_rows(
    llama: SteeredLlama,
    rows: list[dict[str, Any]],
    sampling: Sampling,
    raw: bool,
    system: str | None,
    parallel: int | None,
    output: Path | None,
    explain: bool,
) -> None:
    from finesteer_local.cli import _progress
    from finesteer_local.cli._answers import answer_rows

    prompts = [row["prompt"] if raw else _messages(row, system) for row in rows]
    with opened(output) as file, _progress.counted("answering", len(rows)) as advance:
        for row, answer in zip(rows, answer_rows(llama, prompts, sampling, parallel), strict=True):
            file.write(json_line({"input": row, **_result(llama, answer)}))
            file.flush()
            if explain:
                _explain(answer)
            advance()


def _messages(row: dict[str, Any], system: str | None) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    if system is not None and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def _result(llama: SteeredLlama, answer: TimedAnswer) -> dict[str, Any]:
    identity = llama.identity
    return {
        **answer.to_json(),
        "model": {"name": identity.name, "path": llama.model_path, "fingerprint": identity.fingerprint},
        "profiles": [profile.name for profile in llama.profiles],
    }


def _explain(answer: TimedAnswer) -> None:
    from finesteer_local.cli._view import quiet_line

    line = quiet_line(answer)
    click.secho(line if answer.readings else f"no profile · {line}", dim=True, err=True)


def _note_plain_format(llama: SteeredLlama, raw: bool) -> None:
    from finesteer_local.runtime import uses_plain_format

    if not raw and uses_plain_format(llama):
        click.secho(
            "This model has no chat template; it gets a plain one (User: ... Assistant:). --raw leaves it out.",
            dim=True,
            err=True,
        )


def _read_rows(path: Path, raw: bool) -> list[dict[str, Any]]:
    """Check all rows before the first answer: a bad last line must not cost the work on the others.

    Raises:
        DataError: the file cannot be read, or a row cannot be used; the message names the line.
    """
    rows = [_checked_row(row, where, raw) for where, row in read_rows(path)]
    if not rows:
        raise DataError(f"{path} holds no rows")
    return rows


def _checked_row(row: dict[str, Any], where: str, raw: bool) -> dict[str, Any]:
    if ("prompt" in row) == ("messages" in row):
        raise DataError(f"{where}: needs either `prompt` or `messages`")
    if "prompt" in row:
        if not is_text(row["prompt"]):
            raise DataError(f"{where}: `prompt` is empty or not text")
        return row
    if raw:
        raise DataError(f"{where}: --raw takes `prompt`, not `messages`")
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: `messages` is not a list of messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES or not is_text(message.get("content")):
            raise DataError(f"{where}: a message needs a `role` ({', '.join(ROLES)}) and `content` that is not empty")
    return row
