"""JSON that nobody vouches for: bounded in size, in nesting, and in what it can grow to in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .foreign import refuse

MAX_BYTES = 1 << 28
_MAX_CONTAINERS = 20_000
"""Lists and objects: an empty one takes two bytes in a file and sixty-four in memory."""
_MAX_TEXTS = 200_000


def parse_json(path: Path, data: bytes, what: str) -> Any:
    """The JSON value in `data`.

    Raises:
        ProfileError: it is not JSON, nested without end, or made to fill the memory.
    """
    if len(data) > MAX_BYTES:
        raise refuse(path, f"{what} is larger than {MAX_BYTES >> 20} MiB")
    if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS or data.count(b'"') > 2 * _MAX_TEXTS:
        raise refuse(path, f"{what} has more parts than any steering vector")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise refuse(path, f"{what} is not JSON") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
