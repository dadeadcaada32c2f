"""DynamoDB as moto plays it, in a child process."""

from __future__ import annotations

import http.client
import importlib.util
import os
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from duostore_server.embedded.process import Command, EmbeddedStoreError, ServerProcess

if TYPE_CHECKING:
    from types import TracebackType

_HOST: Final = "127.0.0.1"
_NEEDED: Final = ("moto", "flask", "flask_cors", "werkzeug")
_SERVER: Final = "duostore_server.embedded.dynamodb_server"
_BACKLOG: Final = 128
_PROBE_SECONDS: Final = 5.0
_START_SECONDS: Final = 60.0


class EmbeddedDynamoDB:
    """A DynamoDB endpoint on 127.0.0.1 that keeps everything in memory, and forgets it.

    Takes any credentials. One request is worked on at a time: some hundred writes a second.
    Never expires items, throttles, or honours a request token. Ends when this process does,
    however that happens. ``port`` 0 is a free port, which is kept over a restart. Not safe
    for concurrent use.
    """

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._server: ServerProcess | None = None
        self._held = ExitStack()

    @property
    def endpoint_url(self) -> str:
        """Return the URL for ``boto3.client(..., endpoint_url=...)``, once it was started."""
        if not self._port:
            raise EmbeddedStoreError("the embedded DynamoDB has no port yet; start it first")
        return f"http://{_HOST}:{self._port}"

    @property
    def is_running(self) -> bool:
        """Return whether the server was started and not stopped since."""
        return self._server is not None

    @property
    def pid(self) -> int:
        """Return the process id of the running server."""
        if self._server is None:
            raise EmbeddedStoreError("the embedded DynamoDB is not running; start it first")
        return self._server.pid

    def start(self) -> None:
        """Start the server, empty; return when it serves.

        Raises ``EmbeddedStoreError`` if its packages are not installed, the port is taken,
        or it does not start.
        """
        if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
            raise EmbeddedStoreError(
                f"the Python packages {', '.join(missing)} are not installed; install the server "
                "with its extra: pip install 'duostore-server[embedded]'"
            )
        with ExitStack() as undo:
            folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="duostore-")))
            # Bound here, so that the port is known at once and cannot be lost to another.
            with self._listen() as listening:
                server = ServerProcess.start(
                    Command(
                        argv=[sys.executable, "-m", _SERVER, str(listening.fileno())],
                        log=folder / "dynamodb.log",
                        env=os.environ,
                        pass_fds=[listening.fileno()],
                    )
                )
                self._port = listening.getsockname()[1]
            server.wait_ready(self._answers, within=_START_SECONDS)
            self._server = server
            self._held = undo.pop_all()

    def check(self) -> None:
        """Raise ``EmbeddedStoreDiedError`` if the server was started and has ended by itself."""
        if self._server is not None:
            self._server.check("the embedded DynamoDB")

    def stop(self) -> None:
        """Stop the server and forget its data. Does nothing if it is stopped."""
        if self._server is not None:
            self._server.stop()
            self._server = None
            self._held.close()

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

    def _listen(self) -> socket.socket:
        try:
            return socket.create_server((_HOST, self._port), backlog=_BACKLOG)
        except OSError as error:
            raise EmbeddedStoreError(
                f"the embedded DynamoDB cannot listen on {_HOST}:{self._port}: "
                f"{os.strerror(error.errno or 0)}"
            ) from error

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self._port, timeout=_PROBE_SECONDS)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()
