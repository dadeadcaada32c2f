"""What the client makes of failures: its errors, and what it tries again."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from duostore import (
    Client,
    DeadlineExceededError,
    Error,
    FieldViolation,
    InvalidRequestError,
    Key,
    OverloadedError,
    StoreUnavailableError,
    UnavailableError,
    VersionMismatchError,
    WriteOutcomeUnknownError,
)
from duostore.v1 import data_access_pb2, entity_pb2
from tests.support.scripted_service import (
    DIRECT,
    UNAVAILABLE,
    ScriptedService,
    client_of,
    hold,
    reason,
    serving,
    status,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

KEY = entity_pb2.EntityKey(kind="proposal", id="p1")
FOUND = data_access_pb2.GetResponse(entity=entity_pb2.Entity(key=KEY, version=1))
ALL_FOUND = data_access_pb2.BatchGetResponse(entities=[FOUND.entity])
SAVED = data_access_pb2.SaveResponse(key=KEY, version=1)
DELETED = data_access_pb2.DeleteResponse(key=KEY, version=2)

OVERLOADED = status(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    "aurora has more work than it can take; try again later",
    reason("OVERLOADED", store="aurora"),
    error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
)


def read(client: Client) -> object:
    return client.get("proposal", "p1")


def read_many(client: Client) -> object:
    return client.batch_get([Key("proposal", "p1")])


def save(client: Client) -> object:
    return client.save("proposal", "p1", {})


def delete(client: Client) -> object:
    return client.delete("proposal", "p1")


READS = [
    pytest.param("Get", read, FOUND, id="get"),
    pytest.param("BatchGet", read_many, ALL_FOUND, id="batch_get"),
]
WRITES = [
    pytest.param("Save", save, SAVED, id="save"),
    pytest.param("Delete", delete, DELETED, id="delete"),
]


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


def test_an_error_carries_all_that_the_server_said(service: ScriptedService) -> None:
    service.script(
        "Save",
        status(
            grpc.StatusCode.ABORTED,
            "expected the entity at version 2, but it has version 5",
            reason("VERSION_MISMATCH", expected="2", version="5"),
            error_details_pb2.RequestInfo(request_id="request-1"),
        ),
    )
    with client_of(service) as client, pytest.raises(VersionMismatchError) as raised:
        client.save("proposal", "p1", {}, tenant="acme", if_version=2)
    error = raised.value
    assert (error.expected, error.version) == (2, 5)
    assert (error.reason, error.code) == ("VERSION_MISMATCH", grpc.StatusCode.ABORTED)
    assert error.metadata == {"expected": "2", "version": "5"}
    assert error.request_id == "request-1"
    assert (error.retry_after, error.field_violations, error.maybe_applied) == (None, (), False)
    assert str(error) == (
        "save('proposal', 'p1', tenant='acme'): expected the entity at version 2, but it has "
        "version 5; read it again, decide anew and save with the version read "
        "(VERSION_MISMATCH, request id request-1)"
    )
    assert isinstance(error.__cause__, grpc.RpcError)


def test_a_hundred_violations_arrive_whole(service: ScriptedService) -> None:
    violations = [
        FieldViolation(f"data.sections[{n}].heading", "is longer than allowed: " + "x" * 200)
        for n in range(100)
    ]
    details = [
        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
        for v in violations
    ]
    service.script(
        "Save",
        status(
            grpc.StatusCode.INVALID_ARGUMENT,
            "; ".join(f"{v.field}: {v.description}" for v in violations),
            reason("INVALID_REQUEST"),
            error_details_pb2.BadRequest(field_violations=details),
        ),
    )
    with client_of(service) as client, pytest.raises(InvalidRequestError) as raised:
        client.save("proposal", "p1", {})
    assert raised.value.field_violations == tuple(violations)


def test_the_request_id_that_was_sent_counts_if_the_server_names_none(
    service: ScriptedService,
) -> None:
    service.script("Get", status(grpc.StatusCode.INTERNAL, "a fault"))
    with client_of(service) as client, pytest.raises(Error) as raised:
        client.get("proposal", "p1")
    assert raised.value.request_id == service.asked[0].metadata["x-request-id"]
    assert raised.value.request_id in str(raised.value)


@pytest.mark.parametrize(("method", "call", "answer"), READS)
def test_reads_are_tried_again_while_something_is_unavailable(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, UNAVAILABLE, UNAVAILABLE, answer)
    with client_of(service) as client:
        assert call(client)
    assert [asked.method for asked in service.asked] == [method] * 3
    assert len({asked.metadata["x-request-id"] for asked in service.asked}) == 1


def test_reads_are_tried_four_times_at_most(service: ScriptedService) -> None:
    service.script("Get", *[UNAVAILABLE] * 9)
    with client_of(service) as client, pytest.raises(StoreUnavailableError) as raised:
        client.get("proposal", "p1")
    assert len(service.asked) == 4
    assert raised.value.metadata == {"store": "aurora"}


@pytest.mark.parametrize(("method", "call", "answer"), WRITES)
def test_writes_are_never_repeated(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, UNAVAILABLE, answer)
    with client_of(service) as client, pytest.raises(StoreUnavailableError) as raised:
        call(client)
    assert [asked.method for asked in service.asked] == [method]
    assert raised.value.maybe_applied is False


@pytest.mark.parametrize(("method", "call", "answer"), [*READS, *WRITES])
def test_nothing_is_repeated_under_overload(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, OVERLOADED, answer)
    with (
        client_of(service) as client,
        pytest.raises(OverloadedError, match=r"retry after 1\.5 s") as raised,
    ):
        call(client)
    assert len(service.asked) == 1
    assert raised.value.retry_after == 1.5
    assert raised.value.maybe_applied is False


@pytest.mark.parametrize(("method", "call", "answer"), READS)
def test_retries_can_be_turned_off(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, UNAVAILABLE, answer)
    with client_of(service, retries=False) as client, pytest.raises(StoreUnavailableError):
        call(client)
    assert len(service.asked) == 1


@contextmanager
def nobody() -> Iterator[str]:
    """An address that refuses every connection: held by us, and not listened on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


