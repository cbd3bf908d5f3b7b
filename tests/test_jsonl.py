"""JSONL files of prompts: what is read, and which line is named when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finesteer_local.errors import DataError
from finesteer_local.jsonl import messages_of, read_rows

USER = {"role": "user", "content": "hello"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_rows_and_where_they_stand(file: Path) -> None:
    file.write_text('{"a": 1}\n\n  \t\n{"b": "zwei é \\u2028"}\n', encoding="utf-8")
    assert list(read_rows(file)) == [(f"{file}, line 1", {"a": 1}), (f"{file}, line 4", {"b": "zwei é \u2028"})]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_and_a_byte_order_mark(file: Path, newline: str) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + newline.join(['{"a": 1}', "", '{"a": "\u2028"}']).encode())
    assert [(where[-1], row) for where, row in read_rows(file)] == [("1", {"a": 1}), ("3", {"a": "\u2028"})]


def test_an_empty_file_has_no_rows(file: Path) -> None:
    file.write_text("\n \n")
    assert list(read_rows(file)) == []


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1} {"a": 2}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b'["a"]', "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": "\xe9"}', "not UTF-8 text"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_a_bad_line_is_named(file: Path, line: bytes, what: str) -> None:
    file.write_bytes(b'{"a": 1}\n\n' + line + b'\n{"a": 1}\n')
    rows = read_rows(file)
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(DataError) as caught:
        next(rows)
    assert str(caught.value) == f"{file}, line 3: {what}"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent\.jsonl: no such file or directory"):
        list(read_rows(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match=r"cannot read .*: is a directory"):
        list(read_rows(tmp_path))


def test_a_prompt_is_one_user_message() -> None:
    assert messages_of({"prompt": " hello\n", "label": "x"}, "here") == [{"role": "user", "content": " hello\n"}]


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_messages_keep_role_and_content_alone(field: str) -> None:
    messages = [{"role": "system", "content": "Be brief.", "name": "x"}, USER, {**USER, "role": "assistant"}, USER]
    wanted = [{"role": m["role"], "content": m["content"]} for m in messages]
    assert messages_of({field: messages}, "here") == wanted


@pytest.mark.parametrize("value", [None, "", "  \n", [], {}, 7, True, "\ud800"], ids=json.dumps)
def test_no_prompt(value: object) -> None:
    with pytest.raises(DataError, match=r"^here: the field 'prompt' is missing or empty$"):
        messages_of({"prompt": value}, "here")
    with pytest.raises(DataError, match=r"^here: the field 'prompt' is missing or empty$"):
        messages_of({}, "here")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"content": "hello"},
        {"role": "human", "content": "hello"},
        {"role": ["user"], "content": "hello"},
        {"role": "user", "content": " "},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "user", "content": "half \udc80 of a pair"},
        "hello",
        None,
    ],
    ids=json.dumps,
)
def test_a_message_without_role_or_content(message: object) -> None:
    with pytest.raises(DataError, match=r"^here: every message needs a role \(system, user, assistant\) and content$"):
        messages_of({"messages": [message, USER]}, "here")


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_the_last_message_is_the_users(role: str) -> None:
    with pytest.raises(DataError, match=r"^here: the last message must be the user's$"):
        messages_of({"messages": [USER, {"role": role, "content": "hello"}]}, "here")


def test_the_last_message_may_be_an_answer() -> None:
    answer = {"role": "assistant", "content": "hello to you"}
    assert messages_of({"messages": [USER, answer]}, "here", answered=True) == [USER, answer]
    assert messages_of({"prompt": "hello"}, "here", answered=True) == [USER]
    with pytest.raises(DataError, match=r"^here: there is no message of the user's before the answer$"):
        messages_of({"messages": [answer]}, "here", answered=True)
    with pytest.raises(DataError, match=r"^here: the last message must be the user's or an answer$"):
        messages_of({"messages": [USER, {"role": "system", "content": "hello"}]}, "here", answered=True)
