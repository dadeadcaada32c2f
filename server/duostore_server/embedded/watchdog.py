"""Ends a process once the one that started both of them has died.

Run as a script: ``python -I -S watchdog.py OWNER PID SECONDS SIGNAL...``. When OWNER is no
longer the parent of this process, PID gets each SIGNAL in turn, SECONDS apart, and SIGKILL
if it is not gone by then. Ends by itself when PID does. Uses the standard library alone and
starts in a few milliseconds.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

_POLL_SECONDS = 0.2


class _Watched:
    """A process that is not necessarily a child of ours."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        # Where the system has them, a pidfd names the process and not whoever inherits
        # its number; and it tells of the end even if nobody collects the exit code.
        self._pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None

    def send(self, signal_number: int) -> None:
        if self._pidfd is not None:
            signal.pidfd_send_signal(self._pidfd, signal_number)
        else:
            os.kill(self._pid, signal_number)

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end of the process; return whether it came."""
        if self._pidfd is not None:
            return bool(select.select([self._pidfd], [], [], seconds)[0])
        try:
            self.send(0)
        except ProcessLookupError:
            return True
        time.sleep(seconds)
        return False


def watch(owner: int, pid: int, seconds: float, stop_signals: list[int]) -> None:
    """Return when ``pid`` is gone; end it if ``owner`` goes first."""
    try:
        watched = _Watched(pid)
        while os.getppid() == owner:
            if watched.ends_within(_POLL_SECONDS):
                return
        for stop_signal in stop_signals:
            watched.send(stop_signal)
            # If it is suspended, it hears the other signal only after this one.
            watched.send(signal.SIGCONT)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if watched.ends_within(_POLL_SECONDS):
                    return
        watched.send(signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), [int(s) for s in sys.argv[4:]])
