"""A memcached for tests."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

from duostore_server.embedded.process import Command
from tests.support import installed
from tests.support.ports import free_port
from tests.support.server import SingleProcessServer

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_SECONDS = 5.0


class MemcachedServer(SingleProcessServer):
    """A memcached of 64 MiB. A restart empties it and starts its CAS numbers anew."""

    def __init__(self) -> None:
        super().__init__()
        self._port = free_port()

    @property
    def address(self) -> str:
        """Return ``127.0.0.1:port``."""
        return f"127.0.0.1:{self._port}"

    def flush(self) -> None:
        """Empty the cache; return when it is empty."""
        assert self._ask(b"flush_all\r\n") == b"OK\r\n"

    def command(self, log: Path) -> Command:
        as_root = ("-u", "nobody") if os.geteuid() == 0 else ()
        return Command(
            argv=[
                str(installed.memcached()),
                *("-l", "127.0.0.1", "-p", str(self._port), "-U", "0", "-m", "64", *as_root),
            ],
            log=log,
            env=os.environ,
            stop_signals=[signal.SIGKILL],  # it has nothing to save, and takes a second over it
        )

    def is_ready(self) -> bool:
        try:
            return self._ask(b"version\r\n").startswith(b"VERSION ")
        except OSError:
            return False

    def _ask(self, line: bytes) -> bytes:
        address = ("127.0.0.1", self._port)
        with socket.create_connection(address, timeout=_TIMEOUT_SECONDS) as connection:
            connection.sendall(line)
            return connection.recv(1024)
