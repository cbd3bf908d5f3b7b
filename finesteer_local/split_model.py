"""Models in several files, as llama.cpp splits them: `name-00001-of-00003.gguf` and so on (`llama_split_path`)."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def split_names(name: str) -> list[str]:
    """The names of all files of the model that the file `name` belongs to, in order; `name` alone if it is whole."""
    match = _NAME.fullmatch(name)
    if not match or not 0 < int(match[2]) <= int(match[3]):
        return [name]
    return [f"{match[1]}-{i:05d}-of-{match[3]}.gguf" for i in range(1, int(match[3]) + 1)]


def split_parts(path: Path) -> list[Path]:
    """As `split_names`, for a file of this machine."""
    return [path.with_name(name) for name in split_names(path.name)]


def is_later_part(name: str) -> bool:
    """Whether this is a part of a split model, and not its first: llama.cpp opens it by its first."""
    return PurePosixPath(name).name != split_names(PurePosixPath(name).name)[0]


def whole_name(name: str) -> str:
    """`name` without the number of its part."""
    match = _NAME.fullmatch(name)
    return f"{match[1]}.gguf" if match else name
