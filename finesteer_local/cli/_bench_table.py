"""The tables of `bench`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from finesteer_local.bench import Ratio, Results, Series
from finesteer_local.cli._view import one_line, output_console


def show(results: Results) -> None:
    """Print every series that has a round, and the notes."""
    console = output_console()
    about = results.about
    if about:
        says = (
            f"{about['model']} ({about['file']}), {about['threads']} threads, {about['processor']}; "
            f"llama-cpp-python {about['llama_cpp']}; profiles: {', '.join(about['profiles'])}"
        )
        console.print(Text(one_line(says), style="dim"))
    for series in results.series:
        if series.n_rounds:
            console.print()
            rounds = f"{series.n_rounds} round{'s' * (series.n_rounds > 1)}"
            console.print(Text(one_line(f"{series.name} ({rounds})"), style="bold"), soft_wrap=True)
            console.print(_table(series))
            if series.pairs:
                console.print(_pairs(series))
    for note in results.notes:
        console.print(Text(f"note: {one_line(note)}", style="yellow"))
    if not results.complete:
        console.print(Text("stopped before the end", style="yellow"))


def _table(series: Series) -> Table:
    """The ways, and the ratio of each to the reference where there is one."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", min_width=34)
    table.add_column(series.unit, justify="right", min_width=8)
    table.add_column("quartiles", justify="right", min_width=15)
    if series.reference:
        table.add_column(f"/ {series.reference}", justify="right", no_wrap=True)
    ratios = {ratio.way: ratio for ratio in series.ratios if ratio.to == series.reference}
    for way in series.samples:
        low, high = series.spread(way)
        row = [way, figure(series.median(way)), f"{figure(low)} to {figure(high)}"]
        table.add_row(*row, *([_ratio(ratios[way])] if way in ratios else []))
    return table


def _pairs(series: Series) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("", min_width=51)
    table.add_column("", justify="right")
    for ratio in (series.ratio(*pair) for pair in series.pairs):
        table.add_row(ratio.label, _ratio(ratio))
    return table


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.3f}  ({ratio.low:.3f} to {ratio.high:.3f})"


def figure(value: float) -> str:
    """A value with three or four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
