"""GPT4All's models: files in its model folder; those under way begin with `incomplete-`.

The folder is `modelPath` of its settings (Qt's, on Linux `~/.config/nomic.ai/GPT4All.ini`), else the platform's folder
for local data (gpt4all-chat/src/mysettings.cpp). The Python package has one of its own, `~/.cache/gpt4all`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from finesteer_local.sources.found import FoundModel, Note, choose, from_file, gguf_files

PREFIX, TITLE = "gpt4all", "GPT4All"


def folders() -> list[Path]:
    """Where its models are."""
    home = Path.home()
    if sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    found = [data / "nomic.ai" / "GPT4All", home / ".cache" / "gpt4all"]
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "nomic.ai" / "GPT4All.ini"
    try:
        if match := re.search(r'^modelPath="?(.+?)"?\s*$', settings.read_text("utf-8"), re.MULTILINE):
            found.insert(0, Path(match[1]))
    except (OSError, UnicodeDecodeError):
        pass
    return list(dict.fromkeys(found))


def models() -> Iterator[FoundModel]:
    """The whole model files there."""
    seen = set()
    for folder in folders():
        for path in gguf_files(folder, depth=0):
            if path.name not in seen:
                seen.add(path.name)
                yield from_file(PREFIX, TITLE, path.name, path, "fetch the model again in GPT4All")


def resolve(given: str, note: Note | None) -> Path:
    """The file of the model that is called `given`; raises as `found.choose` does."""
    return choose(PREFIX, given, list(models()), folders(), note)
