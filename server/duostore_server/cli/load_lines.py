"""Reads a file line by line, however long its lines are, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINE_BYTES: Final = 8 * 1024 * 1024

# What is kept of a line that is too long, for a person to recognize it by.
_KEPT_BYTES: Final = 1024
_SKIPPED_AT_ONCE: Final = 1024 * 1024
# "\r\n" does not count.
_ENDING_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file.

    ``number`` counts from 1; ``end`` is the offset of the byte behind it. ``size`` is in
    bytes, without the line's ending, and so is ``text``, which is only the beginning of
    a line longer than ``MAX_LINE_BYTES``.
    """

    number: int
    end: int
    size: int
    text: bytes

    @property
    def is_too_long(self) -> bool:
        """Tell whether the line was too long to be kept whole."""
        return self.size > MAX_LINE_BYTES


def read_lines(file: BinaryIO, *, after: int, offset: int, end: int) -> Iterator[Line]:
    """Yield the lines from ``offset`` on, the first of them numbered ``after + 1``.

    Reads up to ``end`` and no further, so that a file which still grows is read as it
    was; the last line need not have an ending.
    """
    file.seek(offset)
    number = after
    while offset < end:
        start = offset
        text = file.readline(min(MAX_LINE_BYTES + _ENDING_BYTES, end - offset))
        if not text:
            return
        offset += len(text)
        last = text[-_ENDING_BYTES:]
        while not last.endswith(b"\n") and offset < end:
            more = file.readline(min(_SKIPPED_AT_ONCE, end - offset))
            if not more:
                break
            offset += len(more)
            last = (last + more)[-_ENDING_BYTES:]
        number += 1
        size = offset - start - _ending(last)
        kept = size if size <= MAX_LINE_BYTES else _KEPT_BYTES
        yield Line(number, offset, size, text[:kept])


def _ending(last: bytes) -> int:
    if not last.endswith(b"\n"):
        return 0
    return 2 if last.endswith(b"\r\n") else 1
