"""A gate before a store or the service: passes on, swallows, or loses single answers."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_CHUNK = 64 * 1024
_POSTGRES_PORT = 5432


def _none(_asked: bytes, _answered: bytes) -> bool:
    return False


def _nothing(_asked: bytes) -> bytes:
    return b""


class Gate:
    """Forwards connections on 127.0.0.1 to a server: its port there, or its Unix socket.

    While it is closed it accepts connections and reads what is sent, and passes nothing
    on, ever: what a client sent into a closed gate is lost, as if the network had eaten
    it. The connections concerned hang until their client gives them up.

    ``lose_answer`` loses one answer, ``loses`` any number of them: it is told what the
    client of a connection sent last and what the server now answers, piece by piece as
    they arrive, one call at a time. Where it says so the answer is lost and the connection
    is cut: the server did what it was asked, and nobody hears of it.

    ``answers`` is told each piece that a client sends, one call at a time, and may answer
    in the server's place; the connection ends with that, and the server never hears of it.
    """

    def __init__(
        self,
        server: int | Path,
        *,
        loses: Callable[[bytes, bytes], bool] = _none,
        answers: Callable[[bytes], bytes] = _nothing,
    ) -> None:
        self._server = server
        self._loses = loses
        self._answers = answers
        self._lost_answer: bytes | None = None
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.swallowed = 0
        self.lost_answers = 0

    @property
    def port(self) -> int:
        """Return the port that clients use in place of the server's."""
        port: int = self._listener.getsockname()[1]
        return port

    def close(self) -> None:
        """Swallow from now on, on connections that are open too."""
        self._open.clear()

    def open(self) -> None:
        """Pass on what comes over new connections; those that lost something are cut."""
        self._open.set()

    def lose_answer(self, holding: bytes) -> None:
        """Lose the next piece of an answer that holds these bytes, and cut its connection."""
        self._lost_answer = holding

    @property
    def has_lost_answer(self) -> bool:
        """Return whether the answer that was to be lost came, and was."""
        return self.lost_answers > 0 and self._lost_answer is None

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        with self._lock:
            for end in self._sockets:
                _cut(end)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._keep(client)
        try:
            server = self._connected()
        except OSError:
            _cut(client)
            return
        self._keep(server)
        connection = _Connection(client, server)
        threading.Thread(target=self._answer, args=(connection,), daemon=True).start()
        self._ask(connection)

    def _connected(self) -> socket.socket:
        if isinstance(self._server, int):
            return socket.create_connection(("127.0.0.1", self._server))
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._server))
        return server

    def _ask(self, connection: _Connection) -> None:
        with connection, suppress(OSError):
            while data := connection.client.recv(_CHUNK):
                connection.asked = data
                if not self._passes(connection, data):
                    continue
                with self._lock:
                    answer = self._answers(data)
                if answer:
                    connection.client.sendall(answer)
                    break
                connection.server.sendall(data)

    def _answer(self, connection: _Connection) -> None:
        with connection, suppress(OSError):
            while data := connection.server.recv(_CHUNK):
                if self._is_lost(connection.asked, data):
                    break
                if self._passes(connection, data):
                    connection.client.sendall(data)

    def _is_lost(self, asked: bytes, answered: bytes) -> bool:
        with self._lock:
            awaited = self._lost_answer is not None and self._lost_answer in answered
            if awaited:
                self._lost_answer = None
            lost = awaited or self._loses(asked, answered)
            self.lost_answers += lost
        return lost

    def _passes(self, connection: _Connection, data: bytes) -> bool:
        if self._open.is_set() and not connection.lost:
            return True
        connection.lost = True
        with self._lock:
            self.swallowed += len(data)
        return False

    def _keep(self, end: socket.socket) -> None:
        with self._lock:
            self._sockets.add(end)


@contextmanager
def before_postgres(
    dsn: str, *, loses: Callable[[bytes, bytes], bool] = _none
) -> Iterator[tuple[str, Gate]]:
    """Put a gate before a PostgreSQL that is reached by its socket; yield the way through it."""
    folder = str(conninfo_to_dict(dsn)["host"])
    with Gate(Path(folder, f".s.PGSQL.{_POSTGRES_PORT}"), loses=loses) as gate:
        yield make_conninfo(dsn, host="127.0.0.1", port=gate.port, sslmode="disable"), gate


class _Connection:
    """A client's connection and its other half; left by either side, both are cut."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.asked = b""
        self.lost = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _cut(self.client)
        _cut(self.server)


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
