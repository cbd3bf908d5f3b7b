"""Jan's models: `<data>/llamacpp/models/<name>/model.yml`, whose `model_path` names the file.

The data folder is `JAN_DATA_FOLDER`, else what `Jan/settings.json` says, else `Jan/data` in the platform's folder for
data (src-tauri/src/core/app/commands.rs). A path in a `model.yml` goes from there; that of an imported model is whole.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from finesteer_local.sources.found import FoundModel, Note, choose, from_file
from finesteer_local.sources.quantisation import quantisation_of

PREFIX, TITLE = "jan", "Jan"
_MODEL_PATH = re.compile(r"""^model_path:\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^']|'')*)'|(\S.*?))\s*$""", re.MULTILINE)
_LARGEST = 1 << 20  # bytes of a model.yml


def folders() -> list[Path]:
    """Its data folders."""
    if given := os.environ.get("JAN_DATA_FOLDER"):
        return [Path(given)]
    home = Path.home()
    if sys.platform == "win32":
        bases = [Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming")]
    elif sys.platform == "darwin":
        bases = [home / "Library" / "Application Support"]
    else:  # before it followed XDG's data folder it was the one for settings
        bases = [
            Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share"),
            Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config"),
        ]
    found = []
    for base in bases:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found.append(Path(json.loads((base / "Jan" / "settings.json").read_text("utf-8"))["data_folder"]))
        found.append(base / "Jan" / "data")
    return list(dict.fromkeys(found))


def models() -> Iterator[FoundModel]:
    """All models that Jan has a `model.yml` of, by name."""
    seen = set()
    for data in folders():
        root = data / "llamacpp" / "models"
        try:
            described = sorted(root.rglob("model.yml"))
        except OSError:
            continue
        for file in described:
            name = file.parent.relative_to(root).as_posix()
            path = _model_path(file)
            if path and name not in seen:
                seen.add(name)
                yield _found(name, data / path)


def _found(name: str, path: Path) -> FoundModel:
    found = from_file(PREFIX, TITLE, name, path, "fetch or import the model again in Jan")
    return found if found.quantisation else replace(found, quantisation=quantisation_of(f"{name}.gguf"))


def _model_path(file: Path) -> str:
    """The one value that is needed of a flat YAML file: no parser for that."""
    try:
        with file.open(encoding="utf-8") as text:
            match = _MODEL_PATH.search(text.read(_LARGEST))
    except (OSError, UnicodeDecodeError):
        return ""
    if not match:
        return ""
    if match[1] is not None:
        return re.sub(r"\\(.)", r"\1", match[1])
    return match[2].replace("''", "'") if match[2] is not None else match[3]


def resolve(given: str, note: Note | None) -> Path:
    """The file of the model that Jan calls `given`; raises as `found.choose` does."""
    return choose(PREFIX, given, list(models()), folders(), note)
