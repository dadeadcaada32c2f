"""DynamoDB paused, stopped, and back without its tables."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import (
    DuostoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb.client import make_client
from duostore_server.storage.dynamodb.probe import open_probe
from duostore_server.storage.dynamodb.projections import open_projections
from duostore_server.storage.dynamodb.tables import create_tables
from tests.support.ports import free_port
from tests.support.servers import DynamoDBLocal, running
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.ports import Probe, Projections

KEY = EntityKey("acme", "proposal", "p-1")
# The client's patience with one attempt: callers that leave sooner did not wait for it.
READ_TIMEOUT = 4.0
TIMEOUT = 2.0


def soon() -> Deadline:
    return Deadline.after(30)


def value(version: int) -> Projection:
    return Projection(version, Form.VALUE, b"%d" % version)


def key_of(number: int) -> EntityKey:
    return EntityKey("acme", "proposal", f"p-{number}")


@contextmanager
def client_of(endpoint_url: str) -> Iterator[DynamoDBClient]:
    with closing(
        make_client(region="us-east-1", endpoint_url=endpoint_url, read_timeout=READ_TIMEOUT)
    ) as client:
        yield client


@contextmanager
def opened(client: DynamoDBClient) -> Iterator[tuple[Projections, Probe]]:
    with (
        open_projections(
            client, prefix="", unreadable=lambda *_: None, timeout=TIMEOUT
        ) as projections,
        open_probe(client, prefix="", timeout=TIMEOUT) as probe,
    ):
        yield projections, probe


@pytest.fixture(scope="module")
def server() -> Iterator[DynamoDBLocal]:
    with running(DynamoDBLocal()) as server:
        yield server


def seconds_until_error(work: object, kind: type[DuostoreError]) -> float:
    assert callable(work)
    began = time.monotonic()
    with pytest.raises(DuostoreError) as caught:
        work()
    assert caught.type is kind
    return time.monotonic() - began


def test_while_paused_callers_leave_in_time_and_afterwards_all_is_well(
    server: DynamoDBLocal,
) -> None:
    with client_of(server.endpoint_url) as client, opened(client) as (projections, probe):
        create_tables(client, prefix="", pause=time.sleep)
        for number in range(8):
            projections.put(key_of(number), value(1), soon())
        server.pause()
        try:

            def read(number: int) -> float:
                return seconds_until_error(
                    lambda: projections.read((key_of(number),), Deadline.after(0.5)),
                    StoreTimeoutError,
                )

            def put(number: int) -> float:
                return seconds_until_error(
                    lambda: projections.put(key_of(number), value(2), Deadline.after(0.5)),
                    StoreTimeoutError,
                )

            def ping(_: int) -> float:
                return seconds_until_error(
                    lambda: probe.ping(Deadline.after(0.5)), StoreTimeoutError
                )

            with ThreadPoolExecutor(17) as pool:
                left = [pool.submit(work, n) for work in (read, put) for n in range(8)]
                left.append(pool.submit(ping, 0))
                # Half a second and a crowded machine, but not the time of an attempt.
                assert max(future.result() for future in left) < READ_TIMEOUT / 2
            without_deadline = seconds_until_error(
                lambda: projections.read((KEY,), soon()), StoreTimeoutError
            )
            assert TIMEOUT <= without_deadline < READ_TIMEOUT
        finally:
            server.resume()
        probe.ping(soon())
        # What was left behind may be done after all, and undoes nothing.
        for number in range(8):
            assert projections.put(key_of(number), value(3), soon()) == value(3)
        keys = [key_of(number) for number in range(8)]
        assert projections.read(keys, soon()) == {key: value(3) for key in keys}


def test_while_stopped_calls_fail_at_once_and_afterwards_all_is_well(
    server: DynamoDBLocal,
) -> None:
    with client_of(server.endpoint_url) as client, opened(client) as (projections, probe):
        create_tables(client, prefix="", pause=time.sleep)
        projections.put(KEY, value(1), soon())
        server.stop()
        try:
            for work in (
                lambda: projections.read((KEY,), soon()),
                lambda: projections.put(KEY, value(2), soon()),
                lambda: probe.ping(soon()),
            ):
                # The connections that the server closed, and then new ones.
                for _ in range(3):
                    assert seconds_until_error(work, StoreUnavailableError) < TIMEOUT / 2
        finally:
            server.start()
        with capture_logs() as logs:
            # It is back and has forgotten everything.
            for _ in range(3):
                with pytest.raises(StoreUnavailableError):
                    projections.read((KEY,), soon())
        ((entry),) = logs
        assert entry["fault"] == "ResourceNotFoundException"
        assert "duostore migrate" in entry["advice"]
        create_tables(client, prefix="", pause=time.sleep)
        probe.ping(soon())
        assert projections.put(KEY, value(2), soon()) == value(2)


def test_a_killed_server_is_unavailable_to_those_who_wait(server: DynamoDBLocal) -> None:
    with client_of(server.endpoint_url) as client, opened(client) as (projections, _):
        create_tables(client, prefix="", pause=time.sleep)
        projections.put(KEY, value(1), soon())
        server.pause()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(projections.read, (KEY,), soon())
            eventually(waiting.running, within=10, what="the read is under way")
            server.kill()
            assert isinstance(waiting.exception(), StoreUnavailableError)
        server.start()


def test_nobody_listens() -> None:
    with (
        client_of(f"http://127.0.0.1:{free_port()}") as client,
        opened(client) as (projections, probe),
    ):
        for work in (lambda: projections.read((KEY,), soon()), lambda: probe.ping(soon())):
            assert seconds_until_error(work, StoreUnavailableError) < TIMEOUT / 2
