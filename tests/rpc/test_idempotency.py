"""A call with an idempotency key is applied once, over real stores."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import grpc

from duostore.v1 import data_access_pb2 as pb
from tests.rpc.test_data_access import data_of, refused
from tests.rpc.test_snapshots import listed, read, snapshot
from tests.rpc.test_transact import delete, save, transact
from tests.support.service import CALL_SECONDS, Caller

if TYPE_CHECKING:
    from collections.abc import Callable


def twice(call: Callable[[], Any]) -> Any:
    """Make a call two times and once more; return the answer, which says that it is replayed."""
    first, *again = (call() for _ in range(3))
    assert first.replayed is False
    for answer in again:
        assert answer.replayed is True
        answer.replayed = False
        assert answer == first
    return first


def test_a_save_is_applied_once(either: Caller, id_: str) -> None:
    saved = twice(lambda: either.save(id_, {"n": 1}, if_absent=True, idempotency_key=id_))
    assert saved.version == 1
    assert either.save(id_, {"n": 2}).version == 2
    repeated = either.save(id_, {"n": 1}, if_absent=True, idempotency_key=id_)
    assert (repeated.version, repeated.replayed) == (1, True)
    assert data_of(either.get(id_)) == {"n": 2}


def test_a_delete_is_applied_once(either: Caller, id_: str) -> None:
    either.save(id_, {"n": 1})
    assert twice(lambda: either.delete(id_, idempotency_key=id_)).version == 2
    with refused() as refusal:
        either.get(id_, strong=True)
    assert refusal.metadata == {"version": "2"}


def test_a_transaction_is_applied_once(notes: Caller, id_: str) -> None:
    ids = [f"{id_}-{n}" for n in range(3)]
    notes.save(ids[2], {"n": 0})
    mutations = (
        save(notes.key(ids[1]), {"n": 1}),
        save(notes.key(ids[0]), {"n": 1}),
        delete(notes.key(ids[2])),
    )
    answer = twice(lambda: transact(notes, *mutations, idempotency_key=id_))
    assert [r.version for r in answer.results] == [1, 1, 2]
    assert notes.get(ids[1], strong=True).entity.version == 1


def test_a_snapshot_is_appended_once(notes: Caller, id_: str) -> None:
    snapshot(notes, id_, {"n": 0})
    taken = twice(lambda: snapshot(notes, id_, {"n": 1}, idempotency_key=id_))
    assert read(notes, id_) == (taken.sequence, {"n": 1})
    assert len(listed(notes, id_).snapshots) == 2
    assert snapshot(notes, id_, {"n": 2}).sequence > taken.sequence
    assert len(listed(notes, id_).snapshots) == 3


def test_a_key_that_was_used_for_another_request_is_refused(either: Caller, id_: str) -> None:
    either.save(id_, {"n": 1}, idempotency_key=id_)
    others: list[Callable[[], Any]] = [
        lambda: either.save(id_, {"n": 2}, idempotency_key=id_),
        lambda: either.save(f"{id_}-other", {"n": 1}, idempotency_key=id_),
        lambda: either.save(id_, {"n": 1}, if_version=1, idempotency_key=id_),
        lambda: either.delete(id_, idempotency_key=id_),
    ]
    for other in others:
        with refused() as refusal:
            other()
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "IDEMPOTENCY_KEY_REUSED",
        )
        assert list(refusal.fields) == ["idempotency_key"]
    assert either.get(id_, strong=True).entity.version == 1


def test_what_was_refused_is_not_remembered(either: Caller, id_: str) -> None:
    with refused():
        either.save(id_, {"n": 1}, if_version=1, idempotency_key=id_)
    either.save(id_, {"n": 0})
    saved = either.save(id_, {"n": 1}, if_version=1, idempotency_key=id_)
    assert (saved.version, saved.replayed) == (2, False)


def test_a_key_belongs_to_its_tenant(notes: Caller, id_: str) -> None:
    for tenant in ("a", "b"):
        key = notes.key(id_)
        key.tenant = tenant
        request = pb.SaveRequest(key=key, idempotency_key=id_)
        request.data.update({"of": tenant})
        assert notes.stub.Save(request, timeout=CALL_SECONDS).replayed is False


def test_a_key_that_cannot_be_one_is_refused(either: Caller, id_: str) -> None:
    for key in ("x" * 129, "a\n"):
        with refused() as refusal:
            either.save(id_, {}, idempotency_key=key)
        assert list(refusal.fields) == ["idempotency_key"]


def test_of_many_at_the_same_time_one_is_applied(either: Caller, id_: str) -> None:
    def attempt(_: int) -> tuple[int, bool] | grpc.StatusCode:
        try:
            saved = either.save(id_, {"n": 1}, idempotency_key=id_)
        except grpc.RpcError as error:
            return cast("grpc.Call", error).code()
        return saved.version, saved.replayed

    with ThreadPoolExecutor(8) as pool:
        answers: Counter[object] = Counter(pool.map(attempt, range(24)))
    assert answers[1, False] == 1
    assert set(answers) <= {(1, False), (1, True), grpc.StatusCode.ABORTED}
    assert either.get(id_, strong=True).entity.version == 1
