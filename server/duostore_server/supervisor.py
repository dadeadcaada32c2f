"""Starts the processes of a service, restarts what dies, and stops them all together.

Imports neither grpc nor a driver: what is forked and what is threaded never meet.
"""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType

# A child that ends with this code says that starting it again is of no use.
UNUSABLE: Final = 2

_FIRST_BACKOFF_SECONDS: Final = 0.1
_LAST_BACKOFF_SECONDS: Final = 5.0
# A child that lived this long has run well, and is restarted at once when it dies.
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

    def __init__(self, role: Role, stable: float) -> None:
        self.role = role
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at = 0.0
        # Whether one of its processes has lived long enough to be known to work.
        self.is_proven = False
        self._stable = stable
        self._started = 0.0
        self._backoff = _FIRST_BACKOFF_SECONDS

    def start(self, environment: Mapping[str, str], inherited: Collection[int]) -> None:
        # The pipe is never written to. It ends when this process does, however it
        # dies, and the child then knows that it is alone. In a session of its own no
        # Ctrl-C reaches it, at which it would end in the midst of its start.
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own command line
                self.role.command,
                stdin=subprocess.PIPE,
                env=dict(environment),
                pass_fds=tuple(inherited),
                start_new_session=True,
            )
        except OSError as error:
            _log.error(
                "process cannot be started and is tried again",
                role=self.role.name,
                error=str(error),
                after_seconds=round(self._backoff, 1),
            )
            self._wait()
            return
        self._started = time.monotonic()
        _log.debug("process started", role=self.role.name, pid=self.process.pid)

    def ended(self) -> None:
        """Note that its process is no more."""
        self.process = None
        if time.monotonic() - self._started >= self._stable:
            self.is_proven = True
            self._backoff = _FIRST_BACKOFF_SECONDS

    def died(self, code: int) -> None:
        """Note when to start it again."""
        _log.error(
            "process died and is started again",
            role=self.role.name,
            exit_code=code,
            after_seconds=round(self._backoff, 1),
        )
        self._wait()

    def _wait(self) -> None:
        self.start_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _LAST_BACKOFF_SECONDS)


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
        inherited: Collection[int] = (),
        stable: float = _STABLE_SECONDS,
    ) -> None:
        """``ended`` is called with the process id of every child that ends before ``kill``.

        ``inherited`` are file descriptors that the children keep, by their numbers; a
        role has run well once a child of it lived for ``stable`` seconds.
        """
        self._children = [_Child(role, stable) for role in roles]
        self._environment = dict(environment)
        self._drain_timeout = drain_timeout
        self._ended = ended
        self._inherited = tuple(inherited)
        self._starting = threading.Lock()
        self._is_over = False

    def __enter__(self) -> Self:
        for child in self._children:
            self._start(child)
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
        if self._is_over:
            # Who killed the children ends this process, too, and decides its exit code.
            threading.Event().wait(_KILL_WAIT_SECONDS)

    def run(self, stop: threading.Event) -> int:
        """Watch the children until ``stop`` is set; return the exit code.

        Ends early with a child's own code if that child cannot be used at all, for
        one because of its configuration. Of a role that has run well, such an end is like
        any other: the rest of the service goes on, and the child is started again.
        """
        while not stop.wait(_POLL_SECONDS):
            for child in self._children:
                if child.process is None:
                    if time.monotonic() >= child.start_at:
                        self._start(child)
                    continue
                code = child.process.poll()
                if code is None:
                    continue
                self._close(child.process)
                child.ended()
                if code == UNUSABLE and not child.is_proven:
                    return code
                child.died(code)
        return 0

    def kill(self) -> None:
        """Let all children die at once, and start no more; the caller then ends this process.

        May be called on any thread. Whoever leaves the supervisor meanwhile waits a
        little for that end.
        """
        with self._starting:
            self._is_over = True
            running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.kill()
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_KILL_WAIT_SECONDS)

    def _start(self, child: _Child) -> None:
        with self._starting:
            if not self._is_over:
                child.start(self._environment, self._inherited)

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        with self._starting:
            # Who kills them all removes what they have left, and must not meet this there.
            if not self._is_over:
                self._ended(process.pid)
