"""A TCP gate before a store: open, it passes everything on; closed, it swallows."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

_CHUNK = 64 * 1024


class Gate:
    """Forwards connections on 127.0.0.1 to a server.

    While it is closed it accepts connections and reads what is sent, and passes nothing
    on, ever: what a client sent into a closed gate is lost, as if the network had eaten
    it. The connections concerned hang until their client gives them up.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._open = threading.Event()
        self._open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.swallowed = 0

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
            server = socket.create_connection(self._target)
        except OSError:
            _cut(client)
            return
        self._keep(server)
        threading.Thread(target=self._copy, args=(server, client), daemon=True).start()
        self._copy(client, server)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        lost = False
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                if lost or not self._open.is_set():
                    lost = True
                    self.swallowed += len(data)
                else:
                    sink.sendall(data)
        _cut(source)
        _cut(sink)

    def _keep(self, end: socket.socket) -> None:
        with self._lock:
            self._sockets.add(end)


def _cut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
