"""Which indexes are asked: those of `FINESTEER_INDEX`, then those that the user has added; no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finesteer_local.errors import DownloadError, UnknownNameError
from finesteer_local.paths import atomic_write, data_dir
from finesteer_local.profile_index.entries import Entry, index_file, is_address, is_key, read_index

VARIABLE = "FINESTEER_INDEX"


@dataclass(frozen=True)
class Index:
    """An index that the user has named. `key` is the public key that its profiles must be signed with, if any."""

    place: str
    key: str = ""
    by_variable: bool = False


def named_indexes() -> list[Index]:
    """The indexes to ask, in their order."""
    found: dict[str, Index] = {}
    for text in os.environ.get(VARIABLE, "").split(","):
        if text.strip():
            index = _parse(text.strip(), by_variable=True)
            found.setdefault(index.place, index)
    state = _state()
    for place in state["indexes"]:
        found.setdefault(place, Index(place))
    keys = state["keys"]
    return [
        each if each.key else Index(each.place, keys.get(each.place, ""), each.by_variable) for each in found.values()
    ]


def add_index(text: str) -> tuple[Index, int]:
    """Ask an index once, and from now on; return it and how many profiles it has.

    Args:
        text: an https address or a folder, with `#KEY` at the end where the user knows its public key.

    Raises:
        DownloadError: it cannot be read, or names another key.
        UnknownNameError: it is no place of an index.
        StorageError: the choice cannot be kept.
    """
    index = _parse(text)
    entries = _read(index)
    state = _state()
    if index.place not in state["indexes"]:
        state["indexes"].append(index.place)
        _keep(state)
    return index, len(entries)


def remove_index(text: str) -> str:
    """Ask an index no longer, and forget its key; return its place.

    Raises:
        UnknownNameError: it was not added.
    """
    place, state = _parse(text).place, _state()
    if place not in state["indexes"] and place not in state["keys"]:
        known = ", ".join(state["indexes"]) or "none"
        raise UnknownNameError(f"no index {text!r} was added; there are: {known}")
    state["indexes"] = [each for each in state["indexes"] if each != place]
    state["keys"].pop(place, None)
    _keep(state)
    return place


def search(
    name: str = "",
    fingerprint: str = "",
    *,
    only: str = "",
    on_failure: Callable[[str], None] | None = None,
) -> list[Entry]:
    """The profiles of the indexes, in the order of these: of one name, for one model, or all.

    Args:
        only: ask this index alone, whether it was named before or not.
        on_failure: called with what is wrong with an index that cannot be used; without it that is an error.

    Raises:
        UnknownNameError: no index is named.
        DownloadError: an index cannot be read.
    """
    indexes = [_parse(only)] if only else named_indexes()
    if not indexes:
        raise UnknownNameError(
            "no index of profiles is named; name one with --index, or add one: finesteer-local profiles index add URL"
        )
    found = []
    for index in indexes:
        try:
            entries = _read(index)
        except DownloadError as error:
            if on_failure is None:
                raise
            on_failure(str(error))
            continue
        found += [
            entry
            for entry in entries
            if (not name or entry.name == name) and (not fingerprint or entry.fingerprint == fingerprint)
        ]
    return found


def _parse(text: str, by_variable: bool = False) -> Index:
    place, _, key = text.partition("#")
    if key and not is_key(key):
        raise UnknownNameError(f"{text!r} ends in no public key of minisign's (RW...)")
    if not place or (is_address(place) and not place.startswith(("https://", "http://"))):
        raise UnknownNameError(f"{text!r} is no place of an index; give an https address or a folder")
    if not is_address(place):
        place = str(Path(place).expanduser().absolute())
    return Index(place.rstrip("/"), key, by_variable)


def _read(index: Index) -> list[Entry]:
    """Its entries, with the key that they must be signed with: the user's, the one known before, or the index's own.

    A key that was seen once is kept: whoever takes an index over cannot put his own in its place.
    """
    entries, key = read_index(index.place)
    state = _state()
    wanted = index.key or state["keys"].get(index.place, "")
    if wanted and key != wanted:
        raise DownloadError(
            f"the index {index_file(index.place)} has another key than before ({key or 'none'}); if its publisher "
            f"confirms that, forget the old one with: finesteer-local profiles index rm {index.place}"
        )
    if key and state["keys"].get(index.place) != key:
        state["keys"][index.place] = key
        _keep(state)
    return entries


def _file() -> Path:
    return data_dir() / "indexes.json"


def _state() -> dict[str, Any]:
    state: dict[str, Any] = {"indexes": [], "keys": {}}
    with suppress(OSError, ValueError, RecursionError):
        read = json.loads(_file().read_text("utf-8"))
        state["indexes"] = [str(each) for each in read["indexes"]]
        state["keys"] = {str(place): str(key) for place, key in read["keys"].items()}
    return state


def _keep(state: dict[str, Any]) -> None:
    with atomic_write(_file()) as temporary:
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
