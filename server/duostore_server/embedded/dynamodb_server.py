"""Serves moto's DynamoDB over HTTP: ``python -m`` this module, with a listening socket's number.

Not by werkzeug's own server, which closes each connection after one request and then waits
ten milliseconds for more.
"""

from __future__ import annotations

import io
import socket
import sys
import threading
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar, Final

from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication, WSGIEnvironment

_FAILED: Final = (
    b'{"__type":"com.amazonaws.dynamodb.v20120810#InternalServerError",'
    b'"message":"the embedded DynamoDB failed; its log says more"}'
)


class Server(ThreadingHTTPServer):
    """An HTTP server in front of an application that can do one thing at a time."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, app: WSGIApplication) -> None:
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self._app = app
        # moto reads and writes its tables from all threads, without a lock of its own: two
        # conditional writes at once could both find their condition to hold.
        self._one_at_a_time = threading.Lock()

    def ask(self, environ: WSGIEnvironment) -> tuple[str, Headers, bytes]:
        """Return the status, headers and body with which the application answers."""
        with self._one_at_a_time:
            body, status, headers = run_wsgi_app(self._app, environ, buffered=True)
        return status, headers, b"".join(body)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"  # connections stay open
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together
    server_version = "duostore-embedded"
    # What WSGI wants to know and no request changes.
    _constant: ClassVar[WSGIEnvironment] = {
        "SCRIPT_NAME": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }

    def do_GET(self) -> None:
        """Say that the server is up, as DynamoDB does."""
        self._reply("200 OK", Headers({"Content-Type": "text/plain"}), b"healthy")

    def do_POST(self) -> None:
        """Do what DynamoDB is asked to."""
        length = self.headers.get("Content-Length")
        if length is None:
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
            return
        environ = self._environ(self.rfile.read(int(length)))
        try:
            status, headers, body = self.server.ask(environ)
        except Exception:  # noqa: BLE001 - whatever moto raises, the caller gets an answer
            traceback.print_exc()
            status, headers, body = "500 Internal Server Error", Headers(), _FAILED
        self._reply(status, headers, body)

    def _environ(self, body: bytes) -> WSGIEnvironment:
        path, _, query = self.path.partition("?")
        environ = self._constant | {
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_PORT": str(self.server.server_address[1]),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
        }
        for name, value in self.headers.items():
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
        return environ

    def _reply(self, status: str, headers: Headers, body: bytes) -> None:
        code, _, phrase = status.partition(" ")
        self.send_response(int(code), phrase)
        for name, value in headers:
            if name.lower() not in {"content-length", "server", "date"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Write no line for each request."""


def main() -> None:
    """Serve on the inherited socket until this process is ended."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    Server(listening, create_backend_app("dynamodb")).serve_forever()


if __name__ == "__main__":
    main()
