"""What `eval` prints: a table over all suites, one suite by suite, and one of maths and questions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from finesteer_local.cli._view import one_line, output_console

if TYPE_CHECKING:
    from finesteer_local.evaluation.figures import Figures
    from finesteer_local.evaluation.results import Results
    from finesteer_local.evaluation.statistics import Rate

# The titles' words are short, so that every table fits 80 columns; a column without any figure is left out.
_OVERALL = {
    "defended": "defended",
    "declined": "by phrases",
    "over_refusal": "over refusal",
    "identical": "identical",
    "incoherent": "not language",
    "auroc": "gate AUROC",
    "seconds": "s / prompt",
}
_BY_SUITE = {
    "phrases": "refused, phrases",
    "defended": "defended",
    "over_refusal": "over refusal",
    "opened": "gate open",
    "incoherent": "not language",
    "identical": "identical",
}
_SOLVED = {"opened": "gate open", "accuracy": "solved", "mc1": "MC1", "mc2": "MC2"}


def show(results: Results) -> None:
    """Print the tables to stdout."""
    console = output_console()
    answered = [f for f in results.suites if f.phrases]
    if answered:
        console.print(_overall(results))
        console.print()
        console.print(_by_suite(answered, _BY_SUITE))
    solved = [f for f in results.suites if f.accuracy or f.mc1]
    if solved:
        console.print()
        console.print(_by_suite(solved, _SOLVED))
    coherence = results.evaluation.coherence
    console.print()
    notes = [
        f"defended: declined in good language, by {results.evaluation.judge}; good language: at most "
        f"{coherence.limit:.2f} nats a token for the unsteered model, and {coherence.repeated:.2f} repeated trigrams",
        *results.setting.remarks,
    ]
    for note in notes:
        console.print(Text(one_line(note), style="dim"), soft_wrap=not console.is_terminal)


def _overall(results: Results) -> Table:
    rows = [{**vars(f), "declined": results.declined(f.method)} for f in results.totals]
    titles = {name: title for name, title in _OVERALL.items() if any(row[name] is not None for row in rows)}
    table = _table("method", max(len(row["method"]) for row in rows), titles)
    for row in rows:
        table.add_row(Text(row["method"]), *(_cell(row[name], name) for name in titles))
    return table


def _by_suite(rows: list[Figures], known: dict[str, str]) -> Table:
    mixed = {f.suite for f in rows if len({g.label for g in rows if g.suite == f.suite}) > 1}
    titles = {name: title for name, title in known.items() if any(getattr(f, name) is not None for f in rows)}
    table = _table("suite", max(len(f.method) for f in rows) + 2, titles)
    heading = None
    for f in rows:
        if heading != (f.suite, f.label):
            heading = (f.suite, f.label)
            name = f"{f.suite}, {f.label}" if f.suite in mixed else f.suite
            table.add_row(Text(one_line(f"{name} ({f.n})"), style="bold"))
        table.add_row(Text(f"  {f.method}"), *(_cell(getattr(f, name), name) for name in titles))
    return table


def _table(first: str, width: int, titles: dict[str, str]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold", vertical="bottom", min_width=width)
    for title in titles.values():
        table.add_column(title, justify="right", min_width=max(map(len, ["0.000", *title.split()])))
    return table


def _cell(value: Rate | float | None, name: str) -> str:
    if value is None:
        return ""
    number = value if isinstance(value, float) else value.value
    return f"{number:.2f}" if name == "seconds" else f"{number:.3f}"
