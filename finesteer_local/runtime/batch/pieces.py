"""Where the reading of a prompt is cut into micro-batches.

llama.cpp rounds a token's hidden state by the shape of the micro-batch that reads it. So the cuts depend on the
request alone, never on what runs beside it, and a cached beginning of a prompt is used only where its own cuts were
the same: then it holds bit for bit what reading it again would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIN_SHARED = 8  # tokens; a shorter common beginning is not worth a micro-batch of its own


@dataclass(frozen=True)
class Sizes:
    """Lengths in tokens."""

    chunk: int = 64
    """A long prompt is read in pieces of this length; others wait for no more than one."""
    whole: int = 256
    """A last user turn up to this length is read in one piece, so that it is decided and steered in one pass."""
    between: int = 64
    """About so much of prompts is read between two tokens of the answers. It changes no cut, only who waits."""


def cuts(n_prompt: int, turn: int, *, sizes: Sizes, shares: bool) -> list[int]:
    """Ends of the pieces in which a prompt is read, ascending; the last is `n_prompt`.

    Args:
        turn: the first token of the last user message; what comes before it is the part that requests share.
        shares: whether to cut there. A request that may steer its whole prompt gains nothing from a shared beginning.
    """
    found, begin = [], 0
    if shares and turn >= MIN_SHARED:
        found += [*range(sizes.chunk, turn, sizes.chunk), turn]
        begin = turn
    if n_prompt - begin > sizes.whole:
        found += range(begin + sizes.chunk, n_prompt, sizes.chunk)
    return _without_single_tokens([*found, n_prompt])


def cuts_from(start: int, n_prompt: int, *, sizes: Sizes) -> list[int]:
    """Ends of the pieces in which a prompt's tokens from `start` on are read once more."""
    if n_prompt - start <= sizes.whole:
        return [n_prompt]
    return _without_single_tokens([*range(start + sizes.chunk, n_prompt, sizes.chunk), n_prompt])


def _without_single_tokens(ends: list[int]) -> list[int]:
    """Join every single token to the piece before: alone it would go through other kernels, which round otherwise."""
    kept: list[int] = []
    for end in ends:
        if kept and end - kept[-1] == 1:
            kept.pop()
        kept.append(end)
    return kept


def common_cut(cached: Sequence[int], clean: Sequence[int], prompt: Sequence[int], ends: Sequence[int]) -> int:
    """The furthest cut up to which `cached` tokens with the cuts `clean` serve `prompt`, which is cut at `ends`; or 0.

    At least one token of the prompt is left to read.
    """
    n_same = 0
    for a, b in zip(clean, ends[:-1], strict=False):
        if a != b or list(cached[n_same:a]) != list(prompt[n_same:a]):
            break
        n_same = a
    return n_same
