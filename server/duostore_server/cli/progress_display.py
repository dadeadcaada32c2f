"""Shows how a long call goes: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from duostore_server.cli.terminal import console_on
from duostore_server.cli.wording import printable, span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LINE_SECONDS: Final = 10.0
_PACE_SECONDS: Final = 10.0


class ProgressDisplay(Protocol):
    """Shows how far something has come."""

    def show(self, done: int, total: int, note: str, left: float | None = None) -> None:
        """Show how many are done, of about ``total``, and what else there is to tell.

        ``left`` is how many seconds the rest takes, if somebody can say better than by the
        rate of late.
        """
        ...

    def say(self, text: str) -> None:
        """Tell of something that happened."""
        ...


class NoDisplay:
    """Shows nothing; what happened is told all the same."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, done: int, total: int, note: str, left: float | None = None) -> None:
        pass

    def say(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


class Pace:
    """How fast it goes, on average over the last ten seconds.

    How long the first took to come does not count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looks: deque[tuple[float, int]] = deque()
        self._found_at: int | None = None

    def rate(self, done: int) -> float:
        """Return how many were done each second; 0 while nobody can say."""
        now = self._clock()
        if self._found_at is None:
            self._found_at = done
        if done == self._found_at:
            self._looks.clear()
        self._looks.append((now, done))
        while len(self._looks) > 1 and self._looks[1][0] <= now - _PACE_SECONDS:
            self._looks.popleft()
        began, before = self._looks[0]
        return (done - before) / (now - began) if now > began else 0.0

    def told(self, done: int, total: int, left: float | None) -> tuple[str, str]:
        """Return the rate and the time that is left, in words; empty what nobody can say."""
        rate = self.rate(done)
        if left is None and rate > 0:
            left = max(total - done, 0) / rate
        # Less than a second is no news.
        about = "" if left is None or done >= total else f"about {span(max(left, 1.0))} left"
        return (f"{rate:,.0f}/s" if rate > 0 else ""), about


class BarDisplay:
    """Moves a progress bar."""

    def __init__(self, progress: Progress, task: TaskID, pace: Pace) -> None:
        self._progress = progress
        self._task = task
        self._pace = pace

    def show(self, done: int, total: int, note: str, left: float | None = None) -> None:
        rate, about = self._pace.told(done, total, left)
        self._progress.update(
            self._task,
            completed=done,
            # An estimate may be too low, and of nothing a bar would never end.
            total=max(total, done, 1),
            told=", ".join(filter(None, (_count(done, total), rate, note, about))),
        )

    def say(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)


class LineDisplay(NoDisplay):
    """Writes a line every ten seconds."""

    def __init__(self, out: TextIO, title: str, pace: Pace, clock: Callable[[], float]) -> None:
        super().__init__(out)
        self._title = title
        self._pace = pace
        self._clock = clock
        self._next = clock() + _LINE_SECONDS

    def show(self, done: int, total: int, note: str, left: float | None = None) -> None:
        told = self._pace.told(done, total, left)
        now = self._clock()
        if now < self._next:
            return
        self._next = now + _LINE_SECONDS
        self.say(f"{self._title}: {', '.join(filter(None, (_count(done, total), note, *told)))}")


@contextmanager
def displaying(
    title: str, *, err: TextIO, clock: Callable[[], float], shown: bool = True
) -> Iterator[ProgressDisplay]:
    """Give a display that writes to ``err``; of one that is not ``shown``, what happened alone."""
    title = printable(title)
    if not shown:
        yield NoDisplay(err)
        return
    if not err.isatty():
        yield LineDisplay(err, title, Pace(clock), clock)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[told]}", markup=False),
    )
    # What is printed meanwhile is for standard output, wherever that leads.
    with Progress(
        *columns, console=console_on(err), get_time=clock, redirect_stdout=False
    ) as progress:
        task = progress.add_task(title, total=None, told="")
        yield BarDisplay(progress, task, Pace(clock))


def _count(done: int, total: int) -> str:
    return f"{done:,} of about {max(total, done):,}"
