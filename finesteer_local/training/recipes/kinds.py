"""A recipe's kinds of request: the published ones, and which of its rows' own kinds belong to each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finesteer_local.errors import DataError
from finesteer_local.jsonl import is_text, read_rows
from finesteer_local.profile_checks import KIND
from finesteer_local.steering import ACTIONS, STEER, Kind
from finesteer_local.training.data import KindOf

FIELDS = ("name", "of", "about", "action", "expert", "alone", "words", "mlcommons", "openai")


def read_kinds(path: Path) -> list[KindOf]:
    """The kinds of a JSONL file, a row each.

    A row has a `name`, the kinds `of` the recipe's rows that belong to it, and may have what it is `about`, the
    `action` that is taken where nobody says otherwise, the `expert` that answers its
    requests, the probability from which it is taken `alone`, though the gate
    stays shut, the `words` that refuse it at once, and its `mlcommons` and
    `openai` categories. A row's kind may belong to several.

    Raises:
        DataError: a field is missing, unknown or of the wrong type, or a name stands twice; the message names the line.
    """
    found: list[KindOf] = []
    for where, row in read_rows(path):
        kind = _kind(row, where)
        if any(kind.kind.name == other.kind.name for other in found):
            raise DataError(f"{where}: the name {kind.kind.name!r} stands twice")
        found.append(kind)
    if not found:
        raise DataError(f"{path} holds no rows")
    return found


def _kind(row: dict[str, Any], where: str) -> KindOf:
    if unknown := set(row) - set(FIELDS):
        raise DataError(f"{where}: unknown field {min(unknown)!r}; known: {', '.join(FIELDS)}")
    if not is_text(row.get("name")) or not KIND.fullmatch(row["name"]):
        raise DataError(f"{where}: the field 'name' must be lower-case letters, digits and _")
    for field in ("about", "expert"):
        if field in row and not is_text(row[field]):
            raise DataError(f"{where}: the field {field!r} is empty or not text")
    if row.get("action", STEER) not in ACTIONS:
        raise DataError(f"{where}: the field 'action' must be one of {', '.join(ACTIONS)}")
    alone = row.get("alone", 0.0)
    if isinstance(alone, bool) or not isinstance(alone, int | float) or not 0 <= alone <= 1:
        raise DataError(f"{where}: the field 'alone' must be a probability")
    for field in ("of", "words", "mlcommons", "openai"):
        value = row.get(field, [] if field != "of" else None)
        if not isinstance(value, list) or not all(map(is_text, value)) or (field in row and not value):
            raise DataError(f"{where}: the field {field!r} must be a list of texts")
    more: dict[str, Any] = {field: row[field] for field in ("about", "action", "expert") if field in row}
    more |= {field: tuple(row[field]) for field in ("words", "mlcommons", "openai") if field in row}
    return KindOf(Kind(row["name"], **more, alone=float(alone)), tuple(row["of"]))
