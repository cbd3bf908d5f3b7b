"""The command line: one file a command, imported only when that command is called."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from finesteer_local import __version__
from finesteer_local.cli._interrupt import interrupts_raise
from finesteer_local.errors import FineSteerError

PROGRAM = "finesteer-local"

# Name -> what it does. The command is the `command` of the module of the same name beside this file.
COMMANDS = {
    "chat": "Chat with a model, steered question by question.",
    "run": "Answer one prompt, or a file of prompts.",
    "check": "Say what kind of request a text is, without answering it.",
    "serve": "Serve a model over HTTP, steered per request, with a web page.",
    "worker": "Lend this machine's devices to a model on another one.",
    "demo": "Show a small model unsteered and steered, side by side.",
    "train": "Train a profile for a model.",
    "eval": "Measure a profile on suites of prompts, beside other methods.",
    "bench": "Measure what steering costs beside llama.cpp alone.",
    "doctor": "Say what works on this machine, and what to do about the rest.",
    "profiles": "List, show, add, adapt, correct and remove profiles.",
    "models": "List, fetch and remove models.",
    "cache": "Show or clear the kept hidden states.",
    "inspect": "Show what a profile or a model file holds.",
    "import": "Make a profile of another program's steering vectors.",
    "export": "Write a profile in another program's format.",
}


class Program(click.Group):
    """A group that imports a command when it is called, and turns every error into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(f"finesteer_local.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command for an unknown one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
            ctx.fail(f"unknown command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click itself would exit with 1 when the reader of a pipe goes away."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            ctx.exit(_reader_gone())

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **options: Any
    ) -> Any:
        """Run and exit: 0 done, 1 our errors, 2 wrong usage, 130 Ctrl-C, 141 the reader went away."""
        if not options.pop("standalone_mode", True):
            return super().main(args, prog_name, standalone_mode=False, **options)
        _open_what_is_closed()
        for stream in (sys.stdout, sys.stderr):
            # A model writes what it likes: a terminal that cannot show it gets a question mark.
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        try:
            with interrupts_raise():
                code = super().main(args, prog_name, standalone_mode=False, **options)
                sys.stdout.flush()
        except click.Abort:
            code = _fail("Stopped.", 130)
        except click.ClickException as error:
            error.show()
            code = error.exit_code
        except BrokenPipeError:
            code = _reader_gone()
        except (FineSteerError, OSError) as error:
            code = _fail(f"Error: {_one_line(error)}", 1)
        sys.exit(code if isinstance(code, int) else 0)


def _open_what_is_closed() -> None:
    """A shell can start a program without its standard streams (`<&-`): nothing comes from them, or reaches anybody."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _one_line(error: Exception) -> str:
    if isinstance(error, FineSteerError) or not isinstance(error, OSError):
        text = str(error)
    else:
        text = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    return " ".join(text.split()) or type(error).__name__


def _fail(line: str, code: int) -> int:
    if os.environ.get("FINESTEER_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exc()
    with contextlib.suppress(OSError):
        click.echo(line, err=True)
    return code


def _reader_gone() -> int:
    """Leave nothing for the interpreter to flush at its end: it would complain about the closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: finesteer-local demo",
)
@click.version_option(__version__, "--version", prog_name=PROGRAM, message="%(prog)s %(version)s")
def program() -> None:
    """Steering for GGUF models that decides, prompt by prompt, when and how to steer."""


def main() -> NoReturn:
    """The entry point of `finesteer-local`."""
    program.main(prog_name=PROGRAM)
    raise AssertionError("unreachable")
