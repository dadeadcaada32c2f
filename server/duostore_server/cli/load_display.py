"""Shows how a load goes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from duostore_server.cli.load_journal import Journal

_REFRESH_SECONDS: Final = 0.1
_LINE_SECONDS: Final = 10.0


class Display(Protocol):
    """Shows how a load goes."""

    def show(self, journal: Journal) -> None:
        """Show how far the load is. Called often."""
        ...

    def say(self, text: str) -> None:
        """Tell of something that happened."""
        ...


class Pace:
    """How fast a run is, on average since it began."""

    def __init__(self, journal: Journal, total: int, clock: Callable[[], float]) -> None:
        self._lines = journal.counts.lines
        self._offset = journal.offset
        self._total = total
        self._began = clock()
        self._clock = clock

    def lines_per_second(self, journal: Journal) -> float:
        """Return how many lines were finished each second."""
        seconds = self._clock() - self._began
        return (journal.counts.lines - self._lines) / seconds if seconds > 0 else 0.0

    def seconds_left(self, journal: Journal) -> float | None:
        """Return how long the rest will take, or None while nobody can say."""
        done = journal.offset - self._offset
        if done <= 0:
            return None
        return (self._total - journal.offset) * (self._clock() - self._began) / done


class BarDisplay:
    """Moves a progress bar."""

    def __init__(
        self,
        progress: Progress,
        task: TaskID,
        total: int,
        pace: Pace,
        clock: Callable[[], float],
    ) -> None:
        self._progress = progress
        self._task = task
        self._total = total
        self._pace = pace
        self._clock = clock
        self._next = clock()

    def show(self, journal: Journal) -> None:
        now = self._clock()
        if now < self._next and journal.offset < self._total:
            return
        self._next = now + _REFRESH_SECONDS
        self._progress.update(
            self._task,
            completed=journal.offset,
            counts=_counts(journal),
            pace=f"{self._pace.lines_per_second(journal):,.0f} lines/s",
        )

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


class LineDisplay:
    """Writes a line every ten seconds."""

    def __init__(self, out: TextIO, total: int, pace: Pace, clock: Callable[[], float]) -> None:
        self._out = out
        self._total = total
        self._pace = pace
        self._clock = clock
        self._next = clock() + _LINE_SECONDS

    def show(self, journal: Journal) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _LINE_SECONDS
        left = self._pace.seconds_left(journal)
        self.say(
            f"{decimal(journal.offset)} of {decimal(self._total)}, {_counts(journal)}, "
            f"{self._pace.lines_per_second(journal):,.0f} lines/s"
            + ("" if left is None else f", about {timedelta(seconds=round(left))} left")
        )

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


@contextmanager
def displaying(
    source: Path, journal: Journal, total: int, *, err: TextIO, clock: Callable[[], float]
) -> Iterator[Display]:
    """Give a display that writes to ``err``; ``total`` is the size of the file in bytes."""
    pace = Pace(journal, total, clock)
    if not err.isatty():
        yield LineDisplay(err, total, pace, clock)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[counts]}"),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=err)) as progress:
        task = progress.add_task(
            source.name, total=total, completed=journal.offset, counts="", pace=""
        )
        yield BarDisplay(progress, task, total, pace, clock)


def _counts(journal: Journal) -> str:
    counts = journal.counts
    existed = f", {counts.existed:,} existed" if counts.existed else ""
    return f"{counts.saved:,} saved{existed}, {counts.rejected:,} rejected"
