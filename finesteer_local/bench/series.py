"""One thing measured in several ways, in turns: nothing that slows the machine for a while hits one way alone."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

Way = Callable[[], float]
"""Does it once and returns the value in the series' unit."""


class Ratio(NamedTuple):
    """How two ways compare: the median over the rounds of `way / to` within a round, and its quartiles."""

    label: str
    way: str
    to: str
    value: float
    low: float
    high: float


@dataclass
class Series:
    """All ways of one thing.

    Attributes:
        part: what it belongs to: `decode`, `ttft`, `harvest`, ...
        name: what was done, for people.
        unit: of the values.
        x: prompt tokens, requests or profiles, where series of one part differ by a number.
        samples: way -> one value a round; the same round at the same place in every list.
        beside: way -> what `reference` gave in the same round while that way was measured, where it did.
        reference: the way with which all others are compared; "" for none.
        pairs: (label, way, reference) of further ratios.
    """

    part: str
    name: str
    unit: str
    x: int | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    beside: dict[str, list[float]] = field(default_factory=dict)
    reference: str = ""
    pairs: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def n_rounds(self) -> int:
        return len(next(iter(self.samples.values()), []))

    def add(self, values: Mapping[str, float], beside: Mapping[str, float] | None = None) -> None:
        """Add a round's values; `beside` holds what the reference gave while a way was measured."""
        for way, value in values.items():
            self.samples.setdefault(way, []).append(value)
        for way, value in (beside or {}).items():
            self.beside.setdefault(way, []).append(value)

    def median(self, way: str) -> float:
        return statistics.median(self.samples[way])

    def spread(self, way: str) -> tuple[float, float]:
        """The quartiles."""
        return _quartiles(self.samples[way])

    def ratio(self, label: str, way: str, to: str) -> Ratio:
        """Compare two ways; where the reference was measured beside the way itself, with that."""
        reference = self.beside.get(way, []) if to == self.reference else []
        ratios = [a / b for a, b in zip(self.samples[way], reference or self.samples[to], strict=True)]
        return Ratio(label, way, to, statistics.median(ratios), *_quartiles(ratios))

    @property
    def ratios(self) -> list[Ratio]:
        if not self.n_rounds:
            return []
        to = self.reference
        ways = [way for way in self.samples if to and way != to]
        return [*(self.ratio(f"{way} / {to}", way, to) for way in ways), *(self.ratio(*each) for each in self.pairs)]

    def against(self, reference: str) -> None:
        """Compare all other ways with `reference`."""
        self.reference = reference

    def to_json(self) -> dict[str, Any]:
        """Everything, with what follows from the samples."""
        measured = [way for way in self.samples if self.n_rounds]
        return {
            "part": self.part,
            "name": self.name,
            "unit": self.unit,
            "x": self.x,
            "rounds": self.n_rounds,
            "samples": self.samples,
            "median": {way: self.median(way) for way in measured},
            "quartiles": {way: self.spread(way) for way in measured},
            "beside": self.beside,
            "reference": self.reference,
            "pairs": self.pairs,
            "ratios": [ratio._asdict() for ratio in self.ratios],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Series:
        """The inverse of `to_json`."""
        pairs = [(str(label), str(way), str(to)) for label, way, to in data["pairs"]]
        head = (data["part"], data["name"], data["unit"], data["x"])
        return cls(*head, dict(data["samples"]), dict(data["beside"]), data["reference"], pairs)


T = TypeVar("T")


def rounds_of(
    ways: Iterable[str], rounds: int, do: Callable[[str], T], advance: Callable[[], None], *, warm_up: bool = True
) -> Iterator[dict[str, T]]:
    """Do every way once a round, each round in a new order; yields whole rounds, without the one that warms up."""
    names, order = list(ways), random.Random(rounds)
    for i in range(-1 if warm_up else 0, rounds):
        values = {}
        for name in order.sample(names, len(names)):
            values[name] = do(name)
            advance()
        if i >= 0:
            yield {name: values[name] for name in names}


def alternate(
    series: Series, ways: Mapping[str, Way], rounds: int, advance: Callable[[], None], *, warm_up: bool = True
) -> None:
    """Fill `series` with rounds of all ways. A round that is interrupted counts for nothing."""
    for values in rounds_of(ways, rounds, lambda name: ways[name](), advance, warm_up=warm_up):
        series.add(values)


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
