"""Runs the commands that call a service."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.testing import CliRunner

from duostore_server.cli import client, operate

if TYPE_CHECKING:
    from typer.testing import Result

app = typer.Typer(pretty_exceptions_enable=False)
client.register(app)
operate.register(app)


def duostore(*arguments: str, stdin: bytes | str | None = None, **env: str) -> Result:
    """Run a command in this process, which may have been told how wide its terminal is."""
    return CliRunner().invoke(app, arguments, input=stdin, env={"COLUMNS": None, **env})


def start(*arguments: str, before: str = "") -> subprocess.Popen[str]:
    """Run a command in a process of its own, in which ``before``, some Python, is run first."""
    program = f"{before}\nfrom {__name__} import app\napp()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


@dataclass(frozen=True, slots=True)
class Seen:
    """What a command that has ended left on the terminal, without colours, and piped."""

    exit_code: int
    screen: str
    piped: str


class OnTerminal:
    """A command in a process of its own, whose standard error is a terminal.

    So is its standard output, unless ``piped``.
    """

    def __init__(self, *arguments: str, columns: int = 100, piped: bool = False) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import app\napp()", *arguments],
            stdin=slave,
            stdout=subprocess.PIPE if piped else slave,
            stderr=slave,
            # rich takes the size from here first.
            env=_environment() | {"TERM": "xterm-256color", "COLUMNS": str(columns)},
        )
        os.close(slave)
        self._shown = bytearray()
        self._piped = b""
        self._readers = [threading.Thread(target=self._read)]
        if piped:
            self._readers.append(threading.Thread(target=self._read_pipe))
        for reader in self._readers:
            reader.start()

    @property
    def screen(self) -> str:
        """Return what was shown until now, without colours."""
        text = bytes(self._shown).decode(errors="replace").replace("\r\n", "\n")
        return re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", text)

    def ended(self, within: float = 30) -> Seen:
        """Wait for its end."""
        code = self.process.wait(within)
        for reader in self._readers:
            reader.join(within)
        os.close(self._master)
        return Seen(code, self.screen, self._piped.decode())

    def _read(self) -> None:
        # On Linux the end of a terminal is an error.
        with suppress(OSError):
            while chunk := os.read(self._master, 65_536):
                self._shown += chunk

    def _read_pipe(self) -> None:
        assert self.process.stdout
        with self.process.stdout as pipe:
            self._piped = pipe.read()


def _environment() -> dict[str, Any]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DUOSTORE_")}
