"""One request at a time: decode, and time to the first token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from finesteer_local.bench.profiles import closed, opened, several
from finesteer_local.bench.series import Series, Way, alternate
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.timing import Timing, bare, controlled, some_vector, through_generate

if TYPE_CHECKING:
    from llama_cpp import Llama

TEXT = "Write a long and detailed essay about the history of the bicycle. "
SHORT = 32  # tokens of the prompt before a measured answer
NATIVE = "llama-cpp-python"
BARE = "llama_decode alone"
VECTOR = "control vector"
CLOSED, OPEN, TWO = "gate closed", "gate open", "two profiles"

Measure = Callable[[Sequence[int], int], Timing]
"""Reads a prompt, decodes some tokens after the first."""


def prompt_tokens(llama: Llama, n: int) -> list[int]:
    """`n` tokens of plain text."""
    found = llama.tokenize(TEXT.encode())
    return (llama.tokenize((TEXT * (2 + 2 * n // max(len(found) - 1, 1))).encode()))[:n]


def ways(plain: Llama, steered: SteeredLlama, profiles: Sequence[Profile]) -> dict[str, Measure]:
    """All ways to answer one request. Each is warmed up before it is timed, so that no way pays for the one before."""
    vector = some_vector(plain)

    def under_vector(prompt: Sequence[int], n_answer: int) -> Timing:
        with controlled(plain, vector):
            return _warm(through_generate, plain, prompt, n_answer)

    two = list(profiles)[:2] if len(profiles) > 1 else None
    return {
        NATIVE: lambda prompt, n: _warm(through_generate, plain, prompt, n),
        BARE: lambda prompt, n: _warm(bare, plain, prompt, n),
        VECTOR: under_vector,
        CLOSED: _steered(steered, [closed(profiles[0])]),
        OPEN: _steered(steered, [opened(profiles[0])]),
        TWO: _steered(steered, [opened(p) for p in two] if two else several(list(profiles), 2)),
    }


def numbers_of_profiles(
    plain: Llama, steered: SteeredLlama, profiles: Sequence[Profile], counts: Sequence[int]
) -> dict[str, Measure]:
    """Native, and ours with so many open profiles."""
    return {
        NATIVE: lambda prompt, n: _warm(through_generate, plain, prompt, n),
        **{f"{n} open": _steered(steered, several(list(profiles), n)) for n in counts},
    }


def decode_series(
    series: Series,
    measures: Mapping[str, Measure],
    prompt: Sequence[int],
    n_answer: int,
    rounds: int,
    advance: Callable[[], None],
) -> None:
    """Tokens a second after the first."""
    alternate(series, {n: _speed(m, prompt, n_answer) for n, m in measures.items()}, rounds, advance)
    series.against(NATIVE)


def first_token_series(
    series: Series, measures: Mapping[str, Measure], prompt: Sequence[int], rounds: int, advance: Callable[[], None]
) -> None:
    """Milliseconds from the prompt to the first token."""
    first = {name: _first(measure, prompt) for name, measure in measures.items()}
    alternate(series, first, rounds, advance, warm_up=len(prompt) <= 1024)
    series.against(NATIVE)


def _speed(measure: Measure, prompt: Sequence[int], n_answer: int) -> Way:
    return lambda: 1 / measure(prompt, n_answer).each


def _first(measure: Measure, prompt: Sequence[int]) -> Way:
    return lambda: 1000 * measure(prompt, 0).first


def _steered(llama: SteeredLlama, profiles: Sequence[Profile]) -> Measure:
    def measure(prompt: Sequence[int], n_answer: int) -> Timing:
        if llama.profiles != tuple(profiles):
            llama.set_profiles(profiles)
        return _warm(through_generate, llama, prompt, n_answer)

    return measure


def _warm(
    way: Callable[[Llama, Sequence[int], int], Timing], llama: Llama, prompt: Sequence[int], n_answer: int
) -> Timing:
    way(llama, prompt[:8], 1)
    return way(llama, prompt, n_answer)
