"""The command group: help without imports, errors as one line, exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cli import HEAVY, call, command_line, error_of, good
from finesteer_local import __version__
from finesteer_local.cli import COMMANDS, program
from finesteer_local.cli import models as models_command
from tiny import write_tiny_model

PRESENT = [name for name in COMMANDS if importlib.util.find_spec(f"finesteer_local.cli.{name}")]


def loaded_by(*args: str) -> set[str]:
    """The modules that a command line has imported when it ends."""
    script = (
        "import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr));"
        f"sys.argv = ['finesteer-local', *{list(args)!r}];"
        "from finesteer_local.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stderr.splitlines()[-1]))


def test_help_imports_nothing_heavy_and_lists_every_command() -> None:
    assert not loaded_by("--help") & set(HEAVY)
    text = good("--help").output
    for name, line in COMMANDS.items():
        assert f"{name} " in text and line in text
    assert good("-h").output == text


@pytest.mark.parametrize("name", PRESENT)
def test_command_help_imports_no_model_code(name: str) -> None:
    assert not loaded_by(name, "--help") & {"torch", "llama_cpp", "rich", "prompt_toolkit"}


@pytest.mark.parametrize("name", PRESENT)
def test_table_and_command_say_the_same(name: str) -> None:
    command = program.get_command(click.Context(program), name)
    assert command is not None and command.name == name
    assert command.get_short_help_str(200) == COMMANDS[name]
    assert "!" not in (command.help or "")


def test_version() -> None:
    assert good("--version").output == f"finesteer-local {__version__}\n"


def test_wrong_usage_exits_2() -> None:
    assert "did you mean chat?" in error_of("caht", code=2)
    assert "there are: chat, run" in error_of("zzz", code=2)
    assert "--nope" in error_of("--nope", code=2)
    assert "MODEL" in error_of("run", code=2)


def test_our_errors_are_one_line_and_exit_1(monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_of("run", "smolm", "hello").startswith("Error: unknown model 'smolm'; did you mean smollm2")
    monkeypatch.setenv("FINESTEER_DEBUG", "1")
    result = call("run", "smolm", "hello")
    assert result.exit_code == 1 and "Traceback" in result.stderr


def test_other_os_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> list[object]:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr(models_command.catalog, "installed_models", full)
    assert error_of("models") == "Error: /some/file: No space left on device"


def test_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(models_command.catalog, "installed_models", interrupted)
    result = call("models")
    assert result.exit_code == 130
    assert result.stderr.split() == ["Stopped."]


def test_closed_pipe_is_silent(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    read, write = os.pipe()
    process = subprocess.Popen(
        command_line("run", model, "hello", "--threads", "1"), stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    os.close(read)
    _, stderr = process.communicate(timeout=60)
    assert stderr.decode().replace("(stopped at 512 tokens; --max-tokens and --ctx raise the limit)\n", "") == ""
    assert process.returncode == 141


def test_unwritable_output_characters_do_not_crash() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = command_line("run", "モデル", "hello")
    result = subprocess.run(command, capture_output=True, env=environment)
    assert result.returncode == 1 and b"Traceback" not in result.stderr
