"""What makes calls faster than a server can answer them.

h2load, written in C, takes a small part of a core. Without it several Python processes
call; where they have less of the machine than they can use, they hold back the floor more
than Duostore, which then looks better than it is.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import grpc

from bench.callers import measured
from bench.echo import METHOD, SERVICE
from bench.figures import BenchError, Figures

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECTIONS: Final = 8
_PROCESSES: Final = 4
_DEADLINE_SECONDS: Final = 5
# Before each message there are a flag and its length.
_PREFIX_BYTES: Final = 5


class Driver(Protocol):
    """Calls a server with so many calls at a time: one, or a multiple of eight."""

    name: str

    def drive(
        self,
        target: str,
        request: bytes,
        answer_bytes: int | None,
        *,
        at_a_time: int,
        seconds: float,
        method: str = METHOD,
    ) -> Figures:
        """Send a serialized request of a method, Get by default, again and again.

        Raises ``BenchError`` unless every answer has this size, as no error has. With None
        it is for the caller to make sure of what was answered.
        """
        ...


@contextmanager
def best_driver() -> Iterator[Driver]:
    """Yield h2load if it is installed, else one in Python."""
    program = shutil.which("h2load")
    if program is not None:
        yield H2Load(program)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, mp_context=spawn) as pool:
        yield PythonProcesses(pool)


class H2Load:
    """A ``Driver``: h2load of nghttp2."""

    name = "h2load"

    def __init__(self, program: str) -> None:
        self._program = program

    def drive(
        self,
        target: str,
        request: bytes,
        answer_bytes: int | None,
        *,
        at_a_time: int,
        seconds: float,
        method: str = METHOD,
    ) -> Figures:
        connections = min(_CONNECTIONS, at_a_time)
        with tempfile.TemporaryDirectory(prefix="duostore-bench-") as folder:
            message, log = Path(folder, "request"), Path(folder, "log")
            message.write_bytes(b"\0" + len(request).to_bytes(4) + request)
            done = subprocess.run(
                [
                    self._program,
                    *("-t", "1", "-c", str(connections), "-m", str(at_a_time // connections)),
                    *("-D", f"{round(seconds * 1000)}ms", "-d", message, f"--log-file={log}"),
                    *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                    *("-H", f"grpc-timeout: {_DEADLINE_SECONDS}S"),
                    f"http://{target}{_path(method)}",
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=seconds + 60,
            )
            # Each line: start, HTTP status, microseconds.
            latencies = [int(line.split("\t")[2]) / 1e6 for line in log.read_text().splitlines()]
        if answer_bytes is None:
            return Figures.of(latencies, seconds)
        received = re.search(r"\((\d+)\) data$", done.stdout, re.MULTILINE)
        size = int(received[1]) if received else 0
        # When the time is over, the answers that are under way are received and not counted.
        most = len(latencies) + at_a_time
        if not len(latencies) <= size / (_PREFIX_BYTES + answer_bytes) <= most:
            raise BenchError(
                f"not all {len(latencies)} calls were answered by {answer_bytes} bytes:"
                f" {size} were received"
            )
        return Figures.of(latencies, seconds)


class PythonProcesses:
    """A ``Driver``: processes with a connection and a few threads each."""

    name = "processes of Python, for want of h2load"

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def drive(
        self,
        target: str,
        request: bytes,
        answer_bytes: int | None,
        *,
        at_a_time: int,
        seconds: float,
        method: str = METHOD,
    ) -> Figures:
        processes = min(_PROCESSES, at_a_time)
        shares = [
            self._pool.submit(
                _call,
                target,
                _path(method),
                request,
                answer_bytes,
                threads=at_a_time // processes,
                seconds=seconds,
            )
            for _ in range(processes)
        ]
        results = [share.result() for share in shares]
        every = [latency for latencies, _ in results for latency in latencies]
        rate = sum(len(latencies) / elapsed for latencies, elapsed in results)
        return Figures.of(every, len(every) / rate)


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"


def _call(
    target: str,
    path: str,
    request: bytes,
    answer_bytes: int | None,
    *,
    threads: int,
    seconds: float,
) -> tuple[list[float], float]:
    with grpc.insecure_channel(target) as channel:
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)

        def call(message: bytes) -> None:
            answer = ask(message, timeout=_DEADLINE_SECONDS)
            if answer_bytes is not None and len(answer) != answer_bytes:
                raise BenchError(f"a call was answered by {len(answer)} bytes, not {answer_bytes}")

        return measured(seconds, threads, call, repeat(request))
