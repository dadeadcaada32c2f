"""What is promised of kinds at home in DynamoDB, over real stores."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from duostore.v1 import data_access_pb2 as pb
from duostore.v1.entity_pb2 import PROJECTION_DONE, STORE_CACHE, STORE_DYNAMODB
from tests.rpc.test_data_access import data_of, refused
from tests.rpc.test_snapshots import publish, snapshot
from tests.support.service import CALL_SECONDS, Caller
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.in_process import InProcess


@pytest.fixture
def states(channel: grpc.Channel) -> Caller:
    """Somebody who calls for a kind at home in DynamoDB."""
    return Caller(channel, kind="state")


@pytest.fixture
def _without_aurora(api: InProcess) -> Iterator[None]:
    """Fail the test if a call asks Aurora for entities, or writes them."""

    def calls() -> float:
        return sum(
            api.metric("duostore_store_calls_total", store="aurora", op=op)
            for op in ("read", "write")
        )

    before = calls()
    yield
    assert calls() == before


@pytest.mark.usefixtures("_without_aurora")
def test_every_call_does_without_aurora(states: Caller, id_: str) -> None:
    document: dict[str, Any] = {
        "title": "Ünïcode 😀",
        "n": 2**53 - 1,
        "deep": [{"a": [None, True]}],
    }
    with refused() as absent:
        states.get(id_)
    assert absent.metadata == {"version": "0"}
    saved = states.save(id_, document, if_absent=True, idempotency_key=id_)
    assert (saved.version, saved.projection) == (1, PROJECTION_DONE)
    assert states.save(id_, document, if_absent=True, idempotency_key=id_).replayed
    first, second, strong = states.get(id_), states.get(id_), states.get(id_, strong=True)
    assert [r.receipt.served_from for r in (first, second, strong)] == [
        STORE_DYNAMODB,
        STORE_CACHE,
        STORE_DYNAMODB,
    ]
    assert first.entity == second.entity == strong.entity
    assert data_of(first) == document
    assert first.entity.create_time == first.entity.update_time == saved.update_time
    request = pb.BatchGetRequest(keys=[states.key(id_), states.key(f"{id_}-other")])
    batch = states.stub.BatchGet(request, timeout=CALL_SECONDS)
    assert [e.version for e in batch.entities] == [1]
    assert list(batch.missing) == [states.key(f"{id_}-other")]
    assert states.delete(id_, if_version=1).version == 2
    with refused() as deleted:
        states.get(id_)
    assert deleted.metadata == {"version": "2"}


def test_an_entity_ends_with_its_ttl_and_its_versions_go_on(
    channel: grpc.Channel, id_: str
) -> None:
    sessions = Caller(channel, kind="session")
    saved = sessions.save(id_, {"n": 1})

    def is_gone() -> bool:
        try:
            found = sessions.get(id_)
        except grpc.RpcError:
            return True
        assert found.entity == first.entity
        return False

    first = sessions.get(id_)
    assert sessions.get(id_).receipt.served_from == STORE_CACHE
    eventually(is_gone, within=10, what="the entity has expired")
    for freshness in ({}, {"strong": True}, {"min_version": saved.version}):
        with refused() as refusal:
            sessions.get(id_, **freshness)
        assert refusal.reason == "ENTITY_NOT_FOUND"
    with refused() as gone:
        sessions.delete(id_)
    assert gone.reason == "ENTITY_NOT_FOUND"
    again = sessions.save(id_, {"n": 2}, if_absent=True)
    assert again.version == saved.version + 1
    entity = sessions.get(id_).entity
    assert (entity.version, entity.create_time) == (again.version, again.update_time)


@pytest.mark.usefixtures("_without_aurora")
def test_a_document_that_is_too_large_for_an_item_is_refused(states: Caller, id_: str) -> None:
    with refused() as refusal:
        states.save(id_, {"text": secrets.token_urlsafe(500_000)})
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refusal.fields) == ["data"]
    # Compresses well.
    assert states.save(id_, {"text": "x" * 2_000_000}).version == 1
    assert len(data_of(states.get(id_))["text"]) == 2_000_000


def test_such_kinds_have_no_snapshots(states: Caller, id_: str) -> None:
    with refused() as unkept:
        snapshot(states, id_, {})
    assert list(unkept.fields) == ["key.kind"]
    with refused() as unpublished:
        publish(states, id_)
    assert list(unpublished.fields) == ["from_snapshot"]
