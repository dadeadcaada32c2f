"""What the client makes of failures: its errors, and what it tries again."""

from __future__ import annotations

import re
import socket
import threading
import time
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
    Delete,
    DuplicateInProgressError,
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
from duostore.connection import Connection
from duostore.retries import Retries
from duostore.status import Call, Repeat
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
    from google.rpc import status_pb2

# Deadlines travel with two or three digits, rounded up.
ROUNDED = 1.05

KEY = entity_pb2.EntityKey(kind="proposal", id="p1")
FOUND = data_access_pb2.GetResponse(entity=entity_pb2.Entity(key=KEY, version=1))
ALL_FOUND = data_access_pb2.BatchGetResponse(entities=[FOUND.entity])
SAVED = data_access_pb2.SaveResponse(key=KEY, version=1)
DELETED = data_access_pb2.DeleteResponse(key=KEY, version=2)

TRANSACTED = data_access_pb2.TransactResponse(
    results=[data_access_pb2.MutationResult(key=KEY, version=2)]
)
APPENDED = data_access_pb2.SnapshotResponse(sequence=1)
SNAPSHOT_FOUND = data_access_pb2.GetSnapshotResponse(
    snapshot=entity_pb2.EntitySnapshot(key=KEY, sequence=1)
)
SNAPSHOTS_FOUND = data_access_pb2.ListSnapshotsResponse(snapshots=[SNAPSHOT_FOUND.snapshot])
ALLOWED = data_access_pb2.QuotaResponse(allowed=True)
RESERVED = data_access_pb2.QuotaResponse(allowed=True, reservation="r1")
SETTLED = data_access_pb2.SettleQuotaResponse(committed=7)

LOST = status(
    grpc.StatusCode.UNKNOWN,
    "the answer of aurora was lost",
    reason("WRITE_OUTCOME_UNKNOWN", store="aurora"),
)
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


def publish(client: Client) -> object:
    return client.publish("proposal", "p1")


def transact(client: Client) -> object:
    return client.transact([Delete("proposal", "p1")])


def snapshot(client: Client) -> object:
    return client.snapshot("proposal", "p1", {})


def get_snapshot(client: Client) -> object:
    return client.get_snapshot("proposal", "p1")


def list_snapshots(client: Client) -> object:
    return list(client.list_snapshots("proposal", "p1"))


def peek_quota(client: Client) -> object:
    return client.peek_quota("api_calls", "ann")


def reserve_quota(client: Client) -> object:
    return client.reserve_quota("api_calls", "ann")


def settle_quota(client: Client) -> object:
    return client.settle_quota("r1", cost=7)


