"""What a model file says of itself in its first kilobytes: enough for a list, without reading gigabytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finesteer_local.errors import ModelError
from finesteer_local.gguf_file import DamagedGGUF, Header, read_keys
from finesteer_local.model_file import check_writes_text

# As tests/architectures.py found (docs/models.md); when a model is opened, the tap itself tells.
_NOT_STEERED = {
    "plamo2": "llama.cpp shows no layer outputs",
    "gemma3n": "llama.cpp shows four rows a token",
}
# These say what they are only in their tensors, which come after the vocabulary.
_NO_TEXT = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "neo-bert", "modern-bert", "t5", "t5encoder")


@dataclass(frozen=True)
class Facts:
    """What a file holds.

    Attributes:
        quantisation: empty where it stands behind the vocabulary.
        problem: why it is no model that writes text; empty where it is one.
        unsteerable: why it writes text but cannot be steered; empty where nothing is known against it.
    """

    architecture: str = ""
    n_embd: int = 0
    n_layer: int = 0
    quantisation: str = ""
    problem: str = ""
    unsteerable: str = ""


def read_facts(path: Path) -> Facts:
    """Read them; whatever is wrong with the file is their `problem`."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return Facts(problem="not a GGUF file")
        header = read_keys(path)
    except DamagedGGUF as error:
        return Facts(problem=error.problem)
    except OSError as error:
        return Facts(problem=(error.strerror or str(error)).lower())
    values = header.values
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        return Facts(problem="it holds no model")
    problem = ""
    try:
        check_writes_text(path, header)
        if architecture in _NO_TEXT:
            problem = "it does not write text"
    except ModelError as error:
        problem = str(error).removeprefix(f"{path} ").partition(";")[0].replace("holds", "it is", 1)
        problem = problem.removeprefix("is ").partition(" (arch")[0].partition(", which")[0]

    def number(key: str) -> int:
        found: Any = values.get(f"{architecture}.{key}", 0)
        return found if isinstance(found, int) else 0

    return Facts(
        architecture,
        number("embedding_length"),
        number("block_count"),
        _quantisation(header),
        problem,
        _NOT_STEERED.get(architecture, ""),
    )


def _quantisation(header: Header) -> str:
    """By `general.file_type`, else by the type that most of the weights have, where the tensors were read."""
    from gguf import LlamaFileType

    try:
        return LlamaFileType(header.values["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        sizes: Counter[str] = Counter()
        for tensor in header.tensors.values():
            sizes[tensor.kind.name] += tensor.n_bytes
        return sizes.most_common(1)[0][0] if sizes else ""
