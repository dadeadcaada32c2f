"""The floors of a Get: gRPC servers that answer and do next to nothing else.

Run as a program it is such a server, until its standard input ends.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import psutil
from pymemcache.client.base import Client  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SERVICE: Final = "duostore.v1.DataAccess"
METHOD: Final = "Get"
_KEY: Final = b"bench-echo"
_TIMEOUT_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Echo:
    """A server that runs."""

    process: psutil.Process
    target: str


@contextmanager
def running_echo(*, threads: int, answer_bytes: int, memcached: str = "") -> Iterator[Echo]:
    """Run the server while the block runs; it ends with this process, however that ends.

    With the address of a ``memcached`` it reads each answer from there, by one get.
    """
    command = [sys.executable, "-m", "bench.echo", str(threads), str(answer_bytes), memcached]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            port = int(process.stdout.readline()) if process.stdout else 0
            yield Echo(psutil.Process(process.pid), f"127.0.0.1:{port}")
        finally:
            process.terminate()


def _serve(threads: int, answer_bytes: int, memcached: str) -> None:
    answer = bytes(answer_bytes)
    read = _reader(memcached, answer) if memcached else lambda: answer
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: read()
    )
    server = grpc.server(ThreadPoolExecutor(threads))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


def _reader(memcached: str, answer: bytes) -> Callable[[], bytes]:
    """Return what reads the answer by a connection of the calling thread's own."""
    own = threading.local()

    def client() -> Client:
        if not hasattr(own, "client"):
            own.client = Client(
                memcached,
                connect_timeout=_TIMEOUT_SECONDS,
                timeout=_TIMEOUT_SECONDS,
                no_delay=True,
            )
        return own.client

    def read() -> bytes:
        found: bytes | None = client().get(_KEY)
        if found is None:
            # It was flushed for somebody else's round, or never there.
            client().set(_KEY, answer, noreply=False)
            return answer
        return found

    return read


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
