"""LM Studio's models: `<models>/<publisher>/<model>/<file>.gguf` (lmstudio.ai/docs, "Import Models").

The folder that holds it is the one that `~/.lmstudio-home-pointer` names, else `~/.lmstudio`, of old
`~/.cache/lm-studio`; its `settings.json` may name another folder for the models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from finesteer_local.sources.found import FoundModel, Note, choose, from_file, gguf_files, with_short_names

PREFIX, TITLE = "lmstudio", "LM Studio"


def folders() -> list[Path]:
    """Where its models are."""
    home = Path.home()
    bases = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    with suppress(OSError, UnicodeDecodeError):
        if pointed := (home / ".lmstudio-home-pointer").read_text("utf-8").strip():
            bases.insert(0, Path(pointed))
    found = []
    for base in bases:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found.append(Path(json.loads((base / "settings.json").read_text("utf-8"))["downloadsFolder"]))
        found.append(base / "models")
    return list(dict.fromkeys(found))


def models() -> Iterator[FoundModel]:
    """All model files there; vision projectors beside them are left out."""
    found: dict[str, FoundModel] = {}
    for folder in folders():
        for path in gguf_files(folder, depth=2):
            name = path.relative_to(folder).as_posix()
            found.setdefault(name, from_file(PREFIX, TITLE, name, path, "fetch the model again in LM Studio"))
    return with_short_names(PREFIX, found.values())


def resolve(given: str, note: Note | None) -> Path:
    """The file of the model that LM Studio calls `given`; raises as `found.choose` does."""
    return choose(PREFIX, given, list(models()), folders(), note)
