"""docs/commands/: a page a command, written from the command itself.

    python tests/command_pages.py

writes them; `test_command_pages.py` says when they are out of date.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from finesteer_local.cli import COMMANDS, PROGRAM, program

FOLDER = Path(__file__).parents[1] / "docs" / "commands"
_NOTE = "<!-- written by tests/command_pages.py: change the command, then run that -->"


def pages() -> dict[str, str]:
    """All pages, by file name."""
    # With its own settings: click remembers the names of the help option that a command was first asked with.
    root = click.Context(program, info_name=PROGRAM, **program.context_settings)
    found = {"README.md": _overview()}
    for name in COMMANDS:
        command = program.get_command(root, name)
        assert command is not None
        found[f"{name}.md"] = "\n".join([_NOTE, "", *_page(command, click.Context(command, root, name), 1)])
    return found


def _overview() -> str:
    lines = [_NOTE, "", "# Commands", "", "Every command explains itself with `--help`; these pages say the same.", ""]
    lines += ["| | |", "| --- | --- |"]
    lines += [f"| [{PROGRAM} {name}]({name}.md) | {what} |" for name, what in COMMANDS.items()]
    return "\n".join([*lines, ""])


def _page(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """The lines of a command, and of its own commands below it."""
    yield from ("#" * level + f" {context.command_path}", "")
    yield from ("```", f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}", "```", "")
    yield from _text(command.help or "")
    records = [parameter.get_help_record(context) for parameter in command.params]
    options = [record for record in records if record is not None and (record[0].startswith("-") or record[1])]
    for names, what in options:
        yield f"- `{names}`" + (f": {_prose(what)}" if what else "")
    if options:
        yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _page(child, click.Context(child, context, name), level + 1)


def _prose(text: str) -> str:
    """Text in which Markdown sees neither HTML nor links; click sets ranges and defaults apart with two spaces."""
    text = re.sub(r"(?:^|  )\[([^]]*)\]", r" (\1)", text).replace(") (", "; ")
    return " ".join(re.sub(r"<(?=[a-z/])", "&lt;", text).split())


def _text(text: str) -> Iterator[str]:
    r"""A docstring's paragraphs; those that click must not fill, after `\b`, are examples."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from ("```", *paragraph.removeprefix("\b\n").splitlines(), "```", "")
        else:
            yield from (*map(_prose, paragraph.splitlines()), "")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    wanted = pages()
    for file in FOLDER.glob("*.md"):
        if file.name not in wanted:
            file.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