def test_a_server_that_cannot_be_reached() -> None:
    with nobody() as target, Client(target, options=[DIRECT], retries=False) as client:
        with pytest.raises(UnavailableError, match="check the target") as raised:
            client.get("proposal", "p1")
        assert (raised.value.reason, raised.value.maybe_applied) == ("", False)
        with pytest.raises(WriteOutcomeUnknownError, match="strong=True") as unknown:
            client.save("proposal", "p1", {})
        assert (unknown.value.reason, unknown.value.maybe_applied) == ("", True)
        assert not isinstance(unknown.value, UnavailableError)


def test_a_server_that_goes_away_during_a_write(service: ScriptedService) -> None:
    service.script("Save", hold)
    with (
        serving(service) as (server, target),
        Client(target, options=[DIRECT], timeout=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        saving = pool.submit(client.save, "proposal", "p1", {})
        eventually(lambda: service.asked, within=10, what="the save has arrived")
        server.stop(0).wait()
        error = saving.exception(timeout=10)
    assert isinstance(error, WriteOutcomeUnknownError)
    assert error.maybe_applied is True
    assert len(service.asked) == 1


def test_a_read_outlives_the_restart_of_its_server(service: ScriptedService) -> None:
    service.script("Get", FOUND, FOUND)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        with serving(service) as (_, target):
            client = stack.enter_context(Client(target, options=[DIRECT], timeout=30))
            assert client.get("proposal", "p1").version == 1
        reading = pool.submit(client.get, "proposal", "p1")
        with serving(service, int(target.rpartition(":")[2])):
            assert reading.result(timeout=30).version == 1


def test_a_write_that_meets_its_deadline_may_have_been_applied(service: ScriptedService) -> None:
    service.script("Save", hold)
    with (
        client_of(service) as client,
        pytest.raises(DeadlineExceededError, match="may or may not have been applied") as raised,
    ):
        client.save("proposal", "p1", {}, timeout=0.1)
    assert raised.value.maybe_applied is True


def test_a_client_that_is_closed_during_a_write_does_not_know_its_outcome(
    service: ScriptedService,
) -> None:
    service.script("Save", hold)
    with client_of(service, timeout=30) as client, ThreadPoolExecutor(1) as pool:
        saving = pool.submit(client.save, "proposal", "p1", {})
        eventually(lambda: service.asked, within=10, what="the save has arrived")
        client.close()
        error = saving.exception(timeout=10)
    assert isinstance(error, Error)
    assert error.code is grpc.StatusCode.CANCELLED
    assert error.maybe_applied is True
