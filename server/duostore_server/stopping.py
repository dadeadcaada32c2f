"""When a process has to stop: at a signal, or because its supervisor is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def stop_on_signals(stop: threading.Event) -> None:
    """Set ``stop`` on SIGTERM and SIGINT; at the second signal end at once."""

    def handle(signum: int, _: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def stop_with_supervisor(stop: threading.Event) -> None:
    """Set ``stop`` when the supervisor asks for it, or has died, however it died.

    A Ctrl-C on the terminal reaches the whole group of processes; the supervisor alone
    decides what follows from it.
    """
    stop_on_signals(stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    standard_input = sys.stdin.fileno()

    def watch() -> None:
        # Nothing is ever sent; the read ends when the other end is closed. Not by
        # sys.stdin, whose lock this thread would hold when the interpreter ends.
        while os.read(standard_input, 1):
            pass
        stop.set()

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()
