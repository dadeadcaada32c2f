"""The floor of a Get: a synchronous gRPC server that answers and does nothing else.

Run as a program it is that server, until its standard input ends.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "duostore.v1.DataAccess"
METHOD = "Get"


@dataclass(frozen=True, slots=True)
class Echo:
    """A server that runs."""

    process: psutil.Process
    target: str


@contextmanager
def running_echo(*, threads: int, answer_bytes: int) -> Iterator[Echo]:
    """Run the server while the block runs; it ends with this process, however that ends."""
    command = [sys.executable, "-m", "bench.echo", str(threads), str(answer_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            port = int(process.stdout.readline()) if process.stdout else 0
            yield Echo(psutil.Process(process.pid), f"127.0.0.1:{port}")
        finally:
            process.terminate()


def _serve(threads: int, answer_bytes: int) -> None:
    answer = bytes(answer_bytes)
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda _request, _context: answer
    )
    server = grpc.server(ThreadPoolExecutor(threads))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
