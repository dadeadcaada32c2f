"""`duostore load`: saves every line of a file, resumably, and says what became of it."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import sys
import time
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import typer

from duostore_server.cli.channel import UnusableTargetError
from duostore_server.cli.failure import FAILED, INTERRUPTED, UNAVAILABLE, UNUSABLE
from duostore_server.cli.load_checkpoint import Job, fingerprint_of
from duostore_server.cli.load_disk import LocalDisk
from duostore_server.cli.load_display import displaying
from duostore_server.cli.load_inbox import AnswerQueue
from duostore_server.cli.load_journal import LoadRefusedError, open_journal, rejected_path
from duostore_server.cli.load_lines import read_lines
from duostore_server.cli.load_loop import Loader
from duostore_server.cli.load_outcome import End, Ending
from duostore_server.cli.load_saver import saving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from duostore_server.cli.load_journal import Journal
    from duostore_server.cli.load_outcome import Limits
    from duostore_server.cli.target import Target


@dataclass(frozen=True, slots=True)
class Load:
    """What to load and how; ``id_path`` is the dotted path of the field with the id."""

    source: Path
    target: Target
    tenant: str
    kind: str
    id_path: str
    if_absent: bool
    restart: bool
    limits: Limits


def load(what: Load, *, as_json: bool) -> int:
    """Load a file, show how it goes and print a summary; return the exit code.

    0: every line is saved, or there was there already. 1: some lines were rejected, or
    something else failed. 2: the load cannot be begun so. 3: the service was
    unavailable for too long. 130: interrupted.
    """
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            file = stack.enter_context(_opened(what.source))
            journal, end = _loaded(what, file, stack)
    except (LoadRefusedError, UnusableTargetError) as error:
        typer.echo(str(error), err=True)
        return UNUSABLE
    except OSError as error:
        typer.echo(
            f"{error.filename or what.source}: {error.strerror or error}; the load is stopped. "
            "Nothing is lost: repeat the command to go on from where it last noted its progress.",
            err=True,
        )
        return FAILED
    if as_json:
        typer.echo(_json_summary(what, journal, end, time.monotonic() - began).encode())
    else:
        for line in _summary(what, journal, end):
            typer.echo(line)
    return _exit_code(journal, end)


def _loaded(what: Load, file: BinaryIO, stack: ExitStack) -> tuple[Journal, End]:
    fingerprint = fingerprint_of(file)
    job = Job(
        fingerprint, what.target.address, what.tenant, what.kind, what.id_path, what.if_absent
    )
    journal = open_journal(
        LocalDisk(), what.source, job, restart=what.restart, new_id=uuid.uuid4().hex
    )
    saver = stack.enter_context(
        saving(what.target, job, load_id=journal.load_id, timeout=what.limits.timeout)
    )
    loader = Loader(
        lines=read_lines(file, after=journal.line, offset=journal.offset, end=fingerprint.size),
        id_path=what.id_path,
        journal=journal,
        saver=saver,
        inbox=AnswerQueue(),
        display=stack.enter_context(
            displaying(what.source, journal, fingerprint.size, err=sys.stderr, clock=time.monotonic)
        ),
        limits=what.limits,
        clock=time.monotonic,
        # Spreads the tries of many lines, and of many loads.
        jitter=lambda: random.uniform(0.5, 1.0),  # noqa: S311 - nobody gains by guessing it
    )
    with _interrupted_by_signals(loader):
        end = loader.run()
    if end.ending is Ending.COMPLETE:
        if fingerprint_of(file) != fingerprint:
            why = f"{what.source} was changed while it was loaded; begin anew with --restart"
            return journal, End(Ending.INPUT_CHANGED, why, FAILED)
        journal.complete()
    return journal, end


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        # Asked first: to open a pipe waits for somebody to write to it.
        if not path.is_file():
            path.stat()
            raise LoadRefusedError(f"{path} is no regular file, which a load needs to be resumed")
        file = path.open("rb")
    except OSError as error:
        raise LoadRefusedError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        if not os.access(path.parent, os.W_OK):
            raise LoadRefusedError(f"{path.parent} cannot be written to; progress is kept there")
        _lock(file, path)
        yield file


def _lock(file: BinaryIO, path: Path) -> None:
    # Some network file systems have no locks to give.
    with suppress(OSError):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LoadRefusedError(f"{path} is being loaded by another process") from error


@contextmanager
def _interrupted_by_signals(loader: Loader) -> Iterator[None]:
    """Let SIGINT and SIGTERM interrupt the loader; a second one ends the process at once."""

    def handle(_: int, __: FrameType | None) -> None:
        restore()
        loader.interrupt()

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        restore()


def _exit_code(journal: Journal, end: End) -> int:
    match end.ending:
        case Ending.COMPLETE:
            return FAILED if journal.counts.rejected else 0
        case Ending.INTERRUPTED:
            return INTERRUPTED
        case Ending.UNAVAILABLE:
            return UNAVAILABLE
        case Ending.FAILED | Ending.INPUT_CHANGED:
            return end.exit_code


def _summary(what: Load, journal: Journal, end: End) -> Iterator[str]:
    counts = journal.counts
    if end.why:
        yield end.why
    yield (
        f"{end.ending.value}: {counts.lines:,} lines done: {counts.saved:,} saved, "
        f"{counts.existed:,} existed, {counts.rejected:,} rejected, {counts.blank:,} blank"
    )
    if counts.pending:
        yield (
            f"{counts.pending:,} of those saved were not projected yet when the service answered; "
            "it does that by itself"
        )
    if counts.rejected:
        yield f"rejected lines, with their numbers and reasons: {rejected_path(what.source)}"
    if counts.lines and (line := _next_line(journal, end)):
        yield f"nothing is lost: repeat the command to go on from line {line:,}"


def _next_line(journal: Journal, end: End) -> int | None:
    """Return where a repeated command goes on, or None if it would not."""
    if end.ending in {Ending.COMPLETE, Ending.INPUT_CHANGED}:
        return None
    return journal.line + 1


def _json_summary(what: Load, journal: Journal, end: End, seconds: float) -> str:
    counts = journal.counts
    summary = {
        "ending": end.ending.value,
        "why": end.why or None,
        "lines": counts.lines,
        "saved": counts.saved,
        "projection_pending": counts.pending,
        "existed": counts.existed,
        "rejected": counts.rejected,
        "blank": counts.blank,
        "next_line": _next_line(journal, end),
        "rejected_file": str(rejected_path(what.source)) if counts.rejected else None,
        "seconds": round(seconds, 3),
    }
    return json.dumps(summary, indent=2, ensure_ascii=False)
