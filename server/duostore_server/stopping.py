"""When a process has to stop: at a signal, or because its supervisor is gone.

A signal is taken note of by the interpreter itself, which writes it into a pipe, and acted
on by a thread. A handler in Python runs in the midst of whatever the main thread does, and
would wait for ever for a lock that this thread holds: that of the event it waits for.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


def _nothing() -> None:
    pass


def _unnoted(_signum: signal.Signals) -> None:
    pass


def stop_on_signals(
    stop: threading.Event,
    *,
    at_once: Callable[[], None] = _nothing,
    noted: Callable[[signal.Signals], None] = _unnoted,
) -> None:
    """Set ``stop`` on SIGTERM and SIGINT; at the second signal end at once.

    ``noted`` is told the first signal before ``stop`` is set; ``at_once`` is called before that
    end. Both on a thread of its own. Call this on the main thread, once in a process.
    """
    arriving = _arriving(signal.SIGTERM, signal.SIGINT)

    def watch() -> None:
        noted(signal.Signals(next(arriving)))
        stop.set()
        signum = next(arriving)
        try:
            at_once()
        finally:
            os._exit(128 + signum)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def stop_with_supervisor(stop: threading.Event) -> None:
    """Set ``stop`` when the supervisor asks for it, or has died, however it died.

    A Ctrl-C on the terminal, or a signal to a whole group of processes, reaches this one
    as well; the supervisor alone decides what follows from a second one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arriving = _arriving(signal.SIGTERM)
    standard_input = sys.stdin.fileno()

    def watch_signals() -> None:
        for _ in arriving:
            stop.set()

    def watch_supervisor() -> None:
        # Nothing is ever sent; the read ends when the other end is closed. Not by
        # sys.stdin, whose lock this thread would hold when the interpreter ends.
        while os.read(standard_input, 1):
            pass
        stop.set()

    threading.Thread(target=watch_signals, name="signals", daemon=True).start()
    threading.Thread(target=watch_supervisor, name="orphan-watch", daemon=True).start()


def _arriving(*wanted: signal.Signals) -> Iterator[int]:
    """Note these signals from now on; iterating waits for the next one."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signum in wanted:
        signal.signal(signum, _noted)

    def each() -> Iterator[int]:
        while True:
            for signum in os.read(reading, 1):
                if signum in wanted:
                    yield signum

    return each()


def _noted(_signum: int, _frame: FrameType | None) -> None:
    """Do nothing: that there is a handler makes the interpreter write to the pipe."""
