"""A model that another program keeps on this machine, and how a name that the user gave finds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from finesteer_local.errors import ModelError, UnknownNameError
from finesteer_local.sources.quantisation import pick, quantisation_of
from finesteer_local.split_model import is_later_part, split_parts, whole_name

Note = Callable[[str], None]
"""Called with one line about what was chosen, and why."""

# Files beside a model: llama.cpp leaves out the same (`gguf_filename_is_model` of common/download.cpp).
_BESIDE = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


@dataclass(frozen=True)
class FoundModel:
    """A model of another program's; nothing of it is copied.

    Attributes:
        name: what MODEL takes, with the program's prefix: `ollama:llama3.2:1b`.
        own_name: all of the name within its program: `owner/repo/file.gguf`.
        source: the program, as people call it.
        path: the file, or the first of several.
        size: of all its files, in bytes.
        quantisation: `Q4_K_M`, empty where neither a name nor the program says it.
        problem: why it cannot be opened, and what to do; empty where nothing is known against it.
    """

    name: str
    own_name: str
    source: str
    path: Path
    size: int
    quantisation: str = ""
    problem: str = ""


def is_model_name(name: str) -> bool:
    """Whether a file of this name is a model's, or the first of a model's files."""
    base = PurePosixPath(name).name.lower()
    beside = any(word in base for word in _BESIDE) or base.startswith("incomplete-")
    return base.endswith(".gguf") and not beside and not is_later_part(base)


def gguf_files(folder: Path, depth: int) -> Iterator[Path]:
    """The model files below `folder`, at most `depth` folders down, by name; links are followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return  # not there, or not ours to read
    for entry in entries:
        if is_model_name(entry.name) and os.path.lexists(entry.path) and not os.path.isdir(entry.path):
            yield Path(entry.path)
        elif depth > 0 and not entry.name.startswith(".") and os.path.isdir(entry.path):
            yield from gguf_files(Path(entry.path), depth - 1)


def from_file(prefix: str, source: str, name: str, path: Path, again: str) -> FoundModel:
    """The model in the file at `path`.

    Args:
        name: within its program.
        again: what to do where a part of it is missing.
    """
    size, problem = 0, ""
    for part in split_parts(path):
        try:
            size += part.stat().st_size
        except OSError:
            problem = problem or f"{part.name} is missing in {part.parent}; {again}"
    return FoundModel(f"{prefix}:{name}", name, source, path, size, quantisation_of(path.name), problem)


def with_short_names(prefix: str, models: Iterable[FoundModel]) -> Iterator[FoundModel]:
    """The models, each called `prefix:folder:QUANTISATION` where that names it and no other."""
    models = list(models)
    short = [(os.path.dirname(model.own_name), model.quantisation) for model in models]
    for model, (folder, quantisation) in zip(models, short, strict=True):
        if folder and quantisation and short.count((folder, quantisation)) == 1:
            model = replace(model, name=f"{prefix}:{folder}:{quantisation}")
        yield model


def choose(prefix: str, given: str, models: Sequence[FoundModel], places: Iterable[Path], note: Note | None) -> Path:
    """The file of the model that `given` names: all of its name, its folder's, or its file's, in any case.

    `:Q4_K_M` (or `@q4_k_m`) at the end chooses among several quantisations of one model; without it the one that suits
    this machine is taken.

    Raises:
        UnknownNameError: none, or several models have this name.
        ModelError: the model cannot be opened; or none of its quantisations fits into this machine's memory.
    """
    exact = [model for model in models if model.own_name == given]
    wanted, quantisation = _split_quantisation(given)
    named = exact or [model for model in models if wanted in _names(model)]
    if quantisation and not exact:
        chosen = [model for model in named if model.quantisation.lower() == quantisation]
        if named and not chosen:
            have = ", ".join(sorted({model.quantisation or "unknown" for model in named}))
            raise UnknownNameError(f"{prefix}:{given} is not here; there are: {have}")
        named = chosen
    if not named:
        near = [model.name for model in models if wanted and wanted in model.own_name.lower()]
        hint = f"did you mean {' or '.join(near[:3])}?" if near else "`finesteer-local models` lists what is here"
        where = ", ".join(map(str, places)) or "no folder of it"
        raise UnknownNameError(f"no model {prefix}:{given} ({where}); {hint}")
    if len({os.path.dirname(model.own_name) for model in named}) > 1:
        several = ", ".join(model.name for model in named[:4])
        raise UnknownNameError(f"{prefix}:{given} may be any of {several}; give one of these")
    if len(named) > 1:
        return pick(f"{prefix}:{given}", [(m.quantisation, m.size, m) for m in named], note).path
    if named[0].problem:
        raise ModelError(f"cannot open {named[0].name}: {named[0].problem}")
    return named[0].path


def _split_quantisation(given: str) -> tuple[str, str]:
    for mark in (":", "@"):
        head, found, tail = given.rpartition(mark)
        if found and quantisation_of(f"x-{tail}.gguf"):
            return _plain(head), tail.lower()
    return _plain(given), ""


def _names(model: FoundModel) -> set[str]:
    """All that a user may call it."""
    path = PurePosixPath(whole_name(model.own_name))
    names = {_plain(str(path)), _plain(path.name)}
    if path.parent != PurePosixPath("."):
        names |= {_plain(str(path.parent)), _plain(path.parent.name)}
    return names


def _plain(name: str) -> str:
    """A name in small letters, without what repositories and files of this kind end in."""
    return name.lower().removesuffix(".gguf").removesuffix("-gguf")
