"""Sends the lines of a file to the service, many at a time, and sees each one through."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from duostore_server.cli.json_document import DocumentError
from duostore_server.cli.load_items import Lanes, item_of
from duostore_server.cli.load_outcome import (
    Delayed,
    End,
    Ending,
    Existed,
    Failed,
    Refused,
    Saved,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.cli.load_display import Display
    from duostore_server.cli.load_inbox import Inbox
    from duostore_server.cli.load_items import Item
    from duostore_server.cli.load_journal import Journal
    from duostore_server.cli.load_lines import Line
    from duostore_server.cli.load_outcome import Limits, Outcome, Saver

# The most that is asked for anew after a crash.
_KEEP_EVERY_SECONDS: Final = 1.0
# How far finished lines may run ahead of one that is still tried: they are listed in the
# checkpoint.
_MAX_AHEAD_LINES: Final = 2048
_MAX_HELD_BYTES: Final = 64 * 1024 * 1024
# Between two looks at answers, signals and the clock.
_READ_AT_ONCE: Final = 64

_TELL_EVERY_SECONDS: Final = 10.0
_FIRST_BACKOFF_SECONDS: Final = 0.2
_LAST_BACKOFF_SECONDS: Final = 5.0


class Loader:
    """Loads lines.

    Lines of one id are saved in the order of the file, also when answers are lost: a line
    is tried again until one of its tries is answered, after which the others come to
    nothing, and only then is the next one sent. A line that fails for a reason that may
    pass is tried again, for ``retry_for`` seconds; then, or when it is told to stop, the
    loader lets what is under way finish, and ends.
    """

    def __init__(
        self,
        *,
        lines: Iterator[Line],
        id_path: str,
        journal: Journal,
        saver: Saver,
        inbox: Inbox,
        display: Display,
        limits: Limits,
        clock: Callable[[], float],
        jitter: Callable[[], float],
    ) -> None:
        """``jitter`` returns the part of a backoff to wait, at most 1."""
        self._lines = lines
        self._id_path = id_path
        self._journal = journal
        self._saver = saver
        self._inbox = inbox
        self._display = display
        self._limits = limits
        self._clock = clock
        self._jitter = jitter
        self._lanes = Lanes()
        self._in_flight = 0
        self._is_exhausted = False
        self._end: End | None = None
        self._interrupted = False
        # Whether a line may have been saved that is not finished.
        self._in_doubt = False
        # When to send items that have to wait; line numbers make the order total.
        self._later: list[tuple[float, int, Item]] = []
        self._newest = journal.line
        self._quiet_until = clock()
        self._kept = clock()

    def interrupt(self) -> None:
        """Let what is under way finish and end then. Made for signal handlers."""
        self._interrupted = True
        self._inbox.put(None)

    def run(self) -> End:
        """Load until no line is left or the load has to stop; all that was done is safe then."""
        self._journal.begin()
        while not self._is_done():
            if self._interrupted:
                self._stop(End(Ending.INTERRUPTED))
            if self._end is None:
                self._send_due()
                self._read_on()
            self._display.show(self._journal)
            self._listen()
            if self._clock() >= self._kept + _KEEP_EVERY_SECONDS:
                self._journal.keep()
                self._kept = self._clock()
        self._journal.keep()
        self._display.show(self._journal)
        if self._end is None or self._is_complete():
            return End(Ending.COMPLETE)
        if not self._in_doubt and not self._journal.counts.lines:
            self._journal.withdraw()
        return self._end

    def _is_done(self) -> bool:
        return self._is_complete() if self._end is None else self._in_flight == 0

    def _is_complete(self) -> bool:
        return self._is_exhausted and self._lanes.items == 0

    def _stop(self, end: End) -> None:
        if self._end is None:
            self._end = end
            if self._in_flight:
                self._display.say(f"stopping; lines still under way: {self._in_flight}")

    def _read_on(self) -> None:
        for _ in range(_READ_AT_ONCE):
            if self._is_exhausted or not self._has_room():
                return
            line = next(self._lines, None)
            if line is None:
                self._is_exhausted = True
                return
            self._newest = line.number
            if not self._journal.is_finished(line):
                self._take_up(line)

    def _has_room(self) -> bool:
        return (
            self._lanes.items < self._limits.in_flight
            and self._lanes.bytes < _MAX_HELD_BYTES
            and self._newest - self._journal.line < _MAX_AHEAD_LINES
        )

    def _take_up(self, line: Line) -> None:
        try:
            item = item_of(line, self._id_path)
        except DocumentError as error:
            self._journal.reject(line, str(error))
            return
        if item is None:
            self._journal.passed(line)
        elif self._lanes.enter(item):
            self._send(item)

    def _send_due(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            self._send(heapq.heappop(self._later)[2])

    def _send(self, item: Item) -> None:
        self._in_flight += 1
        self._saver.save(
            item.line.number,
            item.id,
            item.document,
            lambda outcome: self._inbox.put((item, outcome)),
        )

    def _listen(self) -> None:
        answer = self._inbox.take(self._patience())
        while answer is not None:
            item, outcome = answer
            self._in_flight -= 1
            self._settle(item, outcome)
            answer = self._inbox.take(0)

    def _patience(self) -> float:
        if self._is_done():
            return 0
        until = self._kept + _KEEP_EVERY_SECONDS
        if self._end is None:
            if not self._is_exhausted and self._has_room():
                return 0
            if self._later:
                until = min(until, self._later[0][0])
        return max(0, until - self._clock())

    def _settle(self, item: Item, outcome: Outcome) -> None:
        match outcome:
            case Saved():
                self._journal.saved(item.line, pending=outcome.pending)
            case Existed():
                self._journal.existed(item.line)
            case Refused():
                self._journal.reject(item.line, outcome.reason)
            case Delayed():
                self._in_doubt = True
                self._try_later(item, outcome)
                return
            case Failed():
                self._in_doubt |= outcome.maybe_applied
                why = f"line {item.line.number}: {outcome.reason}"
                self._stop(End(Ending.FAILED, why, outcome.exit_code))
                return
        following = self._lanes.leave(item)
        if following is not None and self._end is None:
            self._send(following)

    def _try_later(self, item: Item, outcome: Delayed) -> None:
        now = self._clock()
        if item.failed is None:
            item.failed = now
        why = f"line {item.line.number}: {outcome.reason}"
        last = item.failed + self._limits.retry_for
        if now >= last:
            self._stop(End(Ending.UNAVAILABLE, f"{why}; tried for {self._limits.retry_for:g} s"))
            return
        if now >= self._quiet_until:
            self._quiet_until = now + _TELL_EVERY_SECONDS
            self._display.say(f"{why}; trying again for up to {self._limits.retry_for:g} s")
        backoff = min(_FIRST_BACKOFF_SECONDS * 2**item.attempts, _LAST_BACKOFF_SECONDS)
        item.attempts += 1
        due = min(now + max(outcome.after, backoff * self._jitter()), last)
        heapq.heappush(self._later, (due, item.line.number, item))
