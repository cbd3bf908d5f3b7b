"""`chat` without a terminal: every line of stdin is a question or a slash command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from cli import call, error_of, good, spawn
from finesteer_local import catalog
from finesteer_local.steering import Experts
from tiny import make_profile, write_tiny_model

FEW = ("--max-tokens", "6", "--temperature", "0")


@pytest.fixture
def profile(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "profile.gguf"
    make_profile(tiny, gate="open", name="loud").save(path)
    return path


def talk(model: Path, *lines: str, options: tuple[object, ...] = (), code: int = 0) -> Result:
    text = "\n".join(lines) + "\n"
    result = call("chat", model, *FEW, *map(str, options), stdin=text)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result


def notes(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if not line.startswith("stopped: --max-tokens")]


def test_questions_and_answers(tiny: Path) -> None:
    result = talk(tiny, "hello", "", "and now?")
    first, second = result.stdout.splitlines()
    assert first == good("run", tiny, "hello", "--max-tokens", "6").stdout.rstrip("\n")
    assert len(second) == 6  # the tiny model writes one character a token
    assert "Nothing steers. Train a profile with: " in result.stderr
    assert f"finesteer-local train {tiny} --recipe safety" in result.stderr


def test_the_same_through_a_real_pipe(tiny: Path) -> None:
    result = spawn("chat", tiny, *FEW, "--threads", "1", stdin=b"hello\n/quit\nnever asked\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode() == talk(tiny, "hello").stdout


def test_quiet_line_and_why(tiny: Path, profile: Path) -> None:
    result = talk(tiny, "/why", "hello", "/why", options=("-p", profile), code=1)
    lines = notes(result)
    assert lines[0] == "Error: there is no answer yet to explain"
    assert lines[1].startswith("loud · gate 1.00 open · expert ")
    for word in ("loud", "1.00 open", "layer 1 of 4", "expert a", "█", "steers 2", "every token"):
        assert word in result.stdout, word


def test_why_of_vectors_that_do_not_differ(tiny: Path, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.gguf"
    make_profile(tiny, name="fixed", experts={2: Experts.fixed(np.ones(64, np.float32))}).save(fixed)
    result = talk(tiny, "hello", "/why", options=("-p", fixed))
    assert "steers 2" in result.stdout and "expert" not in result.stdout + result.stderr


def test_why_with_a_closed_gate_and_with_several_profiles(tiny: Path, profile: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed.gguf"
    make_profile(tiny, gate="closed", name="shut").save(closed)
    result = talk(tiny, "hello", "/why", options=("-p", profile, "-p", closed))
    assert "loud · gate 1.00 open" in result.stderr and "shut · gate 0.00 closed (score " in result.stderr
    assert result.stdout.count("read at") == 2
    assert "closed: the answer is the model's own" in result.stdout
    assert "No profile was active" in talk(tiny, "hello", "/why").stderr


def test_compare_shows_both_and_keeps_the_chat(tiny: Path, profile: Path) -> None:
    plain = talk(tiny, "hello").stdout.strip()
    result = talk(tiny, "hello", "/compare", "/regen", options=("-p", profile))
    steered = result.stdout.splitlines()[0]
    assert plain != steered
    assert plain in result.stdout and "unsteered" in result.stdout
    assert result.stdout.splitlines()[-1] == steered
    assert "nothing to compare" in talk(tiny, "hello", "/compare", code=1).stderr
    assert "no question yet" in talk(tiny, "/compare", options=("-p", profile), code=1).stderr


def test_strength(tiny: Path, profile: Path) -> None:
    plain = talk(tiny, "hello").stdout.strip()
    lines = ("hello", "/strength 0", "/regen", "/strength default", "/regen", "/strength")
    result = talk(tiny, *lines, options=("-p", profile))
    steered, off, again = result.stdout.splitlines()
    assert (off, again) == (plain, steered) and steered != plain
    assert "profile loud (strength 0, scope prompt)" in result.stderr
    assert notes(result)[-1] == "profile loud (strength 1, scope prompt)"
    result = talk(tiny, "/strength lots", "/strength -1", "/strength nan", options=("-p", profile), code=1)
    assert "give a number" in result.stderr and "strength -1.0 is not in" in result.stderr
    assert "strength nan" in result.stderr


def test_profile(tiny: Path, profile: Path) -> None:
    catalog.add_profile(profile)
    result = talk(tiny, "/profile", "/profile loud", "/profile off", "/profile lou", "/profile safety", code=1)
    lines = notes(result)
    assert lines[0].endswith("For this model there is: loud (/profile NAME).")
    assert lines[1:5] == [
        "For this model there is: loud",
        "no profile",
        "profile loud (strength 1, scope prompt)",
        "no profile",
    ]
    assert "unknown profile 'lou'; did you mean loud?" in lines[5]
    assert f"train it with: finesteer-local train {tiny} --recipe safety" in lines[6]


def test_system_prompt(tiny: Path) -> None:
    result = talk(tiny, "hello", "/system", "/system Be brief.", "/regen", "/system off", "/regen")
    plain, brief, again = result.stdout.splitlines()
    assert plain == again != brief
    assert "system prompt: Be brief." in result.stderr
    assert talk(tiny, "hello", options=("--system", "Be brief.")).stdout.strip() == brief
    assert "the system prompt is empty" in error_of("chat", tiny, "--system", " ")


def test_save_and_load(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    before = talk(tiny, "hello", "more", f"/save {file}", "/clear", f"/load {file}", "/regen", "and?")
    assert f"saved 2 questions and answers to {file}" in before.stderr
    assert "loaded 2 questions and answers; the last question: more" in before.stderr
    data = json.loads(file.read_text(encoding="utf-8"))
    assert [m["content"] for m in data["messages"]] == ["hello", before.stdout[:6], "more", before.stdout[7:13]]
    assert data["model"]["name"] == "Tiny"
    answers = before.stdout.splitlines()
    assert answers[2] == answers[1]
    after = talk(tiny, f"/load {file}", "and?")
    assert after.stdout.splitlines() == answers[3:]


GOOD = {"format": "finesteer-chat", "version": 1, "system": None, "messages": []}
USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("{", "not JSON"),
        ("[]", "is not a saved chat"),
        (json.dumps({**GOOD, "format": "x"}), "is not a saved chat"),
        (json.dumps({**GOOD, "version": 2}), "newer"),
        (json.dumps({**GOOD, "system": 5}), "damaged"),
        (json.dumps({**GOOD, "messages": {}}), "damaged"),
        (json.dumps({**GOOD, "messages": [USER]}), "no answer"),
        (json.dumps({**GOOD, "messages": [ASSISTANT, USER]}), "message 1 should be text by the user"),
        (json.dumps({**GOOD, "messages": [USER, {**ASSISTANT, "content": "\ud800"}]}), "message 2 should be text"),
    ],
)
def test_loading_what_is_no_chat_changes_nothing(tiny: Path, tmp_path: Path, data: str, what: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(data, encoding="utf-8")
    result = talk(tiny, "hello", f"/load {file}", "/regen", code=1)
    assert what in result.stderr
    assert len(set(result.stdout.splitlines())) == 1
    assert "exists and is not a saved chat; choose another name" in talk(tiny, f"/save {file}", code=1).stderr
    assert file.read_text(encoding="utf-8") == data


def test_files_that_are_missing(tiny: Path, tmp_path: Path) -> None:
    result = talk(tiny, f"/load {tmp_path / 'none.json'}", "/load", "/save", f"/save {tmp_path}", code=1)
    assert "cannot read" in result.stderr
    assert result.stderr.count("Error: give a file") == 2
    assert f"{tmp_path} exists and is not a saved chat" in result.stderr


def test_unknown_command_names_the_nearest(tiny: Path) -> None:
    result = talk(tiny, "/compre", "/xyzzy", "/etc/hosts is what?", " /why", code=1)
    assert "unknown command /compre; did you mean /compare?" in result.stderr
    assert "unknown command /xyzzy; /help lists them" in result.stderr
    assert len(result.stdout.splitlines()) == 2  # a path and a line that starts with a space are questions


def test_help_names_every_command(tiny: Path) -> None:
    text = talk(tiny, "/help").stdout
    for name in ("why", "compare", "strength", "profile", "system", "regen", "save", "load", "clear", "help", "quit"):
        assert f"/{name}" in text


def test_conversation_that_outgrows_the_context(tiny: Path) -> None:
    result = talk(tiny, "x" * 200, "y" * 200, "/clear", "z", options=("--ctx", "256"), code=1)
    assert "the conversation has 4" in result.stderr
    assert "tokens, the context only 256; /clear starts anew" in result.stderr
    assert len(result.stdout.splitlines()) == 2
    result = call("chat", tiny, "--ctx", "256", stdin="hello\n")
    assert "stopped: the context of 256 tokens is full; /clear starts anew" in result.stderr


def test_line_that_is_not_utf8(tiny: Path) -> None:
    result = call("chat", tiny, *FEW, stdin=b"a\xff\nhello\n")
    assert result.exit_code == 1
    assert "line 1 is not UTF-8 text" in result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_model_without_a_template_says_so_once(tmp_path: Path) -> None:
    bare = write_tiny_model(tmp_path / "bare.gguf", chat_template=None)
    result = talk(bare, "hello", "more")
    assert result.stderr.count("no chat template") == 1


def test_seed_repeats_a_chat_and_regen_still_differs(tiny: Path) -> None:
    arguments = ("chat", tiny, "--max-tokens", "12", "--seed", "3")
    first = good(*arguments, stdin="hello\n/regen\n").stdout
    assert good(*arguments, stdin="hello\n/regen\n").stdout == first
    assert len(set(first.splitlines())) == 2


def test_compare_leaves_nothing_to_chance(tiny: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed.gguf"
    make_profile(tiny, gate="closed").save(closed)
    arguments = ("chat", tiny, "-p", closed, "--max-tokens", "12", "--temperature", "2")
    assert "the same answer, word for word" in good(*arguments, stdin="hello\n/compare\n").stdout
