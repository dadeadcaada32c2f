"""Starts the processes of a service, restarts what dies, and stops them all together.

Imports neither grpc nor a driver: what is forked and what is threaded never meet.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import structlog

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

# A child that ends with this code says that starting it again is of no use.
UNUSABLE: Final = 2

_FIRST_BACKOFF_SECONDS: Final = 0.1
_LAST_BACKOFF_SECONDS: Final = 5.0
# A child that lived this long is restarted at once when it dies.
_STABLE_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05
_KILL_WAIT_SECONDS: Final = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Role:
    """A process that shall always run: a name for the log and its command line."""

    name: str
    command: Sequence[str]


class _Child:
    """The process of a role, and when to start it again."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        self._started = 0.0
        self._backoff = _FIRST_BACKOFF_SECONDS

    def start(self, environment: Mapping[str, str]) -> None:
        # The pipe is never written to. It ends when this process does, however it
        # dies, and the child then knows that it is alone.
        self.process = subprocess.Popen(  # noqa: S603 - our own command line
            self.role.command, stdin=subprocess.PIPE, env=dict(environment)
        )
        self._started = time.monotonic()
        _log.debug("process started", role=self.role.name, pid=self.process.pid)

    def died(self, code: int) -> None:
        now = time.monotonic()
        if now - self._started >= _STABLE_SECONDS:
            self._backoff = _FIRST_BACKOFF_SECONDS
        self.start_at = now + self._backoff
        _log.error(
            "process died and is started again",
            role=self.role.name,
            exit_code=code,
            after_seconds=round(self._backoff, 1),
        )
        self._backoff = min(self._backoff * 2, _LAST_BACKOFF_SECONDS)
        self.process = None


class Supervisor:
    """Keeps one process of each role running while it is entered.

    On leaving, every child gets SIGTERM and ``drain_timeout`` seconds, then SIGKILL.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        environment: Mapping[str, str],
        drain_timeout: float,
        ended: Callable[[int], None],
    ) -> None:
        """``ended`` is called with the process id of every child that has ended."""
        self._children = [_Child(role) for role in roles]
        self._environment = dict(environment)
        self._drain_timeout = drain_timeout
        self._ended = ended

    def __enter__(self) -> Self:
        for child in self._children:
            child.start(self._environment)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        give_up_at = time.monotonic() + self._drain_timeout
        for process in running:
            try:
                process.wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.error("process did not drain in time and is killed", pid=process.pid)
                process.kill()
                process.wait(_KILL_WAIT_SECONDS)
            self._close(process)

    def run(self, stop: threading.Event) -> int:
        """Watch the children until ``stop`` is set; return the exit code.

        Ends early with a child's own code if that child cannot be used at all, for
        one because of its configuration.
        """
        while not stop.wait(_POLL_SECONDS):
            for child in self._children:
                if child.process is None:
                    if time.monotonic() >= child.start_at:
                        child.start(self._environment)
                    continue
                code = child.process.poll()
                if code is None:
                    continue
                self._close(child.process)
                if code == UNUSABLE:
                    child.process = None
                    return code
                child.died(code)
        return 0

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        self._ended(process.pid)