READS = [
    pytest.param("Get", read, FOUND, id="get"),
    pytest.param("BatchGet", read_many, ALL_FOUND, id="batch_get"),
    pytest.param("GetSnapshot", get_snapshot, SNAPSHOT_FOUND, id="get_snapshot"),
    pytest.param("ListSnapshots", list_snapshots, SNAPSHOTS_FOUND, id="list_snapshots"),
    pytest.param("Quota", peek_quota, ALLOWED, id="peek_quota"),
]
KEYED_WRITES = [
    pytest.param("Save", save, SAVED, id="save"),
    pytest.param("Save", publish, SAVED, id="publish"),
    pytest.param("Delete", delete, DELETED, id="delete"),
    pytest.param("Transact", transact, TRANSACTED, id="transact"),
    pytest.param("Quota", reserve_quota, RESERVED, id="reserve_quota"),
]
WRITES = [
    *KEYED_WRITES,
    pytest.param("Snapshot", snapshot, APPENDED, id="snapshot"),
    pytest.param("SettleQuota", settle_quota, SETTLED, id="settle_quota"),
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


@pytest.mark.parametrize(("method", "call", "answer"), [*READS, *WRITES])
def test_a_call_is_tried_again_while_something_is_unavailable(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, UNAVAILABLE, UNAVAILABLE, answer)
    with client_of(service, timeout=60) as client:
        assert call(client)
    assert [asked.method for asked in service.asked] == [method] * 3
    assert len({asked.metadata["x-request-id"] for asked in service.asked}) == 1
    assert all(asked.request == service.asked[0].request for asked in service.asked)


@pytest.mark.parametrize(("method", "call", "answer"), WRITES)
def test_a_write_is_tried_again_until_its_outcome_is_known(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, LOST, busy(), answer)
    with client_of(service, timeout=60) as client:
        assert call(client)
    assert len(service.asked) == 3
    assert all(asked.request == service.asked[0].request for asked in service.asked)


def busy(seconds: float = 0.0) -> status_pb2.Status:
    delay = Duration(nanos=round(seconds * 1e9) % 10**9, seconds=int(seconds))
    return status(
        grpc.StatusCode.ABORTED,
        "a call with the same idempotency key is under way",
        reason("DUPLICATE_IN_PROGRESS"),
        error_details_pb2.RetryInfo(retry_delay=delay),
    )


@pytest.mark.parametrize(("method", "call", "answer"), KEYED_WRITES)
def test_each_write_gets_an_idempotency_key_of_its_own(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, answer, answer)
    with client_of(service) as client:
        call(client)
        call(client)
    first, second = (asked.request.idempotency_key for asked in service.asked)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_a_snapshot_gets_no_idempotency_key(service: ScriptedService) -> None:
    service.script("Snapshot", APPENDED)
    with client_of(service) as client:
        snapshot(client)
    assert service.asked[0].request.idempotency_key == ""


def test_the_caller_s_idempotency_key_is_sent_as_it_is(service: ScriptedService) -> None:
    service.script("Save", SAVED, SAVED)
    service.script("Delete", DELETED)
    service.script("Transact", TRANSACTED)
    service.script("Snapshot", APPENDED)
    with client_of(service, retries=False) as client:
        client.save("proposal", "p1", {}, idempotency_key="k")
        client.publish("proposal", "p1", idempotency_key="k")
        client.delete("proposal", "p1", idempotency_key="k")
        client.transact([Delete("proposal", "p1")], idempotency_key="k")
        client.snapshot("proposal", "p1", {}, idempotency_key="k")
    assert [asked.request.idempotency_key for asked in service.asked] == ["k"] * 5


def test_a_write_without_idempotency_key_is_tried_once(service: ScriptedService) -> None:
    service.script("Save", UNAVAILABLE, SAVED)
    with client_of(service) as client, pytest.raises(StoreUnavailableError) as raised:
        client.save("proposal", "p1", {}, idempotency_key="")
    assert [asked.request.idempotency_key for asked in service.asked] == [""]
    assert (raised.value.maybe_applied, raised.value.idempotency_key) == (False, "")


def test_what_was_decided_is_not_tried_again(service: ScriptedService) -> None:
    mismatch = status(
        grpc.StatusCode.ABORTED, "no", reason("VERSION_MISMATCH", expected="2", version="5")
    )
    service.script("Save", LOST, mismatch, SAVED)
    with client_of(service) as client, pytest.raises(VersionMismatchError) as raised:
        client.save("proposal", "p1", {}, if_version=2)
    assert len(service.asked) == 2
    assert raised.value.maybe_applied is False, "nor was the first try applied"


def test_a_call_is_tried_until_its_time_is_up_and_then_says_what_was_wrong(
    service: ScriptedService,
) -> None:
    service.script("Get", *[UNAVAILABLE] * 99)
    with client_of(service, timeout=2) as client, pytest.raises(StoreUnavailableError) as raised:
        client.get("proposal", "p1")
    assert 3 <= len(service.asked) <= 6
    assert f"tried {len(service.asked)} times" in str(raised.value)
    assert raised.value.metadata == {"store": "aurora"}
    left = [asked.remaining for asked in service.asked]
    assert left == sorted(left, reverse=True)
    assert left[0] <= 2 * ROUNDED, "one timeout bounds all tries"


def test_a_write_that_any_try_may_have_applied_may_have_been_applied(
    service: ScriptedService,
) -> None:
    service.script("Save", LOST, *[UNAVAILABLE] * 99)
    with client_of(service, timeout=1) as client, pytest.raises(WriteOutcomeUnknownError) as raised:
        client.save("proposal", "p1", {})
    error = raised.value
    assert (error.maybe_applied, error.reason) == (True, "STORE_UNAVAILABLE")
    assert error.idempotency_key == service.asked[0].request.idempotency_key
    assert all(asked.request == service.asked[0].request for asked in service.asked)


def test_the_server_says_when_to_try_again(service: ScriptedService) -> None:
    service.script("Save", busy(0.4), SAVED)
    with client_of(service) as client:
        save(client)
    first, second = (asked.remaining for asked in service.asked)
    assert first - second > 0.35


def test_what_would_come_too_late_is_not_waited_for(service: ScriptedService) -> None:
    service.script("Save", busy(60), SAVED)
    began = time.monotonic()
    with client_of(service) as client, pytest.raises(DuplicateInProgressError) as raised:
        save(client)
    assert time.monotonic() - began < 5
    assert len(service.asked) == 1
    assert (raised.value.retry_after, raised.value.maybe_applied) == (60, False)


class _Patient(Retries):
    """Waits for a minute before each try, and says when it begins to."""

    def __init__(self) -> None:
        super().__init__(lambda: 1.0)
        self.is_waiting = threading.Event()

    def wait(self, failure: Error, tries: int, left: float) -> float:
        super().wait(failure, tries, left)
        self.is_waiting.set()
        return 60.0


def test_a_connection_that_is_closed_waits_no_longer(service: ScriptedService) -> None:
    service.script("Save", UNAVAILABLE, SAVED)
    retries = _Patient()
    request = data_access_pb2.SaveRequest(key=KEY)
    call = Call("save('proposal', 'p1')", "r-1", Repeat.KEYED, "k")
    with serving(service) as (_, target), ThreadPoolExecutor(1) as pool:
        connection = Connection(
            target, credentials=None, metadata=(), options=(DIRECT,), retries=retries
        )
        saving = pool.submit(connection.call, lambda stub: stub.Save, request, call, 100.0)
        assert retries.is_waiting.wait(10)
        connection.close()
        error = saving.exception(timeout=10)
    assert isinstance(error, StoreUnavailableError)
    assert len(service.asked) == 1


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


@pytest.mark.parametrize(("method", "call", "answer"), [*READS, *WRITES])
def test_retries_can_be_turned_off(
    service: ScriptedService, method: str, call: Callable[[Client], object], answer: Message
) -> None:
    service.script(method, UNAVAILABLE, answer)
    with client_of(service, retries=False) as client, pytest.raises(StoreUnavailableError):
        call(client)
    assert len(service.asked) == 1
    assert getattr(service.asked[0].request, "idempotency_key", "") == ""


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
        saving = pool.submit(client.save, "proposal", "p1", {}, idempotency_key="")
        eventually(lambda: service.asked, within=10, what="the save has arrived")
        server.stop(0).wait()
        error = saving.exception(timeout=10)
    assert isinstance(error, WriteOutcomeUnknownError)
    assert error.maybe_applied is True
    assert len(service.asked) == 1


def test_a_write_outlives_the_restart_of_its_server(service: ScriptedService) -> None:
    service.script("Save", hold, SAVED)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        with serving(service) as (_, target):
            client = stack.enter_context(Client(target, options=[DIRECT], timeout=30))
            saving = pool.submit(client.save, "proposal", "p1", {})
            eventually(lambda: service.asked, within=10, what="the save has arrived")
        with serving(service, int(target.rpartition(":")[2])):
            assert saving.result(timeout=30).version == 1
    lost, repeated = (asked.request for asked in service.asked)
    assert lost == repeated


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
