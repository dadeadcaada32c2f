"""What all servers for tests have in common."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

from duostore_server.embedded.process import Command, ServerProcess
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_SECONDS = 60.0
_PAUSE_SECONDS = 10.0


class Server(ABC):
    """A store in a child process, which ends with this process however that happens.

    It keeps its address over ``stop`` and ``start``. ``stop`` ends it in order, ``kill`` by
    SIGKILL; both return when all of its processes are gone. ``pause`` suspends all of its
    processes: connections stay open, new ones are taken by the system, nobody answers.
    """

    @property
    @abstractmethod
    def pid(self) -> int:
        """Return the id of the first of its processes."""

    @abstractmethod
    def start(self) -> None:
        """Start the server; return when it serves."""

    @abstractmethod
    def stop(self) -> None:
        """Stop the server, if it runs."""

    @abstractmethod
    def kill(self) -> None:
        """End all of its processes at once, with no chance to tidy up."""

    def pause(self) -> None:
        """Suspend all of its processes; return when all are."""
        processes = self._processes()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        eventually(
            lambda: all(_is_still(process) for process in processes),
            within=_PAUSE_SECONDS,
            what="all processes of the server are suspended",
        )

    def resume(self) -> None:
        """Let them go on."""
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def close(self) -> None:
        """Stop the server, if it runs, and remove all that it left."""
        self.stop()

    def _processes(self) -> list[psutil.Process]:
        """Return its processes, the first one first: suspended, it starts no others."""
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]


def _is_still(process: psutil.Process) -> bool:
    try:
        return process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    except psutil.NoSuchProcess:
        return True


ServerT = TypeVar("ServerT", bound=Server)


@contextmanager
def running(server: ServerT) -> Iterator[ServerT]:
    """Start a private server for a test, and close it in whatever state the test left it."""
    try:
        server.start()
        yield server
    finally:
        server.close()


class SingleProcessServer(Server):
    """A server that is one process and logs to its standard output."""

    def __init__(self) -> None:
        self._process: ServerProcess | None = None
        self._log = Path()

    @abstractmethod
    def command(self, log: Path) -> Command:
        """Return what to run."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether the server answers."""

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        with tempfile.NamedTemporaryFile(prefix="duostore-", suffix=".log", delete=False) as log:
            self._log = Path(log.name)
        try:
            process = ServerProcess.start(self.command(self._log))
            process.wait_ready(self.is_ready, within=_START_SECONDS)
        except BaseException:
            self._log.unlink(missing_ok=True)
            raise
        self._process = process

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._gone()

    def kill(self) -> None:
        self._running().kill()
        self._gone()

    def _running(self) -> ServerProcess:
        assert self._process is not None, f"{type(self).__name__} is not running"
        return self._process

    def _gone(self) -> None:
        self._process = None
        self._log.unlink(missing_ok=True)
