"""Quantisations: their names, and which of several suits this machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from finesteer_local.errors import ModelError
from finesteer_local.paths import size

T = TypeVar("T")

_NAME = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|BF16|F16|F32|FP16|MXFP4(?:_MOE)?|TQ\d_\d))"
    r"(?=$|[-.](?:\d{5}-of-\d{5})?)",
    re.IGNORECASE,
)
# Four bits first, as llama.cpp's own -hf has it: half the size and twice the speed of eight, at little loss. What is
# smaller is for machines that have no room for more, what is larger for repositories that have nothing else.
_ORDER = (
    *("Q4_K_M", "UD-Q4_K_XL", "Q4_K_XL", "Q4_K_L", "Q4_K_S", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4"),
    *("MXFP4_MOE", "Q5_K_M", "Q5_K_L", "UD-Q5_K_XL", "Q5_K_S", "Q5_K", "Q5_1", "Q5_0", "Q6_K", "Q6_K_L", "Q8_0"),
    *("Q3_K_L", "Q3_K_M", "UD-Q3_K_XL", "IQ3_M", "Q3_K_S", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K_L", "Q2_K", "IQ2_M"),
    *("BF16", "F16", "F32"),
)
_SMALL = 1 << 30  # bytes at eight bits: a model so small loses more by four, and gains nothing that one feels
_BESIDE = 1 << 30  # bytes for keys, values and working space


def quantisation_of(name: str) -> str:
    """`Q4_K_M`, as a file's name says it; empty where it does not."""
    found = _NAME.findall(re.sub(r"\.gguf$", "", name, flags=re.IGNORECASE))
    return found[-1].upper().replace("FP16", "F16") if found else ""


def pick(name: str, choices: Sequence[tuple[str, int, T]], note: Callable[[str], None] | None) -> T:
    """The one of several quantisations of one model (quantisation, bytes, anything) that suits this machine.

    Raises:
        ModelError: none fits into the memory.
    """
    memory = available_memory()
    fitting = [choice for choice in choices if choice[1] + _BESIDE <= memory]
    if not fitting:
        least = min(choices, key=lambda choice: choice[1])
        raise ModelError(
            f"no quantisation of {name} fits into {size(memory)} of free memory: the smallest, "
            f"{least[0] or 'its only file'}, has {size(least[1])}; choose a smaller model, or name the file to try it"
        )
    best = min(fitting, key=_rank)
    if note and len(choices) > 1:
        first = min(choices, key=_rank)
        why = f"it fits into {size(memory)} of free memory"
        if _rank(best) > _rank(first):
            why = f"the best that fits into {size(memory)} of free memory; {first[0]} has {size(first[1])}"
        elif best[0] == "Q8_0":
            why = "a model so small loses more by fewer bits"
        elif any(other[1] > best[1] for other in choices):
            why += ", and more bits would mostly be slower"
        others = ", ".join(sorted({choice[0] or "unnamed" for choice in choices} - {best[0]}))
        note(f"{name}: {best[0] or 'unnamed'}, {size(best[1])}: {why}. There are also: {others}")
    return best[2]


def _rank(choice: tuple[str, int, T]) -> tuple[int, int]:
    """The lower the better; of what is not in the order the larger first."""
    if choice[0] == "Q8_0" and choice[1] <= _SMALL:
        return -1, 0
    return (_ORDER.index(choice[0]) if choice[0] in _ORDER else len(_ORDER), -choice[1])


def available_memory() -> int:
    """Bytes that a model may take now without anything being swapped, within a container's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text("ascii").strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text("ascii").strip()
        return min(free, max(int(limit) - int(used), 0)) if limit.isdigit() else free
    except (OSError, ValueError):
        return free
