"""Shows how an export goes: rows, bytes and their rate, on a terminal and nowhere else."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from duostore_server.cli.rows import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REFRESH_SECONDS: Final = 0.1


class ExportDisplay(Protocol):
    """Shows how an export goes."""

    def show(self, rows: int, size: int) -> None:
        """Show how many rows there are, and bytes written of them. Called often."""
        ...

    def finish(self, rows: int, size: int) -> None:
        """Show it for the last time."""
        ...


class NoDisplay:
    """Shows nothing."""

    def show(self, rows: int, size: int) -> None:
        pass

    def finish(self, rows: int, size: int) -> None:
        pass


class RunningDisplay:
    """Moves a bar that knows no end: how many rows there will be is not known."""

    def __init__(self, progress: Progress, task: TaskID, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._task = task
        self._clock = clock
        self._began = self._next = clock()

    def show(self, rows: int, size: int) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _REFRESH_SECONDS
        self.finish(rows, size)

    def finish(self, rows: int, size: int) -> None:
        seconds = self._clock() - self._began
        rate = rows / seconds if seconds > 0 else 0.0
        self._progress.update(
            self._task, rows=counted(rows), size=decimal(size), pace=f"{rate:,.0f} rows/s"
        )


@contextmanager
def displaying(
    name: str, *, err: TextIO, clock: Callable[[], float], shown: bool = True
) -> Iterator[ExportDisplay]:
    """Give a display that writes to ``err`` if that is a terminal and it shall be ``shown``."""
    if not shown or not err.isatty():
        yield NoDisplay()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[rows]}"),
        TextColumn("{task.fields[size]}"),
        TextColumn("{task.fields[pace]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=err), get_time=clock) as progress:
        task = progress.add_task(name, total=None, rows="", size="", pace="")
        yield RunningDisplay(progress, task, clock)
