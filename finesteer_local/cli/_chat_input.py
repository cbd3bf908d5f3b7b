"""The questions of a chat: typed at a terminal, or read line by line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from finesteer_local import paths
from finesteer_local.cli._options import decoded
from finesteer_local.errors import PromptError, StorageError

Names = Callable[[], Iterable[str]]


def piped_lines() -> Iterator[str | PromptError]:
    """The lines of stdin without their ends; an error in place of a line that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield decoded(line, f"line {number}").rstrip("\r\n")
        except PromptError as error:
            yield error


def typed_lines(note: Callable[[str], None], commands: Iterable[str], profiles: Names) -> Iterator[str]:
    """Questions typed at the terminal, until Ctrl-D, or Ctrl-C twice at an empty prompt."""
    session = _session(list(commands), profiles)
    warned = False
    while True:
        try:
            text = session.prompt(">>> ", prompt_continuation="... ")
        except EOFError:
            return
        except KeyboardInterrupt:
            if warned:
                return
            note("Ctrl-C again, Ctrl-D or /quit leaves the chat.")
            warned = True
            continue
        warned = False
        yield text


def _session(commands: list[str], profiles: Names) -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    history: History = InMemoryHistory()
    file = paths.history_file()
    try:
        paths.ensure_dir(file.parent)
        file.touch(mode=0o600)  # it holds what the user typed
        history = FileHistory(str(file))
    except (StorageError, OSError):
        pass  # a chat without a history is better than none
    return PromptSession(
        history=history,
        completer=_completer(commands, profiles),
        complete_while_typing=True,
        multiline=True,
        key_bindings=_keys(),
        reserve_space_for_menu=4,
    )


def _keys() -> Any:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _submit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _cancel(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys


def _completer(commands: list[str], profiles: Names) -> Any:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths_of = PathCompleter(expanduser=True)

    class SlashCompleter(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
            text = document.text_before_cursor
            if not text.startswith("/") or "\n" in text:
                return
            command, space, argument = text[1:].partition(" ")
            if not space:
                words = [name for name in commands if name.startswith(command.lower())]
                yield from (Completion(f"/{word}", -len(text)) for word in words)
            elif command in ("save", "load"):
                yield from paths_of.get_completions(Document(argument), complete_event)
            else:
                known = {
                    "profile": [*profiles(), "off"],
                    "strength": ["default"],
                    "system": ["off"],
                    "wrong": ["steer", "leave"],
                }.get(command, [])
                start = argument.rsplit(" ", 1)[-1]
                yield from (Completion(word, -len(start)) for word in known if word.startswith(start))

    return SlashCompleter()


def is_terminal() -> bool:
    """Whether somebody types and watches."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def is_question(line: str) -> bool:
    """Whether a line goes to the model; `/etc/hosts?` does, `/why` does not."""
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    return not line.startswith("/") or "/" in word[1:]
