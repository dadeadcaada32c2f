"""`duostore export`: all rows of a query into a file, or to standard output, as they come."""

from __future__ import annotations

import errno
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer
from rich.filesize import decimal

from duostore.v1 import data_access_pb2
from duostore_server.cli.export_display import displaying
from duostore_server.cli.failure import FAILED, UNUSABLE
from duostore_server.cli.one_call import complain, run
from duostore_server.cli.output import UnusableOutputError, opened
from duostore_server.cli.remote_queries import ADVICE
from duostore_server.cli.row_writers import writer_of
from duostore_server.cli.rows import UnfitRowsError, counted, head_of, rows_of
from duostore_server.domain.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from duostore.v1.data_access_pb2_grpc import DataAccessStub
    from duostore_server.cli.export_display import ExportDisplay
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.output import Output
    from duostore_server.cli.query_question import Question
    from duostore_server.cli.target import Target

# For an export that was given no time of its own.
_UNBOUNDED: Final = ADVICE | {
    Reason.DEADLINE_EXCEEDED: "The service's configuration says how long an export may take."
}


@dataclass(slots=True)
class _Progress:
    """How far an export has come."""

    rows: int = 0
    size: int = 0
    as_of: str = ""


def export(
    target: Target, question: Question, *, path: Path | None, format_: str, timeout: float | None
) -> int:
    """Write all rows to a file, or to standard output if it is None; return the exit code.

    ``timeout`` bounds it all, unless it is None. The file is there once it is whole, and not
    at all if anything goes wrong.
    """
    done = _Progress()
    request = data_access_pb2.ExportRequest(tenant=question.tenant, query=question.query)
    request.params.update(question.params)

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        with opened(path) as output, _shown(question.query, path) as display:
            stream = stub.Export(request, timeout=timeout, metadata=metadata)
            try:
                _write(stream, format_, output, display, done)
            finally:
                # Else the service would go on until it notices by itself.
                stream.cancel()

    advice = _UNBOUNDED if timeout is None else ADVICE
    try:
        with _interrupted_by_sigterm():
            code = run(target, work, advice=advice)
    except UnusableOutputError as error:
        complain(str(error))
        return UNUSABLE
    except UnfitRowsError as error:
        complain(str(error))
        code = FAILED
    except OSError as error:
        if path is None and error.errno == errno.EPIPE:
            # Who reads has seen enough: typer ends quietly.
            raise
        complain(f"{path or 'standard output'} cannot be written: {error.strerror or error}")
        code = FAILED
    if code == 0 and path is not None:
        typer.echo(f"{path}: {counted(done.rows)}, {decimal(done.size)}, as of {done.as_of}")
    elif code and path is None and done.rows:
        complain(f"What was written until then, {counted(done.rows)}, is not the whole result.")
    return code


def _write(
    portions: Iterator[data_access_pb2.ExportResponse],
    format_: str,
    output: Output,
    display: ExportDisplay,
    done: _Progress,
) -> None:
    writer = writer_of(format_, output)
    head = None
    for portion in portions:
        if head is None:
            head = head_of(portion)
            done.as_of = head.as_of
            writer.begin(head)
        rows = rows_of(portion.rows, head)
        writer.write(rows)
        output.flush()
        done.rows += len(rows)
        done.size = output.size
        display.show(done.rows, done.size)
    if head is None:
        raise UnfitRowsError("the service sent no columns")
    writer.end()
    done.size = output.size
    display.finish(done.rows, done.size)


@contextmanager
def _shown(query: str, path: Path | None) -> Iterator[ExportDisplay]:
    name = query if path is None else path.name
    # A bar between the rows themselves would be in their way.
    rows_are_seen = path is None and sys.stdout.isatty()
    with displaying(name, err=sys.stderr, clock=time.monotonic, shown=not rows_are_seen) as display:
        yield display


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that nothing half-written is left behind."""

    def handle(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
