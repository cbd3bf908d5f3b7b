"""What users said about decisions: turns that should have been steered, or should not. Local files only.

One JSONL file in the data folder, a row a correction. It is read anew and written as a whole, under a lock: several
chats may be open.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finesteer_local import paths
from finesteer_local.errors import DataError, UnknownNameError
from finesteer_local.jsonl import Messages, is_text, messages_of, read_rows, rows_text

STEER, LEAVE = "steer", "leave"
SHOULD = (STEER, LEAVE)
"""What should have been done about a turn."""
_ID_DIGITS = 8
_WAIT = 10.0  # seconds for another process that writes


@dataclass(frozen=True)
class Correction:
    """One turn of which a profile decided wrongly.

    Attributes:
        profile: whose decision it was.
        fingerprint: of the model.
        messages: the conversation up to the user's last message, with the system prompt if it had one.
        should: one of `SHOULD`.
        score, threshold: of the decision, as the gate had them then.
        model_path: the model's file then, from which its states can be read.
        kept: when, seconds since 1970.
    """

    profile: str
    fingerprint: str
    messages: Messages
    should: str
    score: float = 0.0
    threshold: float = 0.0
    model_path: str = ""
    kept: float = 0.0

    @property
    def id(self) -> str:
        """By which it is named: the same turn of the same profile has the same."""
        text = json.dumps([self.profile, self.fingerprint, self.messages], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]

    @property
    def text(self) -> str:
        """The user's last message."""
        return self.messages[-1]["content"]


def file() -> Path:
    """Where they are kept."""
    return paths.data_dir() / "corrections.jsonl"


def kept(profile: str | None = None, fingerprint: str | None = None) -> list[Correction]:
    """The corrections, oldest first, of one profile and model or of all.

    Raises:
        DataError: the file is damaged; the message names the line.
    """
    if not file().exists():
        return []
    rows = [_correction(row, where) for where, row in read_rows(file())]
    return [
        each
        for each in rows
        if (profile is None or each.profile == profile) and (fingerprint is None or each.fingerprint == fingerprint)
    ]


def keep(correction: Correction) -> Correction:
    """Add a correction, in place of an earlier one of the same turn; returns it with its time.

    Raises:
        DataError: the file is damaged.
        StorageError: it cannot be written.
    """
    added = Correction(**{**asdict(correction), "kept": round(time.time(), 1)})
    with _locked():
        _write([*(each for each in kept() if each.id != added.id), added])
    return added


def delete(ids: Sequence[str]) -> list[Correction]:
    """Delete the corrections of these ids, or of ids that begin so; returns what was deleted.

    Raises:
        UnknownNameError: an id is of none, or of several; nothing was deleted.
        DataError: the file is damaged.
        StorageError: it cannot be written.
    """
    with _locked():
        known = kept()
        gone = []
        for id in ids:
            named = [each for each in known if id and each.id.startswith(id.lower())]
            if len(named) != 1:
                found = "several" if named else "no"
                raise UnknownNameError(
                    f"there {'are' if named else 'is'} {found} correction{'s' * bool(named)} {id!r}; "
                    "`finesteer-local profiles corrections` lists them"
                )
            gone += named
        removed = {each.id for each in gone}
        _write([each for each in known if each.id not in removed])
    return [each for each in known if each.id in removed]


def delete_all() -> int:
    """Delete all of them; returns how many there were.

    Raises:
        StorageError: the file cannot be written.
    """
    with _locked():
        n = len(kept())
        _write([])
    return n


def _correction(row: dict[str, Any], where: str) -> Correction:
    texts = [row.get(name) for name in ("profile", "fingerprint", "should")]
    numbers = [row.get(name, 0.0) for name in ("score", "threshold", "kept")]
    if not all(map(is_text, texts)) or texts[2] not in SHOULD:
        raise DataError(f"{where}: no correction; delete the line")
    if not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        raise DataError(f"{where}: a number of the correction is none; delete the line")
    profile, fingerprint, should = map(str, texts)
    score, threshold, then = map(float, numbers)
    model_path = str(row.get("model_path") or "")
    return Correction(profile, fingerprint, messages_of(row, where), should, score, threshold, model_path, then)


def _write(corrections: Sequence[Correction]) -> None:
    with paths.atomic_write(file()) as temporary:
        temporary.write_text(rows_text(map(asdict, corrections)), encoding="utf-8", newline="\n")


@contextmanager
def _locked() -> Iterator[None]:
    from filelock import FileLock, Timeout  # slow to import, and needed only here

    paths.ensure_dir(file().parent)
    lock = FileLock(str(file()) + ".lock", timeout=_WAIT)
    try:
        lock.acquire()
    except Timeout as error:
        raise DataError(f"another program has been writing {file()} for {_WAIT:g} s; try again") from error
    except (NotImplementedError, OSError):  # this file system cannot lock, or nothing may be written here
        yield
        return
    try:
        yield
    finally:
        lock.release()
