"""`chat` at a terminal: keys, history, completion, Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from cli import PROMPT, terminal
from finesteer_local import paths
from finesteer_local.cli import _chat_input
from finesteer_local.cli._answers import engine_of
from finesteer_local.cli._chat import Chat
from finesteer_local.cli._chat_commands import COMMANDS
from finesteer_local.cli._options import Sampling
from finesteer_local.runtime import open_model
from tiny import make_profile

ALT_ENTER, CTRL_C, CTRL_D, UP = "\x1b\r", "\x03", "\x04", "\x1b[A"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def typed(keys: PipeInput, text: str) -> tuple[list[str], list[str]]:
    """The questions that these keys make, and the notes shown."""
    notes: list[str] = []
    keys.send_text(text + CTRL_D)
    return list(_chat_input.typed_lines(notes.append, COMMANDS, lambda: ["safety"])), notes


def test_enter_asks_and_ctrl_d_leaves(keys: PipeInput) -> None:
    assert typed(keys, "hello\rand now?\r") == (["hello", "and now?"], [])


def test_new_lines(keys: PipeInput) -> None:
    lines, _ = typed(keys, f"one{ALT_ENTER}two\\\rthree\r")
    assert lines == ["one\ntwo\nthree"]


def test_pasted_new_lines_do_not_ask(keys: PipeInput) -> None:
    lines, _ = typed(keys, "\x1b[200~one\ntwo\n\x1b[201~three\r")
    assert lines == ["one\ntwo\nthree"]


def test_ctrl_c_clears_a_line_then_warns_then_leaves(keys: PipeInput) -> None:
    lines, notes = typed(keys, f"oops{CTRL_C}hello\r{CTRL_C}more\r{CTRL_C}{CTRL_C}")
    assert lines == ["hello", "more"]
    assert notes == ["Ctrl-C again, Ctrl-D or /quit leaves the chat."] * 2


def test_history_is_kept_for_its_user_alone(keys: PipeInput) -> None:
    typed(keys, "first\r")
    assert paths.history_file().stat().st_mode & 0o777 == 0o600
    assert typed(keys, f"{UP}\r")[0] == ["first"]


def test_history_that_cannot_be_written(keys: PipeInput, home: Path) -> None:
    home.write_text("in the way")
    assert typed(keys, "hello\r")[0] == ["hello"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/co", ["/compare"]),
        ("/S", ["/strength", "/system", "/save"]),
        ("/profile ", ["safety", "off"]),
        ("/profile safety o", ["off"]),
        ("/strength d", ["default"]),
        ("hello /co", []),
        ("/co\n", []),
        ("/why x", []),
    ],
)
def test_completion(text: str, expected: list[str]) -> None:
    completer = _chat_input._completer(list(COMMANDS), lambda: ["safety"])
    assert [c.text for c in completer.get_completions(Document(text), CompleteEvent())] == expected


def test_completion_of_files(tmp_path: Path) -> None:
    (tmp_path / "talk.json").touch()
    completer = _chat_input._completer(list(COMMANDS), list)
    (found,) = completer.get_completions(Document(f"/load {tmp_path}/ta"), CompleteEvent())
    assert found.text == "lk.json"


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(tiny: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.gguf"
    make_profile(tiny, gate="open", name="loud").save(profile)
    with terminal("chat", tiny, "-p", profile, "--ctx", "60000", "--threads", "1") as screen:
        screen.wait_for("loud (strength 1, scope prompt)")
        screen.wait_for(PROMPT)
        screen.type("hello\r")
        screen.wait_for("hello")
        screen.wait_for_more(400)
        screen.interrupt()
        screen.wait_for("stopped")
        screen.wait_for(PROMPT)
        screen.type("/why\r")
        screen.wait_for("1.00 open")
        screen.wait_for(PROMPT)
        screen.type(CTRL_D)
        assert screen.exit_code() == 0
        assert "Traceback" not in screen.seen


def test_ctrl_c_while_the_prompt_is_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(open_model(tiny, n_threads=1)) as engine:
        chat = Chat(engine, "tiny", Sampling(max_tokens=4))
        expected = chat.ask("hello").text
        chat.clear()
        decode = engine._streams.decode

        def interrupted(rows: object) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)  # until the main thread has seen it
            decode(rows)

        with monkeypatch.context() as patch:
            patch.setattr(engine._streams, "decode", interrupted)
            answer = chat.ask("hello " * 40)  # two pieces
        assert (answer.finish, answer.text, answer.readings, chat.messages) == ("cancelled", "", (), [])
        assert chat.ask("hello").text == expected
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait_for_the_engine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_of(open_model(tiny, n_threads=1)) as engine:
        chat, decode, gone = Chat(engine, "tiny", Sampling(max_tokens=4)), engine._streams.decode, threading.Event()

        def stuck(rows: object) -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.5)
            assert gone.wait(30)
            decode(rows)

        with monkeypatch.context() as patch:
            patch.setattr(engine._streams, "decode", stuck)
            with pytest.raises(KeyboardInterrupt):
                chat.ask("hello")
            gone.set()
        assert chat.ask("hello").text


def test_second_ctrl_c_at_an_empty_prompt_leaves(tiny: Path) -> None:
    with terminal("chat", tiny) as screen:
        screen.wait_for(PROMPT)
        screen.type(CTRL_C)
        screen.wait_for("Ctrl-C again")
        screen.wait_for(PROMPT)
        screen.type(CTRL_C)
        assert screen.exit_code() == 0
