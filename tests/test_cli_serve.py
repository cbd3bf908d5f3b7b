"""`finesteer-local serve`: what is checked before anything listens, and what it says. The rest is in test_server_*."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli import call
from finesteer_local import distribution
from finesteer_local.server import serve as serve_module
from finesteer_local.server.settings import ServerSettings
from tiny import make_profile, write_tiny_model


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServerSettings, int]]:
    """What would have been served."""
    found: list[tuple[ServerSettings, int]] = []

    def serve(settings: ServerSettings, port: int, **options: Any) -> None:
        found.append((settings, port))
        options["on_listening"]("http://127.0.0.1:1")
        options["on_ready"]()

    monkeypatch.setattr(serve_module, "serve", serve)
    return found


@pytest.fixture
def firm(tiny: Path, tmp_path: Path) -> Path:
    file = tmp_path / "firm.gguf"
    make_profile(tiny, name="firm").save(file)
    return file


def test_what_it_starts_and_says(
    tiny: Path, tmp_path: Path, firm: Path, started: list[tuple[ServerSettings, int]]
) -> None:
    warm = tmp_path / "warm.gguf"
    make_profile(tiny, name="warm").save(warm)
    arguments = ["-p", str(warm), "-r", str(firm), "--port", "0", "--parallel", "2", "--queue", "3", "--ctx", "256"]
    done = call("serve", str(tiny), *arguments, "--max-tokens", "9", "--allow-host", "Chat.example.org")
    assert done.exit_code == 0, done.output
    assert done.stdout == "llama · firm (required), warm · http://127.0.0.1:1\nReady. Ctrl-C stops.\n"
    [(settings, port)] = started
    assert [profile.name for profile in settings.profiles] == ["firm", "warm"]
    assert (settings.required, settings.ctx, port) == ({"firm"}, 256, 0)
    assert (settings.limits.parallel, settings.limits.queue, settings.limits.max_tokens) == (2, 3, 9)
    assert settings.host == "127.0.0.1" and settings.api_key is None
    assert settings.knows_host("chat.example.org")


def test_who_may_say_what_was_wrong(tiny: Path, started: list[tuple[ServerSettings, int]]) -> None:
    for options in ((), ("--no-corrections",), ("--api-key", "k"), ("--api-key", "k", "--corrections")):
        assert call("serve", str(tiny), *options).exit_code == 0
    assert [settings.keeps_corrections for settings, _ in started] == [True, False, False, True]


def test_the_key_comes_from_the_environment(
    tiny: Path, started: list[tuple[ServerSettings, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINESTEER_API_KEY", "k")
    assert call("serve", str(tiny), "--host", "0.0.0.0").exit_code == 0
    assert started[0][0].api_key == "k"


def test_nobody_else_without_a_key(tiny: Path, started: list[tuple[ServerSettings, int]]) -> None:
    done = call("serve", str(tiny), "--host", "0.0.0.0")
    assert done.exit_code == 1 and not started
    assert done.stderr.count("\n") == 1 and "give an --api-key" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "nobody"], "unknown profile 'nobody'"),
        (["--require-profile", "nobody"], "unknown profile 'nobody'"),
        (["--profile", "safety"], "safety"),
    ],
)
def test_profiles_that_cannot_be_used(
    tiny: Path, started: list[tuple[ServerSettings, int]], arguments: list[str], said: str
) -> None:
    done = call("serve", str(tiny), *arguments)
    assert done.exit_code == 1 and said in done.stderr and not started


def test_a_profile_for_another_model(firm: Path, tmp_path: Path, started: list[tuple[ServerSettings, int]]) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", nudge=0.5)
    done = call("serve", str(other), "--profile", str(firm))
    assert done.exit_code == 1 and "was trained for" in done.stderr and not started


def test_two_profiles_of_one_name(
    firm: Path, tiny: Path, tmp_path: Path, started: list[tuple[ServerSettings, int]]
) -> None:
    again = tmp_path / "again.gguf"
    again.write_bytes(firm.read_bytes())
    done = call("serve", str(tiny), "-p", str(firm), "-p", str(again))
    assert done.exit_code == 1 and "two profiles have the name 'firm'" in done.stderr and not started


def test_a_port_that_is_taken(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = call("serve", str(tiny), "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1 and "choose another --port" in done.stderr


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    bad = write_tiny_model(tmp_path / "bad.gguf", architecture="llama", n_layer=2)
    data = bad.read_bytes()
    bad.write_bytes(data[: len(data) - 5000])  # cut short
    done = call("serve", str(bad), "--port", "0")
    assert done.exit_code == 1 and done.stderr.splitlines()[-1].startswith("Error: ")


def test_without_the_extra(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finesteer_local import server

    monkeypatch.setattr(server, "find_spec", lambda name: None if name in ("fastapi", "uvicorn") else object())
    done = call("serve", str(tiny))
    assert done.exit_code == 1
    command = distribution.install_extra("serve")
    assert done.stderr == f"Error: the server needs fastapi and uvicorn (extra serve); install with: {command}\n"


def test_the_help_loads_nothing() -> None:
    code = (
        "import sys\nfrom finesteer_local.cli import program\n"
        "try: program.main(['serve', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('fastapi', 'uvicorn', 'numpy', 'llama_cpp', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--require-profile" in done.stdout
