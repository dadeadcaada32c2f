"""A server process that does not outlive the process which started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duostore_server.embedded import watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_LOG_TAIL_BYTES = 4096
_READY_POLL_SECONDS = 0.01


class EmbeddedStoreError(Exception):
    """An embedded store cannot be started. The text says why and what to do about it."""


class EmbeddedStoreDiedError(EmbeddedStoreError):
    """An embedded store has ended by itself. The text says how, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and how to end it.

    Standard output and error go to ``log``, which is emptied first. ``user``, if set, is
    the uid and gid to run as, with no other groups. ``stop_signals`` end it, the mildest
    first, each given ``stop_seconds``; SIGKILL is the last resort. ``pass_fds`` stay open.
    """

    argv: Sequence[str]
    log: Path
    env: Mapping[str, str]
    cwd: Path | None = None
    user: tuple[int, int] | None = None
    stop_signals: Sequence[signal.Signals] = (signal.SIGTERM,)
    stop_seconds: float = 10.0
    pass_fds: Sequence[int] = ()


class ServerProcess:
    """A running server: a direct child, with a watchdog beside it.

    Both have sessions of their own, so that an interrupt typed at the terminal reaches
    only our process, which then stops the server in its turn. The watchdog ends the server
    if we are killed and cannot. A death signal of the kernel would not do: it follows the
    thread that started the child, and is lost when the child changes its user.
    """

    def __init__(
        self,
        command: Command,
        server: subprocess.Popen[bytes],
        watchdog_process: subprocess.Popen[bytes],
    ) -> None:
        self._command = command
        self._server = server
        self._watchdog = watchdog_process

    @classmethod
    def start(cls, command: Command) -> ServerProcess:
        """Start the server; return at once, before it is ready to serve."""
        uid, gid = command.user or (None, None)
        with command.log.open("wb") as log:
            server = subprocess.Popen(  # noqa: S603 - the callers' own, constant commands
                command.argv,
                cwd=command.cwd,
                env=command.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=uid,
                group=gid,
                extra_groups=None if command.user is None else [],
                pass_fds=command.pass_fds,
                start_new_session=True,
            )
        try:
            return cls(command, server, _watch(server.pid, command))
        except BaseException:
            server.kill()
            server.wait()
            raise

    @property
    def pid(self) -> int:
        """Return the process id of the server."""
        return self._server.pid

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or None while the server runs."""
        return self._server.poll()

    def check(self, name: str) -> None:
        """Raise ``EmbeddedStoreDiedError``, with this name, if the server has ended by itself."""
        if (code := self.exit_code()) is None:
            return
        how = (
            f"was ended by {signal.Signals(-code).name}"
            if code < 0
            else f"ended with exit code {code}"
        )
        raise EmbeddedStoreDiedError(
            f"{name} {how}. Start it again. The end of its log:\n{self.log_tail()}"
        )

    def log_tail(self) -> str:
        """Return the last few KiB of what the server wrote."""
        with self._command.log.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")

    def wait_ready(self, is_ready: Callable[[], bool], *, within: float) -> None:
        """Return once ``is_ready`` holds.

        Raises ``EmbeddedStoreError`` with the end of the log, and leaves no process, if
        the server ends before that or is not ready ``within`` so many seconds.
        """
        try:
            self._await(is_ready, within)
        except BaseException:
            self.kill()
            raise

    def _await(self, is_ready: Callable[[], bool], within: float) -> None:
        deadline = time.monotonic() + within
        while not is_ready():
            if (code := self.exit_code()) is not None:
                why = f"ended with exit code {code} while starting"
            elif time.monotonic() > deadline:
                why = f"was not ready within {within:g} s"
            else:
                time.sleep(_READY_POLL_SECONDS)
                continue
            name = Path(self._command.argv[0]).name
            raise EmbeddedStoreError(f"{name} {why}; the end of its log:\n{self.log_tail()}")

    def stop(self) -> None:
        """End the server in order, or by force after its time; return when it is gone."""
        for stop_signal in self._command.stop_signals:
            self._server.send_signal(stop_signal)
            # If it is suspended, it hears the other signal only after this one.
            self._server.send_signal(signal.SIGCONT)
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(self._command.stop_seconds)
                break
        self.kill()

    def kill(self) -> None:
        """End the server by SIGKILL; return when it is gone."""
        self._server.kill()
        self._server.wait()
        self._dismiss()

    def _dismiss(self) -> None:
        # Only after the server is gone: until then the watchdog has its number.
        self._watchdog.kill()
        self._watchdog.wait()


def _watch(pid: int, command: Command) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own interpreter and script
        [
            *(sys.executable, "-I", "-S", watchdog.__file__),
            *(str(os.getpid()), str(pid)),
            *(str(command.stop_seconds), *(str(int(s)) for s in command.stop_signals)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
