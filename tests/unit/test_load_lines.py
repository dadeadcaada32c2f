from __future__ import annotations

import io
import tracemalloc
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.cli.load_lines import MAX_LINE_BYTES, Line, read_lines


def _lines(content: bytes, *, after: int = 0, offset: int = 0) -> list[Line]:
    return list(read_lines(io.BytesIO(content), after=after, offset=offset, end=len(content)))


def _texts(content: bytes) -> list[bytes]:
    return [line.text for line in _lines(content)]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\n", [b""]),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"\r\n\r\n", [b"", b""]),
        (b"a\rb\n", [b"a\rb"]),
        (b"a\r", [b"a\r"]),
        ("a\u2028b\n".encode(), ["a\u2028b".encode()]),
        (b"\n\na", [b"", b"", b"a"]),
    ],
)
def test_lines_end_with_a_line_feed(content: bytes, texts: list[bytes]) -> None:
    assert _texts(content) == texts


@given(st.lists(st.binary(max_size=5)).map(b"\n".join))
def test_reading_goes_on_from_the_end_of_any_line(content: bytes) -> None:
    whole = _lines(content)
    assert [line.number for line in whole] == list(range(1, len(whole) + 1))
    for line in whole:
        assert _lines(content, after=line.number, offset=line.end) == whole[line.number :]
    if whole:
        assert whole[-1].end == len(content)


def test_what_is_appended_while_it_is_read_is_left_for_later() -> None:
    file = io.BytesIO(b"a\nb\nc\n")
    assert [line.text for line in read_lines(file, after=0, offset=0, end=3)] == [b"a", b"b"]


def test_a_file_that_was_cut_ends_where_it_ends() -> None:
    file = io.BytesIO(b"a\nb")
    lines = list(read_lines(file, after=0, offset=0, end=100))
    assert [(line.text, line.end) for line in lines] == [(b"a", 2), (b"b", 3)]


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_line_may_have_8_mib_and_no_more(ending: bytes) -> None:
    longest = b"x" * MAX_LINE_BYTES
    [line] = _lines(longest + ending)
    assert (line.text == longest, line.is_too_long) == (True, False)
    [line, *rest] = _lines(longest + b"y" + ending)
    assert (line.size, line.is_too_long, rest) == (MAX_LINE_BYTES + 1, True, [])
    assert line.text == b"x" * len(line.text)


@pytest.mark.parametrize("more", [1, 2, 3, 1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_what_follows_a_line_that_is_too_long_is_read_as_usual(more: int, ending: bytes) -> None:
    content = b"a" + ending + b"x" * (MAX_LINE_BYTES + more) + ending + b"b" + ending
    first, long, last = _lines(content)
    assert (first.text, long.size, last.text) == (b"a", MAX_LINE_BYTES + more, b"b")
    assert (long.number, last.number) == (2, 3)
    assert last.end == len(content)


class _Endless(io.RawIOBase):
    """A file of a gigabyte without a line feed."""

    size = 2**30

    def __init__(self) -> None:
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        count: int = min(len(view), self.size - self._at)
        view[:count] = b"x" * count
        self._at += count
        return count


def test_a_line_of_a_gigabyte_takes_no_more_memory_than_the_longest_line() -> None:
    file: BinaryIO = io.BufferedReader(_Endless(), buffer_size=1024 * 1024)
    tracemalloc.start()
    try:
        [line] = read_lines(file, after=0, offset=0, end=_Endless.size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line.size == _Endless.size
    assert peak < 4 * MAX_LINE_BYTES
