"""Compression of payloads, for every store that keeps them."""

from __future__ import annotations

import threading
from typing import Final

import zstandard

# Neither side goes past it: what compress() makes, decompress() gives back, and a
# damaged header cannot ask for more memory than this.
MAX_BYTES: Final = 32 * 1024 * 1024


class CorruptError(Exception):
    """The bytes are not what ``compress`` made."""


class _Contexts(threading.local):
    """One compressor and one decompressor a thread; they are costly to make and not shareable."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(write_checksum=True, write_content_size=True)
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(data: bytes, *, above: int) -> tuple[bytes, bool]:
    """Return ``data`` as a zstd frame and True, or as it is and False.

    It is left as it is if it has ``above`` bytes or fewer, if compression does not
    make it smaller, or past ``MAX_BYTES``. The caller has to keep the flag.
    """
    if not above < len(data) <= MAX_BYTES:
        return data, False
    frame = _contexts.compressor.compress(data)
    return (frame, True) if len(frame) < len(data) else (data, False)


def decompress(frame: bytes) -> bytes:
    """Return what ``compress`` was given. Raises ``CorruptError`` for anything else."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 < size <= MAX_BYTES:
            raise CorruptError(f"a frame that says to hold {size} bytes")
        return _contexts.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptError(str(error)) from error
