"""The programs in examples/ run as they are, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finesteer_local.profile import Profile
from tiny import make_profile

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
QUESTIONS = ["Hello there", "What is a café?"]
SHORT = """
import runpy, sys
from finesteer_local.training import learn, trials
learn.REPLY_TOKENS = trials.ANSWER_TOKENS = trials.WHOLE_TOKENS = 4
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def profile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("profile") / "example.gguf"
    make_profile(tiny, name="example", strength=4.0).save(file)
    return file


def run(name: str, *args: Path, stdin: str = "", wrapper: tuple[str, ...] = (), cwd: Path | None = None) -> str:
    """What an example prints."""
    command = [sys.executable, "-X", "utf8", *wrapper, EXAMPLES / name, *args]
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}  # threads would wait for each other on models this small
    done = subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", timeout=300, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_chat(tiny: Path, profile: Path) -> None:
    said = run("chat.py", tiny, profile, stdin="\n".join([*QUESTIONS, "", ""]))
    assert said.count("> ") == 3 and said.count("[steered]") == 2


def test_engine(tiny: Path, profile: Path) -> None:
    answers = [line.split(": ", 1) for line in run("engine.py", tiny, profile).split("\n\n") if line.strip()]
    ways = ["without a profile", "with the profile", "with half of its strength", "steering the answer alone"]
    decided = ["nothing decides", *["example 1.00"] * 3]
    assert [way for way, _ in answers] == [f"{way} ({gate})" for way, gate in zip(ways, decided, strict=True)]
    assert len({text for _, text in answers}) == 4


def test_client(tiny: Path, profile: Path) -> None:
    pytest.importorskip("openai", reason="OpenAI's client is in the dependency group `dev`")
    first, ready, gate, steered, _, unsteered = run("client.py", tiny, profile).splitlines()[:6]
    assert first.startswith("http://127.0.0.1:") and ready == ""
    assert gate == "example: gate 1.00, open"
    assert steered.strip() != unsteered.strip()


def test_log_decisions(tiny: Path, profile: Path) -> None:
    rows = [json.loads(row) for row in run("log_decisions.py", tiny, profile, stdin="\n".join(QUESTIONS)).splitlines()]
    assert [row["prompt"] for row in rows] == QUESTIONS
    for row in rows:
        assert row["open"] is True and (row["g"], row["strength"]) == (1.0, 4.0)
        assert len(row["experts"]) == 3 and sum(row["experts"].values()) <= 1.001


def test_train(tiny: Path, tmp_path: Path) -> None:
    """With answers of four tokens, which nobody reads here."""
    said = run("train.py", tiny, wrapper=("-c", SHORT), cwd=tmp_path)
    profile = Profile.load(tmp_path / "live.gguf")
    assert f"live.gguf: steers layer {profile.layers[0]}, strength 1.00, scope turn" in said
    assert said.count("(gate ") == 2


def test_every_example_is_run_here_and_says_how() -> None:
    names = {file.stem for file in EXAMPLES.glob("*.py")}
    assert names == {name.removeprefix("test_") for name in globals() if name.startswith("test_")} & names
    told = (EXAMPLES / "README.md").read_text("utf-8")
    for name in names:
        assert f"python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text("utf-8")
        assert f"({name}.py)" in told
