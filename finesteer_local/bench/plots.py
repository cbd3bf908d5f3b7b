"""Plots of what steering costs (the extra `report`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finesteer_local import paths
from finesteer_local.bench import answers, batch
from finesteer_local.bench.run import Results
from finesteer_local.bench.series import Ratio, Series
from finesteer_local.distribution import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0b5394", "#c8500a", "#38761d", "#7b3fa0", "#8a6d00")
MARKS = "osD^v"


def draw(results: Results, folder: Path) -> list[Path]:
    """Write an SVG for every picture that the results have the figures for; returns their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: a file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise missing_extra("report", "plots need matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "legend.frameon": False,
        "svg.hashsalt": "finesteer-local",  # the same figures give the same file
        "svg.fonttype": "none",
    }
    written = []
    with plt.rc_context(style):
        for name, paint in _pictures(results):
            figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
            paint(axes)
            target = paths.ensure_dir(folder) / f"{name}.svg"
            with paths.atomic_write(target) as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None})
            plt.close(figure)
            written.append(target)
    return written


def _pictures(results: Results) -> Iterator[tuple[str, Callable[[Axes], None]]]:
    first = results.of("ttft")
    if len(first) > 1:
        yield "prompt-length", lambda axes: _prompt_length(axes, first)
    batches = [series for series in results.of("batch") if series.x]
    if len(batches) > 1:
        yield "batch-size", lambda axes: _batch_size(axes, batches)
    numbers = results.of("profiles")
    if numbers:
        yield "profiles", lambda axes: _profiles(axes, numbers)
    widths = results.of("width")
    if len(widths) > 1:
        yield "width", lambda axes: _widths(axes, widths)


def _prompt_length(axes: Axes, series: Sequence[Series]) -> None:
    shown = (answers.VECTOR, answers.CLOSED, answers.OPEN, answers.TWO)
    xs = [float(each.x or 0) for each in series]
    for i, way in enumerate(shown):
        points = [each for each in series if way in each.samples]
        ratios = [each.ratio(way, way, answers.NATIVE) for each in points]
        _line(axes, [float(each.x or 0) for each in points], ratios, i, len(shown), way)
    _finish(axes, xs, "prompt tokens", "time to first token / native", "What a prompt costs, by its length")


def _batch_size(axes: Axes, series: Sequence[Series]) -> None:
    xs = [float(each.x or 0) for each in series]
    ways = (batch.BARE, batch.UNSTEERED, batch.STEERED)
    for i, what in enumerate(ways):
        ratios = [each.ratio(what, f"{what}, {batch.TOGETHER}", f"{what}, {batch.ALONE}") for each in series]
        _line(axes, xs, ratios, i, len(ways), what)
    _finish(axes, xs, "requests at a time", "tokens a second, together / alone", "What a batch gains, by its size")


def _profiles(axes: Axes, series: Sequence[Series]) -> None:
    xs: list[float] = []
    for i, each in enumerate(series):
        xs = [float(ratio.way.split()[0]) for ratio in each.ratios]
        decode = each.unit == "tokens/s"
        # both as time, so that up is more expensive
        ratios = [_inverse(ratio) if decode else ratio for ratio in each.ratios]
        _line(axes, xs, ratios, i, len(series), "a token of the answer" if decode else each.name.split(", ")[-1])
    _finish(axes, xs, "open profiles", "time / native", "What more profiles cost")


def _widths(axes: Axes, series: Sequence[Series]) -> None:
    xs = [float(each.x or 0) for each in series]
    shown = (answers.CLOSED, answers.OPEN)
    for i, way in enumerate(shown):
        ratios = [_inverse(each.ratio(way, way, answers.NATIVE)) for each in series]
        _line(axes, xs, ratios, i, len(shown), way)
    _finish(axes, xs, "width of the model (random, 8 layers)", "time a token / native", "Decode, by the model's width")


def _inverse(ratio: Ratio) -> Ratio:
    return ratio._replace(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low)


def _line(axes: Axes, xs: Sequence[float], ratios: Sequence[Ratio], i: int, n: int, label: str) -> None:
    """Medians with quartiles; the lines stand a little apart, so that their whiskers can be told from each other."""
    shifted = [x * 2 ** ((i - (n - 1) / 2) * 0.08) for x in xs]
    values = [ratio.value for ratio in ratios]
    errors = [[r.value - r.low for r in ratios], [r.high - r.value for r in ratios]]
    axes.errorbar(
        shifted, values, errors, color=COLOURS[i], marker=MARKS[i], markersize=4, linewidth=1.2, capsize=2, label=label
    )


def _finish(axes: Axes, xs: Sequence[float], x_label: str, y_label: str, title: str) -> None:
    axes.axhline(1, color="#888888", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [f"{x:,.0f}" for x in xs])
    axes.minorticks_off()
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.legend()
