"""Snapshots and transactions: what the client sends, and what it makes of the answers."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from duostore import (
    Appended,
    Applied,
    Check,
    Delete,
    InternalError,
    InvalidRequestError,
    Key,
    Publish,
    RefusalError,
    Save,
    Saved,
    Snapshot,
    SnapshotNotFoundError,
    Transacted,
    VersionMismatchError,
)
from duostore.v1 import data_access_pb2, entity_pb2
from tests.support.answers import (
    UPDATED,
    appended,
    key_message,
    page,
    result,
    snapshot_message,
    stored,
    written,
)
from tests.support.scripted_service import ScriptedService, client_of, reason, status

P1 = Key("proposal", "p1")
ACME = Key("proposal", "пропозиція/7 ✓", "acme")


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


def test_publish_saves_a_snapshot(service: ScriptedService) -> None:
    answer = written(data_access_pb2.SaveResponse, 8, entity_pb2.PROJECTION_DONE)
    service.script("Save", answer, answer, answer)
    with client_of(service) as client:
        assert client.publish("proposal", ACME.id, tenant="acme") == Saved(
            8, UPDATED, projected=True
        )
        client.publish("proposal", "p1", 7, if_version=3)
        client.publish("proposal", "p1", 7, if_absent=True)
    newest, third, absent = (asked.request for asked in service.asked)
    assert newest.key == key_message(ACME)
    assert [newest.WhichOneof("content"), newest.from_snapshot] == ["from_snapshot", 0]
    assert newest.WhichOneof("precondition") is None
    assert [third.from_snapshot, third.if_version] == [7, 3]
    assert absent.if_absent


@pytest.mark.parametrize("replayed", [False, True])
def test_an_answer_that_was_given_before_is_told(service: ScriptedService, replayed: Any) -> None:
    service.script("Save", data_access_pb2.SaveResponse(version=1, replayed=replayed))
    service.script("Delete", data_access_pb2.DeleteResponse(version=2, replayed=replayed))
    service.script("Transact", data_access_pb2.TransactResponse(replayed=replayed))
    service.script("Snapshot", data_access_pb2.SnapshotResponse(sequence=1, replayed=replayed))
    with client_of(service) as client:
        assert client.save("proposal", "p1", {}).replayed is replayed
        assert client.delete("proposal", "p1").replayed is replayed
        assert client.transact([]).replayed is replayed
        assert client.snapshot("proposal", "p1", {}).replayed is replayed


def test_transact_sends_mutations_and_returns_their_results_in_order(
    service: ScriptedService,
) -> None:
    keys = [Key("account", id_, "acme") for id_ in "abcdefg"]
    service.script(
        "Transact",
        data_access_pb2.TransactResponse(
            results=[result(key, version) for version, key in enumerate(keys, start=1)],
            projection=entity_pb2.PROJECTION_DONE,
        ),
    )
    with client_of(service) as client:
        done = client.transact(
            [
                Save("account", "a", {"n": 1}, if_version=2),
                Save("account", "b", {}, if_absent=True),
                Save("account", "c", {"n": 3}),
                Publish("account", "d", 7, if_version=4),
                Delete("account", "e", if_version=5),
                Delete("account", "f"),
                Check("account", "g", 7),
            ],
            tenant="acme",
        )
    applied = tuple(Applied(key, version, UPDATED) for version, key in enumerate(keys, start=1))
    assert done == Transacted(applied, projected=True)
    sent = [json_format.MessageToDict(m) for m in service.asked[0].request.mutations]
    named = [{"tenant": "acme", "kind": "account", "id": id_} for id_ in "abcdefg"]
    assert sent == [
        {"save": {"key": named[0], "data": {"n": 1.0}, "ifVersion": "2"}},
        {"save": {"key": named[1], "data": {}, "ifAbsent": True}},
        {"save": {"key": named[2], "data": {"n": 3.0}}},
        {"save": {"key": named[3], "fromSnapshot": "7", "ifVersion": "4"}},
        {"delete": {"key": named[4], "ifVersion": "5"}},
        {"delete": {"key": named[5]}},
        {"check": {"key": named[6], "ifVersion": "7"}},
    ]


def test_the_mutation_that_is_refused_is_named(service: ScriptedService) -> None:
    service.script(
        "Transact",
        status(
            grpc.StatusCode.ABORTED,
            "mutations[1]: expected the entity at version 2, but it has version 5",
            reason("VERSION_MISMATCH", expected="2", version="5", mutation="1"),
        ),
    )
    with client_of(service) as client, pytest.raises(RefusalError) as raised:
        client.transact([Delete("account", "a"), Check("account", "b", 2)])
    assert isinstance(raised.value, VersionMismatchError)
    assert (raised.value.mutation, raised.value.expected, raised.value.version) == (1, 2, 5)


@pytest.mark.parametrize(
    "results",
    [
        pytest.param([], id="none"),
        pytest.param([result(Key("account", "b"), 1)], id="of another"),
        pytest.param([result(Key("account", "a", "acme"), 1)], id="of another tenant"),
        pytest.param([result(Key("account", "a"), 1)] * 2, id="too many"),
    ],
)
def test_results_of_other_mutations_are_refused(service: ScriptedService, results: Any) -> None:
    service.script("Transact", data_access_pb2.TransactResponse(results=results))
    with client_of(service) as client, pytest.raises(InternalError, match="1 mutations") as raised:
        client.transact([Delete("account", "a")])
    assert raised.value.maybe_applied


def test_a_transaction_that_cannot_be_meant_is_refused_unsent(service: ScriptedService) -> None:
    good = Check("account", "a", 1)
    with client_of(service) as client:
        with pytest.raises(InvalidRequestError, match=r"mutations\[1\]\.save\.if_absent: excludes"):
            client.transact([good, Save("account", "b", {}, if_version=1, if_absent=True)])
        with pytest.raises(InvalidRequestError, match=r"\[1\]\.save\.data\.n\[0\]: is a num"):
            client.transact([good, Save("account", "b", {"n": [2**53 + 1]})])
        with pytest.raises(TypeError, match=r"mutations\[1\] is of type dict"):
            client.transact([good, {"save": {}}])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="id is 7"):
            client.transact([Delete("account", 7)])  # type: ignore[arg-type]
    assert service.asked == []


def snapshot_of(key: Key, sequence: int) -> Snapshot:
    return Snapshot(key.tenant, key.kind, key.id, sequence, {"n": sequence}, UPDATED)


def test_snapshot_appends_a_document(service: ScriptedService) -> None:
    service.script("Snapshot", appended(41), appended(42))
    with client_of(service) as client:
        done = client.snapshot("proposal", ACME.id, {"n": 1}, tenant="acme")
        client.snapshot("proposal", "p1", {})
        with pytest.raises(InvalidRequestError, match=r"data\.n: is nan"):
            client.snapshot("proposal", "p1", {"n": float("nan")})
    assert done == Appended(41, UPDATED)
    first, empty = (asked.request for asked in service.asked)
    assert first.key == key_message(ACME)
    assert first.data == stored(ACME, {"n": 1}).data
    assert empty.HasField("data")


def test_get_snapshot_returns_it_as_plain_values(service: ScriptedService) -> None:
    for key, sequence in ((ACME, 7), (P1, 7)):
        message = snapshot_message(key, sequence)
        service.script("GetSnapshot", data_access_pb2.GetSnapshotResponse(snapshot=message))
    with client_of(service) as client:
        found = client.get_snapshot("proposal", ACME.id, tenant="acme")
        assert client.get_snapshot("proposal", "p1", 7) == snapshot_of(P1, 7)
    assert found == snapshot_of(ACME, 7)
    assert (found.key, type(found.data["n"])) == (ACME, int)
    assert [asked.request.sequence for asked in service.asked] == [0, 7]


def test_a_snapshot_that_is_not_there_is_an_error(service: ScriptedService) -> None:
    absent = status(
        grpc.StatusCode.NOT_FOUND, "no snapshot 7", reason("SNAPSHOT_NOT_FOUND", sequence="7")
    )
    service.script("GetSnapshot", absent)
    service.script("Save", absent)
    with client_of(service) as client:
        with pytest.raises(SnapshotNotFoundError) as raised:
            client.get_snapshot("proposal", "p1", 7)
        assert raised.value.sequence == 7
        with pytest.raises(SnapshotNotFoundError):
            client.publish("proposal", "p1", 7)


@pytest.mark.parametrize("sequence", [0, 7])
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(data_access_pb2.GetSnapshotResponse(), id="none"),
        pytest.param(
            data_access_pb2.GetSnapshotResponse(snapshot=snapshot_message(ACME, 7)), id="of another"
        ),
    ],
)
def test_a_snapshot_of_another_entity_is_refused(
    service: ScriptedService, answer: data_access_pb2.GetSnapshotResponse, sequence: int
) -> None:
    service.script("GetSnapshot", answer)
    with client_of(service) as client, pytest.raises(InternalError, match="another snapshot"):
        client.get_snapshot("proposal", "p1", sequence)


def test_another_snapshot_than_was_asked_for_is_refused(service: ScriptedService) -> None:
    answer = data_access_pb2.GetSnapshotResponse(snapshot=snapshot_message(P1, 8))
    service.script("GetSnapshot", answer)
    with client_of(service) as client, pytest.raises(InternalError, match="another snapshot"):
        client.get_snapshot("proposal", "p1", 7)


def test_snapshots_are_listed_over_all_pages_as_they_are_taken(service: ScriptedService) -> None:
    service.script(
        "ListSnapshots", page(ACME, 9, 8, token="t1"), page(ACME, token="t2"), page(ACME, 3)
    )
    with client_of(service) as client:
        listed = client.list_snapshots("proposal", ACME.id, tenant="acme", page_size=2)
        assert service.asked == []
        assert [next(listed), next(listed)] == [snapshot_of(ACME, 9), snapshot_of(ACME, 8)]
        assert len(service.asked) == 1
        assert list(listed) == [snapshot_of(ACME, 3)], "an empty page is not the last"
    asked = [asked.request for asked in service.asked]
    assert [(request.page_size, request.page_token) for request in asked] == [
        (2, ""),
        (2, "t1"),
        (2, "t2"),
    ]
    assert all(request.key == key_message(ACME) for request in asked)
    assert len({asked.metadata["x-request-id"] for asked in service.asked}) == 3


def test_no_snapshots_are_no_error(service: ScriptedService) -> None:
    service.script("ListSnapshots", page(P1))
    with client_of(service) as client:
        assert list(client.list_snapshots("proposal", "p1")) == []


def test_a_page_that_breaks_the_contract_is_refused(service: ScriptedService) -> None:
    service.script("ListSnapshots", page(ACME, 1))
    service.script("ListSnapshots", page(P1, 1, token="t1"), page(P1, 1, token="t1"))
    with client_of(service) as client:
        with pytest.raises(InternalError, match="of another entity"):
            list(client.list_snapshots("proposal", "p1"))
        with pytest.raises(InternalError, match="the same again"):
            list(client.list_snapshots("proposal", "p1"))
