"""One thing measured in several ways, in turns: nothing that slows the machine for a while hits one way alone."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
        compared: (label, way, reference) of the ratios.
    """

    part: str
    name: str
    unit: str
    x: int | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    compared: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def n_rounds(self) -> int:
        return len(next(iter(self.samples.values()), []))

    def median(self, way: str) -> float:
        return statistics.median(self.samples[way])

    def spread(self, way: str) -> tuple[float, float]:
        """The quartiles."""
        return _quartiles(self.samples[way])

    def ratio(self, label: str, way: str, to: str) -> Ratio:
        ratios = [a / b for a, b in zip(self.samples[way], self.samples[to], strict=True)]
        return Ratio(label, way, to, statistics.median(ratios), *_quartiles(ratios))

    @property
    def ratios(self) -> list[Ratio]:
        return [self.ratio(*each) for each in self.compared if self.n_rounds]

    def against(self, reference: str) -> None:
        """Compare all other ways with `reference`."""
        self.compared = [(f"{way} / {reference}", way, reference) for way in self.samples if way != reference]

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
            "compared": self.compared,
            "ratios": [ratio._asdict() for ratio in self.ratios],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Series:
        """The inverse of `to_json`."""
        compared = [(str(label), str(way), str(to)) for label, way, to in data["compared"]]
        return cls(data["part"], data["name"], data["unit"], data["x"], dict(data["samples"]), compared)


def alternate(
    series: Series, ways: Mapping[str, Way], rounds: int, advance: Callable[[], None], *, warm_up: bool = True
) -> None:
    """Do every way once a round, each round in a new order. A round that is interrupted counts for nothing."""
    for name in ways:
        series.samples.setdefault(name, [])
    order = random.Random(rounds)
    for i in range(-1 if warm_up else 0, rounds):
        values = {}
        for name in order.sample(list(ways), len(ways)):
            values[name] = ways[name]()
            advance()
        if i >= 0:
            for name, value in values.items():
                series.samples[name].append(value)


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
