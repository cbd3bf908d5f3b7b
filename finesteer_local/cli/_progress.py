"""Progress of what takes long, on stderr: bars on a terminal, elsewhere a line a minute of what takes minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # rich is imported where it is used: a help page does not need it
    from rich.console import Console
    from rich.progress import TaskID

_MINUTE, _WORTH_A_LINE = 60, 10  # seconds


def error_console() -> Console:
    """A console on the stderr of this moment."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def download(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield `report(bytes so far, bytes in all)`. The bar appears with the first report: often nothing is fetched."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = error_console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task: TaskID | None = None

        def report(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(label, total=total)
            bar.update(task, completed=done, total=total)

        yield report


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Yield `report(stage, done, total)`: a bar for every stage, kept on the screen; a total of 0 is unknown."""
    console = error_console()
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield report


def _lines(console: Console) -> Callable[[str, int, int], None]:
    """For a log: how far a stage is, every minute, and when it has ended, where it took long."""
    begun: dict[str, float] = {}
    told: dict[str, float] = {}
    over: set[str] = set()

    def report(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        since = begun.setdefault(stage, now)
        ended = 0 < total <= done and stage not in over  # once: a total may be a guess
        if ended:
            over.add(stage)
        if now - told.get(stage, since) < (_WORTH_A_LINE if ended else _MINUTE):
            return
        told[stage] = now
        of = f" of {total:,}" if done < total else ""
        console.print(f"{stage}: {done:,}{of}, {now - since:.0f} s", soft_wrap=True)

    return report


@contextmanager
def counted(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Yield `advance()`, to be called once an item."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = error_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show a spinner beside `label`."""
    console = error_console()
    if not console.is_terminal:
        yield
        return
    with console.status(label):
        yield
