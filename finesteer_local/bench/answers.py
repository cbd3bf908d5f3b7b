"""One request at a time: decode, and time to the first token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from finesteer_local.bench.profiles import closed, opened, several
from finesteer_local.bench.series import Series, Way, alternate, rounds_of
from finesteer_local.profile import Profile
from finesteer_local.runtime import SteeredLlama
from finesteer_local.runtime.timing import (
    controlled,
    decoded,
    first_seconds,
    generated,
    some_vector,
    token_seconds,
)

if TYPE_CHECKING:
    from llama_cpp import Llama

TEXT = "Write a long and detailed essay about the history of the bicycle. "
SHORT = 32  # tokens of the prompt before a measured answer
NATIVE = "llama-cpp-python"
BARE = "llama_decode alone"
VECTOR = "control vector"
HERE = "this machine alone"  # with --rpc
CLOSED, OPEN, TWO = "gate closed", "gate open", "two profiles"

Start = Callable[[Sequence[int]], Iterator[int]]
"""Starts an answer to a prompt; its first step reads the prompt."""


def prompt_tokens(llama: Llama, n: int) -> list[int]:
    """`n` tokens of plain text."""
    found = llama.tokenize(TEXT.encode())
    return (llama.tokenize((TEXT * (2 + 2 * n // max(len(found) - 1, 1))).encode()))[:n]


def native(llama: Llama) -> Start:
    """llama-cpp-python as it is."""
    return lambda prompt: generated(llama, prompt)


def ways(plain: Llama, steered: SteeredLlama, profiles: Sequence[Profile]) -> dict[str, Start]:
    """The other ways to answer one request; `plain` is not the model that `native` runs in."""
    vector = some_vector(plain)

    def under_vector(prompt: Sequence[int]) -> Iterator[int]:
        with controlled(plain, vector):
            yield from generated(plain, prompt)

    two = [opened(p) for p in profiles[:2]] if len(profiles) > 1 else several(list(profiles), 2)
    return {
        BARE: lambda prompt: decoded(plain, prompt),
        VECTOR: under_vector,
        CLOSED: under_profiles(steered, [closed(profiles[0])]),
        OPEN: under_profiles(steered, [opened(profiles[0])]),
        TWO: under_profiles(steered, two),
    }


def numbers_of_profiles(steered: SteeredLlama, profiles: Sequence[Profile], counts: Sequence[int]) -> dict[str, Start]:
    """Ours with so many open profiles."""
    return {f"{n} open": under_profiles(steered, several(list(profiles), n)) for n in counts}


def under_profiles(llama: SteeredLlama, profiles: Sequence[Profile]) -> Start:
    """Ours."""

    def start(prompt: Sequence[int]) -> Iterator[int]:
        if llama.profiles != tuple(profiles):
            llama.set_profiles(profiles)
        yield from generated(llama, prompt)

    return start


def decode_series(
    series: Series,
    native: Start,
    ways: Mapping[str, Start],
    prompt: Sequence[int],
    n_answer: int,
    rounds: int,
    advance: Callable[[], None],
) -> None:
    """Tokens a second after the first. Each way's answer grows by turns with a native one, token by token."""
    for values in rounds_of(ways, rounds, lambda way: _pair(native, ways[way], prompt, n_answer), advance):
        beside = [speeds[0] for speeds in values.values()]
        series.add({NATIVE: sum(beside) / len(beside)})
        series.add({way: speeds[1] for way, speeds in values.items()}, {way: s[0] for way, s in values.items()})
    series.against(NATIVE)


def _pair(native: Start, way: Start, prompt: Sequence[int], n_answer: int) -> list[float]:
    _warm_up(native, prompt)
    _warm_up(way, prompt)
    streams = [native(prompt), way(prompt)]
    try:
        return [1 / seconds for seconds in token_seconds(streams, n_answer)]
    finally:
        _end(*streams)


def first_token_series(
    series: Series,
    native: Start,
    ways: Mapping[str, Start],
    prompt: Sequence[int],
    rounds: int,
    advance: Callable[[], None],
) -> None:
    """Milliseconds from the prompt to the first token."""
    first = {name: _first(start, prompt) for name, start in {NATIVE: native, **ways}.items()}
    alternate(series, first, rounds, advance, warm_up=len(prompt) <= 1024)
    series.against(NATIVE)


def _first(start: Start, prompt: Sequence[int]) -> Way:
    def way() -> float:
        _warm_up(start, prompt)
        stream = start(prompt)
        try:
            return 1000 * first_seconds(stream)
        finally:
            _end(stream)

    return way


def _warm_up(start: Start, prompt: Sequence[int]) -> None:
    """A short answer, so that no way pays for the one before."""
    stream = start(prompt[:8])
    next(stream)
    next(stream)
    _end(stream)


def _end(*streams: Iterator[int]) -> None:
    for stream in streams:
        if isinstance(stream, Generator):
            stream.close()  # gives a control vector back
