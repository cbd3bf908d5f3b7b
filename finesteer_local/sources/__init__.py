"""Models where they are: on the Hugging Face hub, and in the folders of other programs. One module a source.

A name with a source's prefix (`ollama:llama3.2`) is resolved by that source; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from finesteer_local.sources import gpt4all, hub, jan, llama_cpp, lmstudio, ollama
from finesteer_local.sources.found import FoundModel, Note
from finesteer_local.sources.quantisation import quantisation_of

__all__ = ["FORMS", "FoundModel", "Note", "found_models", "prefix_of", "quantisation_of", "resolve", "similar"]

_SOURCES = {source.PREFIX: source for source in (hub, ollama, lmstudio, llama_cpp, jan, gpt4all)}
FORMS = "hf:owner/repo, " + ", ".join(f"{prefix}:NAME" for prefix in _SOURCES if prefix != hub.PREFIX)


def prefix_of(given: str) -> str:
    """The source that `given` names, empty where it names none."""
    prefix = given.partition(":")[0]
    return prefix if ":" in given and prefix in _SOURCES else ""


def resolve(
    given: str,
    on_progress: Callable[[int, int], None] | None = None,
    note: Note | None = None,
    fresh: bool = False,
) -> Path:
    """The file of a model with a source's prefix, fetched where that source is the hub and the cache lacks it.

    Args:
        note: told which of several quantisations was chosen, and why.
        fresh: ask the hub even where the cache has it.

    Raises:
        UnknownNameError: the source has no such model.
        ModelError: it cannot be opened; the message says what to do.
        DownloadError, StorageError, MissingExtraError: see `hub.resolve`.
    """
    prefix = prefix_of(given)
    rest = given.removeprefix(f"{prefix}:")
    if prefix == hub.PREFIX:
        return hub.resolve(rest, note, on_progress, fresh)
    found: Path = _SOURCES[prefix].resolve(rest, note)
    return found


def found_models() -> Iterator[FoundModel]:
    """All models that other programs keep on this machine, program by program."""
    for source in _SOURCES.values():
        yield from source.models()


def similar(given: str) -> list[str]:
    """The names of models of other programs that hold `given`: what somebody may have meant without a prefix."""
    wanted = given.lower()
    return [model.name for model in found_models() if len(wanted) > 2 and wanted in model.own_name.lower()]
