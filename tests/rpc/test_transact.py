"""What Transact promises, over real stores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest

from duostore.v1 import data_access_pb2 as pb
from duostore.v1 import entity_pb2
from duostore.v1.entity_pb2 import PROJECTION_DONE, PROJECTION_PENDING
from tests.rpc.test_data_access import data_of, refused
from tests.rpc.test_snapshots import snapshot
from tests.support.service import CALL_SECONDS, Caller, struct

if TYPE_CHECKING:
    from tests.support.in_process import InProcess


def save(key: entity_pb2.EntityKey, data: dict[str, Any], **options: Any) -> pb.Mutation:
    return pb.Mutation(save=pb.SaveMutation(key=key, data=struct(data), **options))


def delete(key: entity_pb2.EntityKey, **options: Any) -> pb.Mutation:
    return pb.Mutation(delete=pb.DeleteMutation(key=key, **options))


def check(key: entity_pb2.EntityKey, version: int) -> pb.Mutation:
    return pb.Mutation(check=pb.VersionCheck(key=key, if_version=version))


def transact(caller: Caller, *mutations: pb.Mutation, **options: Any) -> pb.TransactResponse:
    request = pb.TransactRequest(mutations=mutations, **options)
    return caller.stub.Transact(request, timeout=CALL_SECONDS)


def test_everything_is_applied_and_seen_at_once(notes: Caller, proposals: Caller, id_: str) -> None:
    gone, checked = f"{id_}-gone", f"{id_}-checked"
    kept = notes.save(checked, {"n": "kept"})
    notes.save(gone, {"n": "old"})
    notes.get(gone)
    snapshot(proposals, id_, {"title": "drafted"})
    answer = transact(
        notes,
        save(notes.key(id_), {"n": 1}, if_absent=True),
        delete(notes.key(gone), if_version=1),
        pb.Mutation(save=pb.SaveMutation(key=proposals.key(id_), from_snapshot=0)),
        check(notes.key(checked), 1),
    )
    assert [(r.key.kind, r.key.id, r.version) for r in answer.results] == [
        ("note", id_, 1),
        ("note", gone, 2),
        ("proposal", id_, 1),
        ("note", checked, 1),
    ]
    assert (answer.projection, answer.replayed) == (PROJECTION_DONE, False)
    assert answer.results[3].update_time == kept.update_time
    assert notes.get(id_).entity.update_time == answer.results[0].update_time
    assert data_of(notes.get(id_)) == {"n": 1}
    assert data_of(proposals.get(id_)) == {"title": "drafted"}
    with refused() as deleted:
        notes.get(gone)
    assert deleted.metadata == {"version": "2"}
    assert notes.get(checked).entity.version == 1


@pytest.mark.parametrize(
    ("refuse", "code", "reason"),
    [
        (lambda key: save(key, {}, if_version=4), grpc.StatusCode.ABORTED, "VERSION_MISMATCH"),
        (lambda key: delete(key, if_version=4), grpc.StatusCode.ABORTED, "VERSION_MISMATCH"),
        (lambda key: check(key, 4), grpc.StatusCode.ABORTED, "VERSION_MISMATCH"),
        (
            lambda key: save(key, {}, if_absent=True),
            grpc.StatusCode.ALREADY_EXISTS,
            "ENTITY_EXISTS",
        ),
    ],
    ids=["save", "delete", "check", "absent"],
)
def test_if_one_mutation_is_refused_none_is_applied(
    notes: Caller, id_: str, refuse: Any, code: grpc.StatusCode, reason: str
) -> None:
    ids = [f"{id_}-{n}" for n in range(4)]
    notes.save(ids[2], {"n": "old"})
    with refused() as refusal:
        transact(
            notes,
            save(notes.key(ids[3]), {"n": 1}),
            save(notes.key(ids[0]), {"n": 1}),
            refuse(notes.key(ids[2])),
            save(notes.key(ids[1]), {"n": 1}),
        )
    assert (refusal.code, refusal.reason) == (code, reason)
    assert refusal.metadata["mutation"] == "2"
    assert refusal.metadata["version"] == "1"
    assert refusal.subjects == ["mutations[2]"]
    assert refusal.message.startswith("mutations[2]: ")
    for name in (ids[0], ids[1], ids[3]):
        with refused() as absent:
            notes.get(name, strong=True)
        assert absent.metadata == {"version": "0"}
    assert notes.get(ids[2]).entity.version == 1


def test_a_deletion_of_what_is_not_there_is_refused_in_a_transaction_of_one(
    notes: Caller, id_: str
) -> None:
    with refused() as refusal:
        transact(notes, delete(notes.key(id_)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "ENTITY_NOT_FOUND")
    assert refusal.metadata == {"version": "0", "mutation": "0"}


def test_a_hundred_mutations_are_one_transaction(notes: Caller, id_: str) -> None:
    keys = [notes.key(f"{id_}-{n}") for n in range(101)]
    with refused() as refusal:
        transact(notes, *(save(key, {}) for key in keys))
    assert list(refusal.fields) == ["mutations"]
    for version in (1, 2):
        answer = transact(notes, *(save(key, {"n": version}) for key in keys[:100]))
        assert [r.version for r in answer.results] == [version] * 100
        assert [r.key for r in answer.results] == keys[:100]
    assert data_of(notes.get(keys[99].id)) == {"n": 2}


def test_a_kind_that_is_projected_in_the_background_leaves_it_pending(
    notes: Caller, channel: grpc.Channel, id_: str
) -> None:
    tags = Caller(channel, kind="tag")
    answer = transact(notes, save(notes.key(id_), {"n": 1}), save(tags.key(id_), {"n": 2}))
    assert answer.projection == PROJECTION_PENDING
    assert data_of(notes.get(id_)) == {"n": 1}
    assert data_of(tags.get(id_, min_version=1)) == {"n": 2}


def test_every_bad_field_of_every_mutation_is_named(notes: Caller, id_: str) -> None:
    good = notes.key(id_)
    other_tenant = entity_pb2.EntityKey(tenant="acme", kind="note", id="1")
    at_home_in_dynamodb = entity_pb2.EntityKey(kind="state", id="1")
    with refused() as refusal:
        transact(
            notes,
            save(good, {"a": float("inf")}, if_version=0),
            delete(good),
            save(entity_pb2.EntityKey(kind="proposal", id="x\n"), {"title": "", "odd": 1}),
            check(entity_pb2.EntityKey(kind="unknown", id="1"), 0),
            delete(other_tenant),
            delete(at_home_in_dynamodb),
            pb.Mutation(save=pb.SaveMutation(key=notes.key(f"{id_}-2"), from_snapshot=-1)),
            pb.Mutation(save=pb.SaveMutation(key=notes.key(f"{id_}-3"))),
            idempotency_key="x" * 129,
        )
    assert refusal.reason == "INVALID_REQUEST"
    assert set(refusal.fields) == {
        "idempotency_key",
        "mutations[0].save.data.a",
        "mutations[0].save.if_version",
        "mutations[1].delete.key",
        "mutations[2].save.key.id",
        "mutations[3].check.key.kind",
        "mutations[3].check.if_version",
        "mutations[4].delete.key.tenant",
        "mutations[5].delete.key.kind",
        "mutations[6].save.from_snapshot",
        "mutations[7].save.data",
    }


def test_mutations_that_cannot_be_converted_are_named(notes: Caller, id_: str) -> None:
    with refused() as refusal:
        transact(
            notes,
            pb.Mutation(),
            save(notes.key(id_), {}, if_absent=False),
            save(entity_pb2.EntityKey(kind="proposal", id=id_), {"title": "x" * 600_000}),
        )
    assert set(refusal.fields) == {
        "mutations[0]",
        "mutations[1].save.if_absent",
        "mutations[2].save.data",
    }
    with refused() as empty:
        transact(notes)
    assert set(empty.fields) == {"mutations"}


def test_every_write_is_audited_with_who_asked_for_it(
    api: InProcess, notes: Caller, id_: str
) -> None:
    def audit(name: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(api.dsn, autocommit=True) as connection:
            return connection.execute(
                "SELECT version, operation, caller, request_id FROM duostore.audit"
                " WHERE tenant = '' AND kind = 'note' AND entity_id = %s ORDER BY version",
                (name,),
            ).fetchall()

    who = (("x-caller", "ann@example.com"), ("x-request-id", "r-1"))
    request = pb.TransactRequest(
        mutations=[save(notes.key(id_), {}), save(notes.key(f"{id_}-2"), {})]
    )
    notes.stub.Transact(request, timeout=CALL_SECONDS, metadata=who)
    notes.stub.Delete(pb.DeleteRequest(key=notes.key(id_)), timeout=CALL_SECONDS, metadata=who[1:])
    with refused():
        notes.delete(id_)
    assert audit(id_) == [
        (1, "save", "ann@example.com", "r-1"),
        (2, "delete", "", "r-1"),
    ]
    assert audit(f"{id_}-2") == [(1, "save", "ann@example.com", "r-1")]
