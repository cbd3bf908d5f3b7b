"""The tables of `bench`."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from finesteer_local.bench import Results, Series
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
            if others := _others(series):
                console.print(others)
    for note in results.notes:
        console.print(Text(f"note: {one_line(note)}", style="yellow"))
    if not results.complete:
        console.print(Text("stopped before the end", style="yellow"))


def _table(series: Series) -> Table:
    """The ways, and the ratio of each to the first where that is how they compare."""
    references = {to for _, _, to in series.compared}
    to_one = len(references) == 1 and len(series.compared) == len(series.samples) - 1
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", min_width=32)
    table.add_column(series.unit, justify="right", min_width=9)
    table.add_column("quartiles", justify="right", min_width=15)
    ratios = {ratio.way: ratio for ratio in series.ratios} if to_one else {}
    if to_one:
        table.add_column(f"/ {references.pop()}", justify="right", no_wrap=True)
    for way in series.samples:
        low, high = series.spread(way)
        row = [way, figure(series.median(way)), f"{figure(low)} to {figure(high)}"]
        if way in ratios:
            row.append(f"{ratios[way].value:.3f}  ({ratios[way].low:.3f} to {ratios[way].high:.3f})")
        table.add_row(*row)
    return table


def _others(series: Series) -> Table | None:
    """Ratios of other pairs."""
    if len(series.compared) == len(series.samples) - 1 and len({to for _, _, to in series.compared}) == 1:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("", min_width=50)
    table.add_column("", justify="right")
    for ratio in series.ratios:
        table.add_row(ratio.label, f"{ratio.value:.3f}  ({ratio.low:.3f} to {ratio.high:.3f})")
    return table if series.compared else None


def figure(value: float) -> str:
    """A value with three or four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
