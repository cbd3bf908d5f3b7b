"""`finesteer-local chat`: a conversation, steered question by question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

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
    watch_options,
)
from finesteer_local.errors import FineSteerError

if TYPE_CHECKING:
    from finesteer_local.cli._answers import TimedAnswer
    from finesteer_local.cli._chat_commands import Screen


@click.command("chat", short_help="Chat with a model, steered question by question.")
@model_argument
@click.option(
    "-y",
    "--yes",
    is_flag=True,
    help="Fetch a profile that is not there yet from an index, or train it, without asking.",
)
@system_option
@skip_thinking_option
@policy_option
@watch_options
@model_options
@sampling_options(temperature=0.8, max_tokens=None)
def command(
    model: str,
    yes: bool,
    system: str | None,
    skip_thinking: bool,
    policy: dict[str, str],
    watch: WatchOptions,
    options: ModelOptions,
    sampling: Sampling,
) -> None:
    """Chat with a model, steered question by question.

    MODEL is a name that `finesteer-local models` lists (smollm2, ollama:llama3.2, ...), a repository of the Hugging
    Face hub (hf:owner/repo), or the path of a GGUF file. A profile that this model does not have yet is fetched from an
    index that you named (`profiles index`), or trained on the way where it has a recipe, if you agree. Without a
    terminal every line of stdin is a question or a slash command.

    \b
    finesteer-local chat smollm2 --profile safety
    """
    if system is not None:
        checked_text(system, "the system prompt")

    from finesteer_local.cli._answers import engine_of
    from finesteer_local.cli._chat import Chat
    from finesteer_local.cli._chat_commands import Screen
    from finesteer_local.cli._open import offer_training, open_steered
    from finesteer_local.cli._profile_index import offer_from_index
    from finesteer_local.cli._view import output_console

    llama = open_steered(model, options, offer_training(yes, options), policy, offer_from_index(yes), watch)
    llama.skip_thinking = skip_thinking
    with engine_of(llama) as engine:
        chat = Chat(
            engine,
            model,
            sampling,
            system=system,
            strength=options.strength,
            scope=options.scope,
            policy=policy,
            on_answer=watch.on_answer,
        )
        screen = Screen(chat, output_console(), _note, lambda start: _show_answer(screen, start))
        _talk(screen)


def _talk(screen: Screen) -> None:
    from finesteer_local.cli._chat_commands import COMMANDS, QuitChat, profile_names, run_command
    from finesteer_local.cli._chat_input import is_question, is_terminal, piped_lines, typed_lines

    interactive = is_terminal()
    _greet(screen, interactive)
    lines: Iterator[str | FineSteerError] = (
        typed_lines(_note, COMMANDS, lambda: profile_names(screen.chat)) if interactive else iter(piped_lines())
    )
    failed = False
    for line in lines:
        try:
            if isinstance(line, FineSteerError):
                raise line
            if not line.strip():
                continue
            if is_question(line):
                _show_answer(screen, _asking(screen, checked_text(line.strip(), "the question")))
            else:
                run_command(screen, line)
        except QuitChat:
            break
        except FineSteerError as error:
            failed = True
            click.echo(f"Error: {error}", err=True)
    if failed and not interactive:
        raise click.exceptions.Exit(1)


def _asking(screen: Screen, question: str) -> Callable[[Callable[[str], None]], TimedAnswer]:
    return lambda on_text: screen.chat.ask(question, on_text)


def _greet(screen: Screen, interactive: bool) -> None:
    from finesteer_local.cli._chat_commands import describe_profiles, no_profile_hint
    from finesteer_local.cli._open import short_name
    from finesteer_local.runtime import uses_plain_format

    chat = screen.chat
    if interactive:
        _note(f"{short_name(chat.model)} · {describe_profiles(chat)} · /help")
    if uses_plain_format(chat.llama):
        _note("This model has no chat template; it gets a plain one (User: ... Assistant:).")
    if not chat.llama.profiles:
        _note(no_profile_hint(chat))


def _show_answer(screen: Screen, start: Callable[[Callable[[str], None]], TimedAnswer]) -> None:
    """Stream an answer, then say in one quiet line how it was decided."""
    from finesteer_local.cli._answers import INTERRUPTED, LENGTH
    from finesteer_local.cli._chat_input import is_terminal
    from finesteer_local.cli._view import AnswerWriter, quiet_line

    out = AnswerWriter()
    answer = start(out.write)
    out.end()
    if answer.finish == INTERRUPTED and not is_terminal():
        raise KeyboardInterrupt  # whoever stops a script stops all of it
    _note(quiet_line(answer))
    if answer.finish == LENGTH:
        n_ctx = screen.chat.llama.n_ctx()
        full = answer.n_prompt + answer.n_answer >= n_ctx - 1
        where = f"the context of {n_ctx:,} tokens is full; /clear starts anew" if full else "--max-tokens is reached"
        _note(f"stopped: {where}")


def _note(text: str) -> None:
    """A quiet line on stderr."""
    from finesteer_local.cli._view import printable

    if text:
        click.secho(printable(text), dim=True, err=True)
