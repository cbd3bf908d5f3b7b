"""Where results go: JSON for programs, and files that are there whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from finesteer_local.paths import atomic_write


def echo_json(value: Any) -> None:
    """Print one JSON value."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def json_line(value: Any) -> str:
    """One row of a JSONL file."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        StorageError: it cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def opened(output: Path | None) -> Iterator[IO[str]]:
    """stdout where there is no path or it is `-`; otherwise the file, which has its name when all is written."""
    if output is None or str(output) == "-":
        yield sys.stdout
        return
    with atomic_write(output) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
