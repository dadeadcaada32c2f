"""What a write does, to which stores and in which order."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.domain.errors import (
    DuostoreError,
    EntityExistsError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    ReadOnlyError,
    SnapshotNotFoundError,
    Store,
    StoreUnavailableError,
    VersionMismatchError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.transactions import (
    Check,
    Delete,
    FromSnapshot,
    IfAbsent,
    IfVersion,
    Save,
)
from tests.support.reader_stack import down
from tests.support.writer_stack import (
    HOUR,
    NOON,
    NOTE,
    ORIGIN,
    PROPOSAL,
    STATE,
    WriterStack,
    soon,
)

if TYPE_CHECKING:
    from duostore_server.domain.keys import EntityKey

OTHER = replace(PROPOSAL, id="2")
K: dict[str, Any] = {"idempotency_key": "k-1"}


def transact(stack: WriterStack, *requests: Any, **options: Any) -> Any:
    return stack.writer.transact(requests, soon(), origin=ORIGIN, **options)


def violations(error: pytest.ExceptionInfo[InvalidRequestError]) -> dict[str, str]:
    return {violation.field: violation.description for violation in error.value.violations}


def test_a_save_is_committed_put_and_busted_in_this_order() -> None:
    stack = WriterStack()
    outcome = stack.save()
    assert (outcome.answer[0].version, outcome.projected, outcome.replayed) == (1, True, False)
    assert stack.asked == ["aurora.write", "dynamodb.put_all", "cache.invalidate"]
    assert len(stack.completions) == 1
    assert stack.answers == []


def test_a_duplicate_that_dynamodb_remembers_does_not_touch_aurora() -> None:
    stack = WriterStack()
    first = stack.save(**K)
    stack.send_answers()
    again = stack.save(**K)
    assert again == replace(first, replayed=True)
    assert stack.asked == ["records.read"]


@pytest.mark.parametrize("remembers", [False, True])
def test_a_duplicate_is_replayed_whether_dynamodb_answers_or_not(*, remembers: bool) -> None:
    stack = WriterStack()
    first = stack.save(**K, precondition=IfAbsent())
    if not remembers:
        stack.records.before["read"] = down(Store.DYNAMODB)
    again = stack.save(**K, precondition=IfAbsent())
    assert again == replace(first, replayed=True)
    assert stack.rows.read((PROPOSAL,), soon())[PROPOSAL].version == 1


def test_a_duplicate_brings_what_the_interrupted_call_did_not() -> None:
    stack = WriterStack()
    stack.projections.before["put_all"] = down(Store.DYNAMODB)
    assert not stack.save(**K).projected
    del stack.projections.before["put_all"]
    again = stack.save(**K)
    assert again.replayed
    assert again.projected
    assert stack.stored.held[PROPOSAL].version == 1


def test_what_dynamodb_remembers_does_not_claim_more_than_was_told() -> None:
    stack = WriterStack()
    stack.projections.before["put_all"] = down(Store.DYNAMODB)
    assert not stack.save(**K).projected
    stack.send_answers()
    again = stack.save(**K)
    assert (again.replayed, again.projected) == (True, False)
    assert stack.asked == ["records.read"]


def test_a_dynamodb_that_hangs_leaves_a_keyed_save_time_for_aurora() -> None:
    stack = WriterStack()
    left: list[float] = []
    stack.records.before["read"] = lambda *args: left.append(args[-1].remaining())
    stack.save(**K)
    assert left
    assert left[0] < 6, "of ten seconds"


def test_the_same_key_with_another_request_is_refused() -> None:
    stack = WriterStack()
    stack.save(**K)
    others: list[dict[str, Any]] = [
        {"content": {"a": 2}},
        {"key": OTHER},
        {"precondition": IfVersion(1)},
        {"precondition": IfAbsent()},
        {"content": FromSnapshot(1)},
    ]
    stack.snapshot({"a": 1})
    for remembers in (False, True):
        if remembers:
            stack.send_answers()
        for other in others:
            with pytest.raises(IdempotencyKeyReusedError):
                stack.save(**K, **other)
        with pytest.raises(IdempotencyKeyReusedError):
            stack.writer.delete(PROPOSAL, None, soon(), origin=ORIGIN, **K)
        with pytest.raises(IdempotencyKeyReusedError):
            transact(stack, Save(PROPOSAL, {"a": 1}, None), **K)
    assert stack.rows.read((PROPOSAL,), soon())[PROPOSAL].version == 1


def test_the_same_request_said_otherwise_is_the_same() -> None:
    stack = WriterStack()
    stack.save(content={"a": 1, "b": 2.0}, **K)
    assert stack.save(content={"b": 2, "a": 1.0}, **K).replayed


def test_the_same_key_of_another_tenant_is_another() -> None:
    stack = WriterStack()
    stack.save(**K)
    assert not stack.save(replace(PROPOSAL, tenant="other"), {"a": 2}, **K).replayed


def test_a_refused_write_is_not_remembered() -> None:
    stack = WriterStack()
    stack.save()
    with pytest.raises(EntityExistsError):
        stack.save(precondition=IfAbsent(), **K)
    stack.writer.delete(PROPOSAL, None, soon(), origin=ORIGIN)
    assert stack.save(precondition=IfAbsent(), **K).answer[0].version == 3


def test_a_published_snapshot_becomes_the_next_version() -> None:
    stack = WriterStack()
    for number in range(3):
        stack.snapshot({"draft": number})
    stack.save(content=FromSnapshot(2))
    assert stack.rows.read((PROPOSAL,), soon())[PROPOSAL].data == {"draft": 1}
    stack.save(content=FromSnapshot(0), precondition=IfVersion(1))
    assert stack.rows.read((PROPOSAL,), soon())[PROPOSAL].data == {"draft": 2}
    with pytest.raises(VersionMismatchError):
        stack.save(content=FromSnapshot(0), precondition=IfVersion(1))
    with pytest.raises(SnapshotNotFoundError):
        stack.save(content=FromSnapshot(4))


def test_a_publication_is_replayed_though_newer_snapshots_came_or_it_expired() -> None:
    stack = WriterStack()
    stack.snapshot({"draft": 1})
    stack.save(content=FromSnapshot(0), **K)
    stack.snapshot({"draft": 2})
    stack.send_answers()
    assert stack.save(content=FromSnapshot(0), **K).replayed
    stack.snapshots_kept.appended.clear()
    assert stack.save(content=FromSnapshot(0), **K).replayed


@pytest.mark.parametrize("several", [False, True])
def test_a_publication_that_only_aurora_remembers_is_replayed_without_its_snapshot(
    *, several: bool
) -> None:
    stack = WriterStack()
    stack.snapshot({"draft": 1})

    def publish() -> Any:
        if several:
            return transact(stack, Save(PROPOSAL, FromSnapshot(1), None), **K)
        return stack.save(content=FromSnapshot(1), **K)

    first = publish()
    stack.snapshots_kept.appended.clear()
    assert publish() == replace(first, projected=False, replayed=True)
    stack.snapshots.before["read"] = down(Store.DYNAMODB)
    assert publish().replayed
    stack.rows.purge(10, soon())
    with pytest.raises(IdempotencyKeyReusedError):
        stack.save(content=FromSnapshot(2), **K)


@pytest.mark.parametrize("key", [NOTE, STATE])
def test_a_kind_that_keeps_no_snapshots_publishes_none(key: EntityKey) -> None:
    with pytest.raises(InvalidRequestError) as error:
        WriterStack().save(key, FromSnapshot(1))
    assert list(violations(error)) == ["from_snapshot"]


def test_a_transaction_is_committed_put_and_busted_in_one_call_each() -> None:
    stack = WriterStack()
    stack.save(OTHER)
    stack.asked.clear()
    outcome = transact(stack, Save(PROPOSAL, {"a": 1}, None), Check(OTHER, 1))
    assert [applied.version for applied in outcome.answer] == [1, 1]
    assert outcome.projected
    assert stack.asked == ["aurora.write", "dynamodb.put_all", "cache.invalidate"]
    assert len(stack.completions) == 2


def test_a_transaction_with_an_async_kind_is_pending() -> None:
    stack = WriterStack()
    outcome = transact(stack, Save(PROPOSAL, {"a": 1}, None), Save(NOTE, {"a": 1}, None))
    assert not outcome.projected
    assert list(stack.stored.held) == [PROPOSAL]


def test_a_refusal_names_its_mutation_also_when_there_is_one() -> None:
    stack = WriterStack()
    stack.save()
    with pytest.raises(VersionMismatchError, match=r"mutations\[0\]") as refusal:
        transact(stack, Save(PROPOSAL, {"a": 1}, IfVersion(7)))
    assert refusal.value.metadata == {"expected": "7", "version": "1", "mutation": "0"}
    with pytest.raises(VersionMismatchError) as refusal:
        transact(stack, Delete(PROPOSAL, None), Check(OTHER, 1))
    assert refusal.value.mutation == 1
    assert stack.rows.read((PROPOSAL,), soon())[PROPOSAL].data is not None


def test_a_snapshot_that_is_not_there_is_named_by_its_mutation() -> None:
    stack = WriterStack()
    with pytest.raises(SnapshotNotFoundError, match=r"mutations\[1\]") as refusal:
        transact(stack, Save(OTHER, {}, None), Save(PROPOSAL, FromSnapshot(3), None))
    assert refusal.value.metadata == {"sequence": "3", "mutation": "1"}
    assert stack.rows.read((OTHER,), soon()) == {}


def test_all_that_is_wrong_with_a_transaction_is_told_by_field() -> None:
    with pytest.raises(InvalidRequestError) as error:
        transact(
            WriterStack(),
            Save(PROPOSAL, {"a": 1}, IfVersion(0)),
            Save(replace(PROPOSAL, tenant="x"), None, None),
            Delete(PROPOSAL, None),
            Check(replace(PROPOSAL, id=""), 0),
            Save(STATE, {"a": 1}, None),
            Save(NOTE, {"a": 2.0**60}, None),
            idempotency_key="k" * 129,
        )
    told = violations(error)
    assert set(told) == {
        "idempotency_key",
        "mutations[0].save.if_version",
        "mutations[1].save.key.tenant",
        "mutations[1].save.data",
        "mutations[2].delete.key",
        "mutations[3].check.key.id",
        "mutations[3].check.if_version",
        "mutations[4].save.key.kind",
        "mutations[5].save.data.a",
    }
    assert told["mutations[2].delete.key"] == "is the same key as that of mutations[0]"


@pytest.mark.parametrize("count", [0, 101])
def test_a_transaction_has_1_to_100_mutations(count: int) -> None:
    requests = [Save(replace(PROPOSAL, id=str(number)), {}, None) for number in range(count)]
    with pytest.raises(InvalidRequestError) as error:
        transact(WriterStack(), *requests)
    assert violations(error) == {"mutations": f"has {count}; 1 to 100 are allowed"}


def test_a_kind_at_home_in_dynamodb_is_written_there_and_then_busted() -> None:
    stack = WriterStack()
    outcome = stack.save(STATE, {"line": 3}, precondition=IfAbsent())
    assert stack.asked == ["heads.write", "cache.invalidate"]
    assert (outcome.answer[0].version, outcome.projected) == (1, True)
    (change,) = stack.heads_written.changes
    assert codec.document_of(change.payload or b"") == {"line": 3}
    assert (change.now, change.ttl, change.precondition) == (NOON, timedelta(hours=24), IfAbsent())
    assert change.idempotency is None
    stack.save(STATE, **K)
    idempotency = stack.heads_written.changes[1].idempotency
    assert idempotency is not None
    assert (str(idempotency.key), idempotency.keep) == ("acme#k-1", HOUR)


def test_at_home_in_dynamodb_an_unheard_bust_is_told() -> None:
    stack = WriterStack()
    stack.cache.before["invalidate"] = down(Store.CACHE)
    assert not stack.save(STATE).projected


def test_at_home_in_dynamodb_a_write_of_unknown_outcome_is_busted() -> None:
    stack = WriterStack()

    def lose(*_: object) -> None:
        raise WriteOutcomeUnknownError(Store.DYNAMODB)

    stack.heads.before["write"] = lose
    with pytest.raises(WriteOutcomeUnknownError):
        stack.save(STATE)
    assert stack.asked == ["heads.write", "cache.invalidate"]


@pytest.mark.parametrize("error", [VersionMismatchError(1, 2), StoreUnavailableError(Store.AURORA)])
def test_what_was_not_committed_is_not_propagated(error: DuostoreError) -> None:
    stack = WriterStack()

    def refuse(*_: object) -> None:
        raise error

    stack.authority.before["write"] = refuse
    with pytest.raises(type(error)):
        stack.save(**K)
    assert stack.asked == ["records.read", "aurora.write"]
    assert stack.answers == []


@pytest.mark.parametrize("kind", [PROPOSAL, NOTE, STATE])
def test_what_is_read_only_is_not_written(kind: EntityKey) -> None:
    stack = WriterStack()
    stack.read_only = {kind.kind}
    with pytest.raises(ReadOnlyError, match="maintenance"):
        stack.save(kind)
    with pytest.raises(ReadOnlyError):
        stack.writer.delete(kind, None, soon(), origin=ORIGIN)
    assert stack.asked == []


def test_a_transaction_is_refused_if_it_writes_what_is_read_only_and_not_if_it_checks_it() -> None:
    stack = WriterStack()
    stack.save(OTHER)
    stack.save(NOTE)
    stack.read_only = {NOTE.kind}
    transact(stack, Save(PROPOSAL, {"a": 1}, None), Check(NOTE, 1))
    with pytest.raises(ReadOnlyError):
        transact(stack, Save(PROPOSAL, {"a": 2}, None), Save(NOTE, {"a": 2}, None))


@pytest.mark.parametrize("kind", [PROPOSAL, NOTE, STATE])
@pytest.mark.parametrize("remembered", [True, False])
def test_a_write_that_was_applied_is_replayed_though_its_kind_is_read_only(
    kind: EntityKey, *, remembered: bool
) -> None:
    stack = WriterStack()
    first = stack.save(kind, **K)
    if remembered:
        stack.send_answers()
    stack.read_only = {kind.kind}
    again = stack.save(kind, **K)
    assert (again.answer, again.replayed) == (first.answer, True)
    with pytest.raises(IdempotencyKeyReusedError):
        stack.save(kind, {"a": 2}, **K)
    with pytest.raises(ReadOnlyError):
        stack.save(kind, idempotency_key="k-2")


def test_snapshots_go_on_while_writes_are_refused() -> None:
    stack = WriterStack()
    stack.read_only = {PROPOSAL.kind}
    assert stack.snapshot({"a": 1}).sequence == 1
