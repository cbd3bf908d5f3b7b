"""JSONL files of prompts: one JSON object a line, bad ones named by their line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from finesteer_local.errors import DataError

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object stands ("FILE, line N", from 1) and the object; blank lines are skipped, `-` is stdin.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8 or no JSON object; the message names the line.
    """
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 text") from error
        except _NoNumberError as error:
            raise DataError(f"{where}: not JSON ({error})") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object")
        yield where, row


class _NoNumberError(ValueError):
    """Python's JSON has numbers that JSON does not have."""


def _no_number(name: str) -> float:
    raise _NoNumberError(f"{name} is no number there")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise _NoNumberError(f"{text[:40]} is too large")
    return value


def rows_text(rows: Iterable[dict[str, Any]]) -> str:
    """What `read_rows` reads: a line for every row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def is_text(value: Any) -> bool:
    """Whether `value` is text that is not empty and can be written as UTF-8 (JSON can escape half a surrogate pair)."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def messages_of(row: dict[str, Any], where: str, *, answered: bool = False) -> Messages:
    """Chat messages of a row with `messages`, or with `prompt`: text, or messages as preference data sets have them.

    Args:
        answered: the last message may be an assistant's, which answers the user's.

    Raises:
        DataError: there is no prompt, or a message lacks its role or content, or the last one is of the wrong role.
    """
    value = row.get("messages", row.get("prompt"))
    if is_text(value):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: the field 'prompt' is missing or empty")
    messages: Messages = []
    for message in value:
        content, role = (message.get("content"), message.get("role")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not is_text(content):
            raise DataError(f"{where}: every message needs a role ({', '.join(ROLES)}) and content")
        messages.append({"role": str(role), "content": str(content)})
    if answered and messages[-1]["role"] == "assistant":
        if not any(message["role"] == "user" for message in messages):
            raise DataError(f"{where}: there is no message of the user's before the answer")
    elif messages[-1]["role"] != "user":
        raise DataError(f"{where}: the last message must be the user's{' or an answer' if answered else ''}")
    return messages
