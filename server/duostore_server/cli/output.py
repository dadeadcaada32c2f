"""Where an export goes: a file that is there once it is whole, or standard output."""

from __future__ import annotations

import io
import os
import secrets
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from duostore_server.cli.load_disk import LocalDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Buffer

_BUFFER_BYTES = 256 * 1024


class UnusableOutputError(Exception):
    """There can be no such file; the text says why."""


class Output(io.BufferedIOBase):
    """Takes bytes and counts them: ``size``. What it took after ``discard`` is not kept."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file: BinaryIO | None = file
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:
        length = memoryview(data).nbytes
        if self._file is not None:
            self._file.write(data)
            self.size += length
        return length

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def discard(self) -> None:
        """Keep nothing more: what a format adds at its end would make a part look whole."""
        self._file = None


@contextmanager
def opened(path: Path | None) -> Iterator[Output]:
    """Give an output that is the file once the block ends, or standard output for None.

    Until then it is another file beside it, which is gone if the block fails: a file that was
    there before is replaced at once or not at all. Raises ``UnusableOutputError`` if it cannot
    be, ``OSError`` if it cannot be written to its end.
    """
    if path is None:
        output = Output(sys.stdout.buffer)
        try:
            yield output
            output.flush()
        finally:
            output.discard()
        return
    final = path.resolve()
    if final.is_dir():
        raise UnusableOutputError(f"{path} is a folder: name a file in it")
    if final.exists() and not final.is_file():
        # A device, or a pipe, must not be replaced.
        raise UnusableOutputError(f"{path} is no regular file; - writes to standard output")
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
    disk = LocalDisk()
    try:
        with _created(partial, path) as file:
            output = Output(file)
            try:
                yield output
                output.flush()
            finally:
                output.discard()
        disk.sync(partial)
        disk.rename(partial, final)
    except BaseException:
        disk.remove(partial)
        raise
    disk.sync_names(final.parent)


def _created(partial: Path, path: Path) -> BinaryIO:
    try:
        # With the rights that a new file has: a temporary file of Python is for its owner alone.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise UnusableOutputError(f"{path} cannot be written: {error.strerror}") from error
    return os.fdopen(descriptor, "wb", buffering=_BUFFER_BYTES)
