"""Exports whose clients are slow, gone or never satisfied: none of them holds up the others."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.support.hanging_service import server
from tests.support.service import CALL_SECONDS
from tests.support.wait import eventually


def rest_of(stream: Any) -> tuple[int, grpc.StatusCode]:
    """Read a stream to its end; return how many messages there were, and how it ended."""
    count = 0
    try:
        for _ in stream:
            count += 1
    except grpc.RpcError:
        pass
    code: grpc.StatusCode = stream.code()
    return count, code


def test_who_stops_reading_holds_nobody_up_and_is_cut_off_and_who_reads_is_not() -> None:
    with ThreadPoolExecutor(1) as pool, server(stall=0.5) as running:
        idle = running.export()
        eventually(running.is_blocked, within=CALL_SECONDS, what="it is blocked")
        sent = running.calls.streamed
        reading = pool.submit(rest_of, running.export())
        for _ in range(20):
            assert running.answers()

        def cut_off() -> bool:
            assert running.streams.cancel_stalled() is False
            return running.calls.closed.acquire(blocking=False)

        eventually(cut_off, within=CALL_SECONDS, what="it is cut off")
        count, code = rest_of(idle)
        # What was on its way to it is all that there ever was.
        assert count <= sent + 1
        assert code is grpc.StatusCode.CANCELLED
        # Who reads goes on.
        assert not reading.done()
        running.calls.go_on.set()
        assert reading.result(CALL_SECONDS)[1] is grpc.StatusCode.OK


def test_no_more_is_made_than_can_be_sent() -> None:
    with server() as running:
        stream = running.export()
        eventually(running.is_blocked, within=CALL_SECONDS, what="it is blocked")
        before = running.calls.streamed
        for _ in range(20):
            assert running.answers()
        assert running.calls.streamed == before
        for _ in range(before + 10):
            next(stream)
        eventually(lambda: running.calls.streamed > before, within=CALL_SECONDS, what="it goes on")
        stream.cancel()
        assert running.calls.closed.acquire(timeout=CALL_SECONDS)


@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_a_stream_that_nobody_waits_for_ends_though_its_client_does_not_read(how: str) -> None:
    with server() as running:
        stream = running.export(within=1.5 if how == "late" else CALL_SECONDS)
        eventually(running.is_blocked, within=CALL_SECONDS, what="it is blocked")
        assert not running.calls.closed.acquire(blocking=False)
        if how == "cancelled":
            stream.cancel()
        assert running.calls.closed.acquire(timeout=CALL_SECONDS)


def test_a_drain_ends_streams_that_nobody_reads() -> None:
    with server(drain_timeout=0.5) as running:
        stream = running.export()
        eventually(running.is_blocked, within=CALL_SECONDS, what="it is blocked")
        began = time.monotonic()
    assert time.monotonic() - began < CALL_SECONDS / 2
    assert running.calls.closed.acquire(blocking=False)
    assert rest_of(stream)[1] is not grpc.StatusCode.OK


def test_a_stream_outlives_the_age_of_its_connection() -> None:
    with server(max_connection_age=1.0, connection_age_grace=0.1) as running:
        aged, ended = threading.Event(), threading.Event()
        stream = running.export()
        stream.add_callback(ended.set)

        def look(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.IDLE:
                aged.set()

        running.channel.subscribe(look)
        assert aged.wait(CALL_SECONDS)
        assert not ended.wait(0.5)
        running.calls.go_on.set()
        assert rest_of(stream)[1] is grpc.StatusCode.OK
