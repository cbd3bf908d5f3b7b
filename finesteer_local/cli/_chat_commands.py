"""What the slash commands of `chat` do."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from finesteer_local import catalog
from finesteer_local.cli._answers import TimedAnswer
from finesteer_local.cli._chat import Chat
from finesteer_local.cli._open import find_profile, train_line
from finesteer_local.cli._view import number, one_line, quiet_line, side_by_side, why
from finesteer_local.cli._wrong import ARGUMENT, wrong
from finesteer_local.errors import PromptError, UnknownNameError


class QuitChat(Exception):
    """The user wants to leave."""


@dataclass
class Screen:
    """Where a chat is shown: answers and tables on `out`, quiet lines through `note`."""

    chat: Chat
    out: Console
    note: Callable[[str], None]
    show_answer: Callable[[Callable[[Callable[[str], None]], TimedAnswer]], None]


class Command(NamedTuple):
    """One slash command: what it does with the rest of its line, and its line in /help."""

    run: Callable[[Screen, str], None]
    argument: str
    help: str


def run_command(screen: Screen, line: str) -> None:
    """Carry out a line that starts with a slash.

    Raises:
        UnknownNameError: there is no such command; the message names the nearest one.
        FineSteerError: what the command raises.
        QuitChat: for /quit.
    """
    name, _, argument = line[1:].strip().partition(" ")
    command = COMMANDS.get(name.lower())
    if command is None:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean /{near[0]}?" if near else "/help lists them"
        raise UnknownNameError(f"unknown command /{one_line(name, 40)}; {hint}")
    command.run(screen, argument.strip())


def profile_names(chat: Chat) -> list[str]:
    """The profiles that this model can use."""
    return [ref.name for ref in catalog.available_profiles(chat.llama.identity.fingerprint) if not ref.problem]


def describe_profiles(chat: Chat) -> str:
    """`safety (strength 0.8, scope prompt)`, or that there is none."""
    parts = [
        f"{p.name} (strength {number(p.strength if chat.strength is None else chat.strength)}, "
        f"scope {chat.scope or p.scope})"
        for p in chat.llama.profiles
    ]
    return "profile " + ", ".join(parts) if parts else "no profile"


def no_profile_hint(chat: Chat) -> str:
    """What to say where nothing steers."""
    names = profile_names(chat)
    if names:
        return f"Nothing steers. For this model there is: {', '.join(names)} (/profile NAME)."
    return f"Nothing steers. Train a profile with: {train_line(chat.model, 'safety')}"


def _why(screen: Screen, _: str) -> None:
    last = screen.chat.last
    if last is None:
        raise PromptError("there is no answer yet to explain")
    if not last.readings:
        screen.note("No profile was active: the answer is the model's own.")
    for i, (profile, decision) in enumerate(last.readings):
        if i:
            screen.out.print()
        screen.out.print(why(profile, decision))


def _compare(screen: Screen, _: str) -> None:
    chat, out = screen.chat, screen.out
    if not chat.llama.profiles:
        raise PromptError("no profile is active, so there is nothing to compare; /profile NAME")
    texts = ["", ""]
    with Live(console=out, transient=True, auto_refresh=False) if out.is_terminal else _Silent() as live:

        def show(column: int) -> Callable[[str], None]:
            def on_text(text: str) -> None:
                texts[column] += text
                # Narrower than the terminal: the ^C that it echoes must not start a new line.
                live.update(side_by_side(texts[0], texts[1], [], out.width - 4), refresh=True)

            return on_text

        plain, steered = chat.compare(show(0), show(1))
    notes = [Text(quiet_line(steered) if steered else "stopped", style="dim")]
    if steered and plain.text == steered.text:
        notes.append(Text("the same answer, word for word", style="dim"))
    out.print(side_by_side(plain.text, steered.text if steered else "", notes, out.width))


class _Silent:
    """Stands in for `Live` where nobody watches."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, *_: object, **__: object) -> None:
        pass


def _strength(screen: Screen, argument: str) -> None:
    chat = screen.chat
    if argument == "default":
        chat.steer(strength=None)
    elif argument:
        try:
            strength = float(argument)
        except ValueError as error:
            raise PromptError("give a number, or `default` for the profile's own strength") from error
        chat.steer(strength=strength)
    screen.note(describe_profiles(chat))


def _profile(screen: Screen, argument: str) -> None:
    chat = screen.chat
    if argument == "off":
        chat.steer([], chat.strength)
    elif argument:
        path = Path(chat.llama.model_path)
        files = [find_profile(name, chat.llama.identity, chat.model, path) for name in argument.split()]
        chat.steer(files, chat.strength)
    else:
        names = profile_names(chat)
        screen.note(f"For this model there is: {', '.join(names)}" if names else "For this model there is none.")
    screen.note(describe_profiles(chat))


def _system(screen: Screen, argument: str) -> None:
    if argument:
        screen.chat.system = None if argument == "off" else argument
    system = screen.chat.system
    screen.note(f"system prompt: {one_line(system)}" if system else "no system prompt of yours")


def _regen(screen: Screen, _: str) -> None:
    if screen.chat.greedy:
        screen.note("At temperature 0 the answer changes only with the profile, the strength or the system prompt.")
    screen.show_answer(screen.chat.again)


def _save(screen: Screen, argument: str) -> None:
    path = _path(argument)
    screen.chat.save(path)
    screen.note(f"saved {_exchanges(screen.chat)} to {path}")


def _load(screen: Screen, argument: str) -> None:
    path = _path(argument)
    screen.chat.load(path)
    question = screen.chat.question
    last = f"; the last question: {one_line(question, 60)}" if question else ""
    screen.note(f"loaded {_exchanges(screen.chat)}{last}")


def _exchanges(chat: Chat) -> str:
    n = len(chat.messages) // 2
    return "1 question and its answer" if n == 1 else f"{n} questions and answers"


def _path(argument: str) -> Path:
    if not argument:
        raise PromptError("give a file")
    return Path(argument.strip("'\"")).expanduser()


def _clear(screen: Screen, _: str) -> None:
    screen.chat.clear()
    screen.note("the conversation starts anew")


def _help(screen: Screen, _: str) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"/{name} {command.argument}"), command.help)
    screen.out.print(table)
    screen.note("Alt-Enter, or a backslash at the end of a line, starts a new line. Ctrl-C stops an answer.")
    screen.note("A question that starts with a slash: put a space before it.")


def _quit(_: Screen, __: str) -> None:
    raise QuitChat


COMMANDS = {
    "why": Command(_why, "", "why the last answer was steered or not"),
    "wrong": Command(wrong, ARGUMENT, "it should have been steered, or not: keep that as a correction"),
    "compare": Command(_compare, "", "the last question unsteered and steered, side by side"),
    "strength": Command(_strength, "X|default", "steer less or more; 0 steers nothing"),
    "profile": Command(_profile, "NAME|off", "steer with another profile; without a name, list them"),
    "system": Command(_system, "TEXT|off", "set the system prompt"),
    "regen": Command(_regen, "", "answer the last question again"),
    "save": Command(_save, "FILE", "write the chat to a file"),
    "load": Command(_load, "FILE", "go on with a saved chat"),
    "clear": Command(_clear, "", "forget the conversation"),
    "help": Command(_help, "", "this list"),
    "quit": Command(_quit, "", "leave (or Ctrl-D)"),
}
