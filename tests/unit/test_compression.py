from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.storage.compression import MAX_BYTES, CorruptError, compress, decompress

TEXT = b"the authority commits first; " * 100


@given(st.binary(max_size=300), st.integers(1, 60), st.integers(0, 2000))
def test_whatever_is_compressed_comes_back(block: bytes, times: int, above: int) -> None:
    data = block * times
    kept, compressed = compress(data, above=above)
    assert (decompress(kept) if compressed else kept) == data
    assert len(kept) <= len(data)


def test_small_data_is_left_alone() -> None:
    assert compress(TEXT, above=len(TEXT)) == (TEXT, False)
    frame, compressed = compress(TEXT, above=len(TEXT) - 1)
    assert compressed
    assert len(frame) < len(TEXT) // 10


def test_data_that_does_not_shrink_is_left_alone() -> None:
    noise = zstandard.ZstdCompressor(level=19).compress(TEXT)
    assert compress(noise, above=0) == (noise, False)


def test_what_could_not_be_decompressed_is_not_compressed() -> None:
    assert decompress(compress(bytes(MAX_BYTES), above=0)[0]) == bytes(MAX_BYTES)
    assert compress(bytes(MAX_BYTES + 1), above=0)[1] is False


FRAME = compress(TEXT, above=0)[0]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{}", id="another format"),
        pytest.param(FRAME[: len(FRAME) // 2], id="torn"),
        pytest.param(FRAME[:-1], id="last byte lost"),
        pytest.param(FRAME[:-1] + bytes([FRAME[-1] ^ 1]), id="checksum wrong"),
        pytest.param(FRAME + b"\0", id="something behind"),
        pytest.param(FRAME + FRAME, id="two frames"),
        pytest.param(b"\x50\x2a\x4d\x18\x04\0\0\0abcd", id="skippable frame"),
        pytest.param(zstandard.ZstdCompressor().compress(b""), id="frame of nothing"),
        pytest.param(
            zstandard.ZstdCompressor(write_content_size=False).compress(TEXT), id="size not told"
        ),
    ],
)
def test_anything_else_is_refused(frame: bytes) -> None:
    with pytest.raises(CorruptError):
        decompress(frame)


def test_every_flipped_bit_is_noticed() -> None:
    for at in range(len(FRAME) * 8):
        damaged = bytearray(FRAME)
        damaged[at // 8] ^= 1 << at % 8
        try:
            assert decompress(bytes(damaged)) == TEXT, f"bit {at} changed the data"
        except CorruptError:
            continue


def test_a_header_cannot_ask_for_more_memory_than_the_limit() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(MAX_BYTES + 1))
    assert len(bomb) < 10_000
    with pytest.raises(CorruptError, match=str(MAX_BYTES + 1)):
        decompress(bomb)


def test_threads_do_not_share_contexts() -> None:
    start = threading.Barrier(8)

    def work(seed: int) -> bool:
        start.wait()
        data = [bytes([seed, n % 251]) * 2000 for n in range(200)]
        return all(decompress(compress(item, above=0)[0]) == item for item in data)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
