"""Plots of what steering costs, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log2
from pathlib import Path

from finesteer_local import paths
from finesteer_local.bench import answers, batch
from finesteer_local.bench.run import Results
from finesteer_local.bench.series import Ratio, Series
from finesteer_local.svg import SHAPES, Plot, tag, text

COLOURS = ("#0b5394", "#c8500a", "#38761d", "#7b3fa0", "#8a6d00")
WIDTH, HEIGHT = 620, 360
_APART = 0.08  # doublings between the lines' points, so that their whiskers can be told from each other
_ROW = 18  # height of a row of the legend
_LETTER = 6.4  # width, about
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:14px;font-weight:600}"
    ".back{fill:#fff}.grid{stroke:#e4e4e4}.level{stroke:#777;stroke-dasharray:5 4}.curve{stroke-width:1.6}"
    + "".join(f".c{i}{{stroke:{colour}}}path.c{i}{{fill:{colour}}}" for i, colour in enumerate(COLOURS))
)


@dataclass
class Picture:
    """Lines of ratios over a number, on an axis of doublings.

    Attributes:
        name: the file's, without its ending.
        lines: label -> (number, ratio) pairs.
    """

    name: str
    title: str
    x_title: str
    y_title: str
    lines: dict[str, list[tuple[float, Ratio]]] = field(default_factory=dict)

    def svg(self) -> str:
        """The picture: medians with quartiles, and a level at 1."""
        rows = list(_rows(list(self.lines)))
        points = [point for line in self.lines.values() for point in line]
        numbers = sorted({x for x, _ in points})
        low, high = min(1.0, *(r.low for _, r in points)), max(1.0, *(r.high for _, r in points))
        x, y = (log2(numbers[0]) - 0.3, log2(numbers[-1]) + 0.3), _with_room(low, high)
        plot = Plot(WIDTH, HEIGHT, x=x, y=y, left=54, top=34 + _ROW * len(rows))
        plot.marks += [tag("rect", width=WIDTH, height=HEIGHT, class_="back"), text(10, 20, self.title, class_="title")]
        plot.axes(self.x_title, self.y_title, x_ticks=[(log2(number), f"{number:,.0f}") for number in numbers])
        plot.line([(x[0], 1.0), (x[1], 1.0)], "level")
        for i, (label, line) in enumerate(self.lines.items()):
            shift = (i - (len(self.lines) - 1) / 2) * _APART
            places = [(log2(number) + shift, ratio) for number, ratio in line]
            plot.line([(at, ratio.value) for at, ratio in places], f"curve c{i}")
            for at, ratio in places:
                plot.whisker((at, at), (ratio.low, ratio.high), f"c{i}")
                plot.marker(at, ratio.value, SHAPES[i], f"c{i}", size=4, title=f"{label}: {ratio.value:.3f}")
        for row, entries in enumerate(rows):
            for i, left, label in entries:
                height = 40 + _ROW * row
                plot.mark(left + 6, height - 4, SHAPES[i], f"c{i}", size=4)
                plot.marks.append(text(left + 16, height, label))
        return plot.svg(self.title, style=_STYLE)


def draw(results: Results, folder: Path) -> list[Path]:
    """Write an SVG for every picture that the results have the figures for; returns their paths.

    Raises:
        StorageError: a file cannot be written.
    """
    written = []
    for picture in _pictures(results):
        target = paths.ensure_dir(folder) / f"{picture.name}.svg"
        with paths.atomic_write(target) as temporary:
            temporary.write_text(picture.svg() + "\n", encoding="utf-8")
        written.append(target)
    return written


def _pictures(results: Results) -> Iterator[Picture]:
    first = results.of("ttft")
    if len(first) > 1:
        yield _prompt_length(first)
    batches = [series for series in results.of("batch") if series.x]
    if len(batches) > 1:
        yield _batch_size(batches)
    numbers = results.of("profiles")
    if numbers:
        yield _profiles(numbers)
    widths = results.of("width")
    if len(widths) > 1:
        yield _widths(widths)


def _prompt_length(series: Sequence[Series]) -> Picture:
    title = "What a prompt costs, by its length"
    picture = Picture("prompt-length", title, "prompt tokens", "time to first token / native")
    for way in (answers.VECTOR, answers.CLOSED, answers.OPEN, answers.TWO):
        points = [each for each in series if way in each.samples]
        if points:
            picture.lines[way] = [(float(each.x or 0), each.ratio(way, way, answers.NATIVE)) for each in points]
    return picture


def _batch_size(series: Sequence[Series]) -> Picture:
    title = "What a batch gains, by its size"
    picture = Picture("batch-size", title, "requests at a time", "tokens a second, together / alone")
    for what in (batch.BARE, batch.UNSTEERED, batch.STEERED):
        together, alone = f"{what}, {batch.TOGETHER}", f"{what}, {batch.ALONE}"
        picture.lines[what] = [(float(each.x or 0), each.ratio(what, together, alone)) for each in series]
    return picture


def _profiles(series: Sequence[Series]) -> Picture:
    picture = Picture("profiles", "What more profiles cost", "open profiles", "time / native")
    for each in series:
        decode = each.unit == "tokens/s"
        label = "a token of the answer" if decode else each.name.split(", ")[-1]
        # both as time, so that up is more expensive
        ratios = [_inverse(ratio) if decode else ratio for ratio in each.ratios]
        picture.lines[label] = [(float(ratio.way.split()[0]), ratio) for ratio in ratios]
    return picture


def _widths(series: Sequence[Series]) -> Picture:
    x_title = "width of the model (random, 8 layers)"
    picture = Picture("width", "Decode, by the model's width", x_title, "time a token / native")
    for way in (answers.CLOSED, answers.OPEN):
        picture.lines[way] = [(float(each.x or 0), _inverse(each.ratio(way, way, answers.NATIVE))) for each in series]
    return picture


def _inverse(ratio: Ratio) -> Ratio:
    return ratio._replace(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)


def _with_room(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.1
    return low - room, high + room


def _rows(labels: Sequence[str]) -> Iterator[list[tuple[int, float, str]]]:
    """The legend's rows: number, left edge and label of each entry, as many to a row as fit."""
    row: list[tuple[int, float, str]] = []
    left = 10.0
    for i, label in enumerate(labels):
        wide = 34 + _LETTER * len(label)
        if row and left + wide > WIDTH:
            yield row
            row, left = [], 10.0
        row.append((i, left, label))
        left += wide
    yield row
