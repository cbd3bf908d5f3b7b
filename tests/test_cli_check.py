"""`check`: one text, stdin, a file of rows, the exit code, and every way to get it wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli import call, error_of
from finesteer_local.runtime import open_model
from tiny import make_answer_gate, make_kinds, make_profile, write_tiny_model

TEXTS = ["hello there", "the user is in the house", "on and on", "what is a train?", "in", "the user"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf")


def profile_at(model: Path, gate: str, name: str = "test", threshold: float | None = None) -> Path:
    """With a `threshold` it reads answers."""
    path = model.parent / f"{name}.gguf"
    reads = None if threshold is None else make_answer_gate(64, threshold=threshold, first=4)
    make_profile(model, name=name, gate=gate, kinds=make_kinds(64, np.random.default_rng(5)), answer_gate=reads).save(
        path
    )
    return path


@pytest.fixture
def profile(model: Path) -> Path:
    return profile_at(model, "partly")


def test_what_was_flagged_ends_with_3(model: Path, profile: Path) -> None:
    found = call("check", model, "hello there", "-p", profile)
    assert found.exit_code == 3 and found.stderr == ""
    checked = open_model(model, profiles=[profile], n_threads=1).check("hello there")
    name, probability = checked.kinds[0]
    assert found.stdout.startswith(f"flagged · {name} {f'{probability:.2f}'.removeprefix('0')}")
    assert "test: score " in found.stdout and found.stdout.count("\n") == 1


def test_what_was_not_ends_with_0(model: Path) -> None:
    found = call("check", model, "hello there", "-p", profile_at(model, "closed"))
    assert (found.exit_code, found.stderr) == (0, "")
    assert found.stdout.startswith("not flagged · test: score ") and "fraud" not in found.stdout


def test_json_and_stdin(model: Path, profile: Path) -> None:
    found = call("check", model, "-", "-p", profile, "--json", stdin="hello there\n")
    told = json.loads(found.stdout)
    assert found.exit_code == 3 and told["flagged"] is True
    assert set(told) == {"flagged", "likely_kinds", "kinds", "openai", "mlcommons", "decisions", "usage"}
    assert set(told["kinds"]) == {"fraud", "hate", "drugs"} and list(told["openai"]) == ["illicit"]
    assert told["decisions"][0]["profile"] == "test" and told["usage"]["prompt_tokens"] > 3


def test_rows(model: Path, tmp_path: Path) -> None:
    profile = profile_at(model, "selective")
    rows = [{"prompt": text, "id": i} for i, text in enumerate(TEXTS)]
    rows.append({"messages": [{"role": "user", "content": text} for text in TEXTS[:1]]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = call("check", model, "--jsonl", tmp_path / "in.jsonl", "-p", profile)
    told = [json.loads(line) for line in found.stdout.splitlines()]
    assert [row["input"] for row in told] == rows
    assert {row["flagged"] for row in told} == {True, False} and found.exit_code == 3
    assert {**told[0], "input": 0} == {**told[-1], "input": 0}
    harmless = [row["input"] for row in told if not row["flagged"]]
    again = call(
        "check", model, "--jsonl", "-", "-p", profile, stdin="".join(json.dumps(row) + "\n" for row in harmless)
    )
    assert again.exit_code == 0 and len(again.stdout.splitlines()) == len(harmless)


def test_policy(model: Path, profile: Path) -> None:
    every = [arg for kind in ("fraud", "hate", "drugs") for arg in ("--policy", f"{kind}=leave")]
    found = call("check", model, "hello there", "-p", profile, *every)
    assert found.exit_code == 0 and "(left alone)" in found.stdout
    reported = call("check", model, "hello there", "-p", profile, "--policy", "fraud=report")
    assert reported.exit_code == 3


def test_what_was_answered(model: Path) -> None:
    opens, shut = profile_at(model, "closed", "opens", -1e6), profile_at(model, "closed", "shut", 1e6)
    found = call("check", model, "hello there", "--answer", "on and on and on", "-p", opens)
    assert found.exit_code == 3 and found.stdout.startswith("flagged · ") and found.stdout.count("\n") == 1
    assert "; shown by the answer at token 4: score " in found.stdout and found.stderr == ""
    found = call("check", model, "hello there", "--answer", "-", "-p", shut, stdin="on and on and on\n")
    assert found.exit_code == 0 and found.stdout.startswith("not flagged · shut: score ")
    assert "; answer: score " in found.stdout and "kind" not in found.stdout
    short = call("check", model, "hello there", "--answer", "on", "-p", opens)
    assert short.exit_code == 0 and short.stdout.endswith("(too short to tell)\n")
    told = json.loads(call("check", model, "hello there", "--answer", "on and on", "-p", opens, "--json").stdout)
    [decision] = told["decisions"]
    assert told["flagged"] and told["likely_kinds"] == [max(told["kinds"], key=told["kinds"].get)]
    assert decision["action"] == decision["answer"]["action"] == "report" and decision["answer"]["opened_at"] == 4
    assert told["usage"]["completion_tokens"] > 4


def test_rows_with_answers(model: Path, tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "hello there"}]
    answered = [*asked, {"role": "assistant", "content": "on and on and on"}]
    rows = "".join(json.dumps({"messages": messages}) + "\n" for messages in (asked, answered, [*answered, *asked]))
    found = call("check", model, "--jsonl", "-", "-p", profile_at(model, "closed", threshold=-1e6), stdin=rows)
    told = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.exit_code == 3 and [row["flagged"] for row in told] == [False, True, False]
    assert [bool(row["decisions"][0]["answer"]) for row in told] == [False, True, False]
    left_out = call("check", model, "--jsonl", "-", "-p", profile_at(model, "closed"), stdin=rows)
    assert left_out.exit_code == 0


def test_a_refusal_at_once_by_run(model: Path, profile: Path) -> None:
    every = [arg for kind in ("fraud", "hate", "drugs") for arg in ("--policy", f"{kind}=refuse")]
    found = call("run", model, "hello there", "-p", profile, "--explain", *every)
    assert found.exit_code == 0 and found.stdout.startswith("No ") and found.stdout.endswith(" here.\n")
    assert "refused at once" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a TEXT, or - to read it from stdin, or --jsonl FILE"),
        (("hello", "--jsonl", "x.jsonl"), "give a TEXT"),
        (("--jsonl", "x.jsonl", "--answer", "on"), "give --answer with a TEXT"),
        (("--answer", "on"), "give a TEXT"),
        (("-", "--answer", "-"), "only one of the two from stdin"),
        (("hello", "--policy", "fraud"), "'fraud' is not KIND=ACTION, with an action of leave, report, steer, refuse"),
        (("hello", "--policy", "fraud=forgive"), "is not KIND=ACTION"),
    ],
)
def test_wrong_usage(model: Path, arguments: tuple[str, ...], said: str) -> None:
    found = call("check", model, *arguments)
    assert found.exit_code == 2 and said in " ".join(found.stderr.split())


def test_what_cannot_be_checked(model: Path, profile: Path, tmp_path: Path) -> None:
    assert "the text is empty" in error_of("check", model, " ", "-p", profile)
    assert "the answer is empty" in error_of("check", model, "hello", "--answer", " ", "-p", profile)
    unread = error_of("check", model, "hello", "--answer", "on", "-p", profile)
    assert "does not read answers" in unread and f"profiles watch test {model}" in unread
    reads = profile_at(model, "closed", "reads", 1e6)
    too_long = error_of("check", model, "hello", "--answer", "x " * 3000, "-p", reads)
    assert "and its answer" in too_long and "--ctx" in too_long
    assert "there is no profile 'safety' for tiny.gguf yet" in error_of("check", model, "hello")
    assert "--ctx" in error_of("check", model, "x " * 3000, "-p", profile)
    assert "knows a kind 'theft'" in error_of("check", model, "hello", "-p", profile, "--policy", "theft=leave")
    (tmp_path / "in.jsonl").write_text('{"prompt": "hello"}\n{"text": "hello"}\n')
    assert "line 2" in error_of("check", model, "--jsonl", tmp_path / "in.jsonl", "-p", profile)
