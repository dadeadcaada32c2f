"""What every engine of the dirty heads promises."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.domain.snapshots import DirtyHead
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.dirty import DynamoDirtyHeads
from duostore_server.storage.dynamodb.head_items import SHARDS, head_key, shard_of
from tests.support.snapshot_engines import (
    CONSOLIDATE_AFTER,
    KEY,
    PATIENCE_SECONDS,
    START,
    client_of,
    engine_on,
    key_of,
    soon,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.keys import EntityKey
    from tests.support.servers import DynamoDBLocal
    from tests.support.snapshot_engines import Engine

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def dynamodb_client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with closing(client_of(dynamodb.endpoint_url)) as client:
        yield client


@pytest.fixture(scope="module")
def embedded_client() -> Iterator[DynamoDBClient]:
    with EmbeddedDynamoDB() as server, closing(client_of(server.endpoint_url)) as client:
        yield client


@pytest.fixture(
    params=[
        "dynamodb_local",
        "single_updates",  # the same, with no statements
        "embedded",
    ]
)
def engine(request: pytest.FixtureRequest, table_prefix: str) -> Iterator[Engine]:
    client: DynamoDBClient = request.getfixturevalue(
        "embedded_client" if request.param == "embedded" else "dynamodb_client"
    )
    with engine_on(client, table_prefix, statements=request.param == "dynamodb_local") as engine:
        yield engine


def test_nothing_is_due_at_first(engine: Engine) -> None:
    assert engine.due() == []


@pytest.mark.parametrize("payload", [b"payload", b"compressed " * 1000])
def test_a_head_is_due_after_its_time(engine: Engine, payload: bytes) -> None:
    engine.append(payload)
    engine.clock.turn(seconds=CONSOLIDATE_AFTER.total_seconds(), microseconds=-1)
    assert engine.due() == []
    engine.clock.turn(microseconds=1)
    expected = DirtyHead(KEY, 1, payload, START, history=1)
    assert engine.found() == expected
    # It stays so until it is settled.
    assert engine.due() == [expected]


def test_the_oldest_snapshot_decides_when_and_the_newest_what(engine: Engine) -> None:
    engine.append(b"oldest")
    engine.clock.turn(seconds=20)
    engine.append(b"newest")
    engine.clock.turn(seconds=10)
    assert engine.found() == DirtyHead(KEY, 2, b"newest", START + timedelta(seconds=20), history=2)


def test_a_head_tells_how_far_its_history_goes(engine: Engine) -> None:
    engine.append()
    engine.append(in_history=False)
    assert engine.found_when_due().history == 1
    engine.append()
    assert engine.found().history == 3


def test_of_many_due_heads_some_are_told_and_that_there_are_more(engine: Engine) -> None:
    for number in range(5):
        engine.append(key=key_of(number))
    engine.clock.turn(seconds=CONSOLIDATE_AFTER.total_seconds())
    eventually(lambda: len(engine.due()) == 5, within=PATIENCE_SECONDS, what="all are due")
    some = engine.dirty.due(3, soon())
    assert (len(some.heads), some.more) == (3, True)
    assert not engine.dirty.due(6, soon()).more


def test_a_settled_head_is_clean_until_it_moves(engine: Engine) -> None:
    engine.append()
    engine.settle(engine.found_when_due())
    engine.clock.turn(days=1)
    assert engine.due() == []
    item = engine.item()
    assert item is not None
    assert not {"dirty_shard", "due_time"} & item.keys()
    engine.append()
    assert engine.due() == []
    assert engine.found_when_due().number == 2


def test_a_head_that_moves_before_it_is_settled_stays_due(engine: Engine) -> None:
    engine.append(b"old")
    head = engine.found_when_due()
    engine.append(b"new")
    engine.settle(head, expire=1)
    found = engine.found()
    assert (found.number, found.payload, found.expiring) == (2, b"new", 1)
    engine.settle(found)
    assert engine.due() == []


class Forgetful(DynamoDirtyHeads):
    """Clears the mark whatever has happened to the head."""

    def _update(self, key: EntityKey, condition: str, *args: Any, **kwargs: Any) -> bool:
        if condition == "#number = :number":
            condition = f"({condition}) OR attribute_exists(#number)"
        return super()._update(key, condition, *args, **kwargs)


@pytest.mark.parametrize("kind", [DynamoDirtyHeads, Forgetful])
def test_only_a_conditional_settlement_loses_nothing(
    engine: Engine, kind: type[DynamoDirtyHeads]
) -> None:
    engine.append()
    head = engine.found_when_due()
    engine.append()
    dirty = kind(engine.client, prefix=engine.prefix, unreadable=lambda *_: None, now=engine.clock)
    dirty.settle(head, expire=0, keep=HOUR, clean=True, next_due=engine.clock(), deadline=soon())
    item = engine.item()
    assert item is not None
    assert ("due_time" in item) == (kind is DynamoDirtyHeads)


def test_a_head_may_be_due_again_later(engine: Engine) -> None:
    engine.append()
    head = engine.found_when_due()
    later = engine.clock() + timedelta(seconds=30)
    engine.settle(head, next_due=later)
    # A snapshot in between does not defer it.
    engine.clock.turn(seconds=29)
    assert engine.due() == []
    engine.append()
    engine.clock.turn(seconds=1)
    assert engine.found().number == 2


def test_to_settle_again_does_no_harm(engine: Engine) -> None:
    engine.append()
    first = engine.found_when_due()
    engine.settle(first)
    engine.settle(first)
    assert engine.due() == []
    engine.append()
    engine.settle(first)
    # The newer one was not brought by whoever settles the older.
    second = engine.found_when_due()
    assert second.number == 2
    engine.settle(second, next_due=engine.clock())
    assert engine.found() == second


def test_history_expires_from_when_it_was_consolidated(engine: Engine) -> None:
    for n in range(1, 6):
        engine.append(b"%d" % n)
    engine.clock.turn(days=400)
    assert engine.sequences() == [5, 4, 3, 2, 1]
    engine.settle(engine.found(), expire=3, keep=HOUR, next_due=engine.clock())
    engine.clock.turn(minutes=30)
    head = engine.found()
    assert head.expiring == 3
    # Those that have an end keep it, though a settlement is repeated.
    engine.settle(replace(head, expiring=0), expire=4, keep=HOUR)
    engine.clock.turn(minutes=30, microseconds=-1)
    assert engine.sequences() == [5, 4, 3, 2, 1]
    engine.clock.turn(microseconds=1)
    assert engine.sequences() == [5, 4]
    engine.clock.turn(minutes=30)
    assert engine.sequences() == [5]
    engine.clock.turn(days=400)
    assert engine.sequences() == [5]


def test_dynamodb_sweeps_a_day_after_the_expiry(engine: Engine) -> None:
    engine.append()
    head = engine.found_when_due()
    engine.settle(head, expire=1, keep=HOUR)
    end = engine.clock() + HOUR
    item = engine.item(KEY, 1)
    assert item is not None
    assert item["sweep_time"] == {"N": str(int((end + timedelta(days=1)).timestamp()))}
    assert "sweep_time" not in (engine.item() or {})


def test_history_may_expire_at_once(engine: Engine) -> None:
    for _ in range(3):
        engine.append()
    engine.settle(engine.found_when_due(), expire=3, keep=timedelta())
    assert engine.sequences() == [3]
    assert engine.read(3) == engine.read()


def test_what_is_not_in_the_history_is_not_made_to_be(engine: Engine) -> None:
    for n in range(1, 61):
        engine.append(in_history=n in {1, 30, 60})
    engine.settle(engine.found_when_due(), expire=60, keep=HOUR)
    scan = engine.client.scan(TableName=engine.table, ConsistentRead=True)["Items"]
    assert sorted(item["sk"]["S"] for item in scan) == [f"{n:020}" for n in (1, 30, 60)] + ["HEAD"]
    assert all("expire_time" in item for item in scan if item["sk"]["S"] != "HEAD")
    engine.clock.turn(hours=1)
    assert engine.sequences() == [60]


def test_what_expires_already_is_not_looked_at_again(engine: Engine) -> None:
    for _ in range(3):
        engine.append()
    engine.settle(engine.found_when_due(), expire=2, next_due=engine.clock())
    for sequence in (1, 2):
        engine.change(engine.item(KEY, sequence), expire_time=None)
    head = engine.found()
    engine.settle(head, expire=1, next_due=engine.clock())
    assert engine.found() == head
    engine.settle(head, expire=3, next_due=engine.clock())
    assert [("expire_time" in (engine.item(KEY, n) or {})) for n in (1, 2, 3)] == [
        False,
        False,
        True,
    ]
    assert engine.found().expiring == 3


def test_a_head_that_is_gone_is_not_made_again(engine: Engine) -> None:
    engine.append(in_history=False)
    head = engine.found_when_due()
    engine.client.delete_item(TableName=engine.table, Key=head_key(KEY))
    engine.settle(head, expire=1)
    engine.settle(head, expire=1, next_due=engine.clock())
    assert engine.item() is None
    assert engine.due() == []


def test_a_deleted_entity_is_dirty_too(engine: Engine) -> None:
    engine.append()
    tombstone = {"form": {"S": "tombstone"}, "payload": None, "number": {"N": "2"}}
    engine.change(engine.item(), **tombstone)
    assert engine.found_when_due() == DirtyHead(KEY, 2, None, START, history=1)


@pytest.mark.parametrize(
    "damage", [{"payload": {"S": "p"}}, {"number": {"S": "1"}}, {"time": None}, {"form": None}]
)
def test_a_head_that_cannot_be_read_is_put_off(engine: Engine, damage: dict[str, Any]) -> None:
    engine.append()
    engine.append(key=key_of(2))
    engine.change(engine.item(), **damage)
    assert engine.found_when_due(key_of(2)).number == 1

    def told() -> bool:
        assert KEY not in {head.key for head in engine.due()}
        return bool(engine.unreadable)

    eventually(told, within=PATIENCE_SECONDS, what="the head is seen to be unreadable")
    ((key, shown, problem),) = engine.unreadable
    assert (key, shown) == (KEY, 0)
    assert problem
    engine.clock.turn(hours=1)
    eventually(
        lambda: (engine.due(), len(engine.unreadable) == 2)[1],
        within=PATIENCE_SECONDS,
        what="it is looked at again",
    )


def test_as_many_are_found_as_are_asked_for(engine: Engine) -> None:
    keys = [key_of(n) for n in range(60)]
    assert {shard_of(key) for key in keys} == {str(shard) for shard in range(SHARDS)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: engine.append(str(key).encode(), key), keys))
    engine.clock.turn(minutes=1)
    eventually(lambda: len(engine.due()) == 60, within=PATIENCE_SECONDS, what="all are due")
    for head in engine.due():
        assert head.payload == str(head.key).encode()
    found: set[EntityKey] = set()
    while len(found) < 60:
        heads = engine.due(7)
        assert len(heads) == min(7, 60 - len(found))
        for head in heads:
            engine.settle(head)
        found |= {head.key for head in heads}
    assert found == set(keys)
    assert engine.due() == []


def test_no_shard_waits_behind_the_others(engine: Engine) -> None:
    """Those that are due and not settled, whyever, do not hide the rest."""
    for n in range(60):
        engine.append(key=key_of(n), in_history=False)
    engine.clock.turn(minutes=1)
    eventually(lambda: len(engine.due()) == 60, within=PATIENCE_SECONDS, what="all are due")
    shards = {shard_of(head.key) for _ in range(SHARDS) for head in engine.due(1)}
    assert len(shards) == SHARDS


def test_consolidators_side_by_side_lose_nothing(engine: Engine) -> None:
    """Writers go on while two processes bring what is due: what each key has last is brought."""
    keys = [key_of(n) for n in range(4)]
    drafts: dict[EntityKey, int] = {}
    lock = threading.Lock()
    written = threading.Event()

    def bring() -> bool:
        heads = engine.due(3)
        for head in heads:
            with lock:
                drafts[head.key] = max(drafts.get(head.key, 0), head.number)
            engine.settle(head, expire=head.number - 1)
        return bool(heads)

    def consolidate() -> None:
        while not written.is_set():
            bring()

    def write(key: EntityKey) -> None:
        for _ in range(15):
            engine.append(key=key)
            engine.clock.turn(seconds=30)

    with ThreadPoolExecutor(6) as pool:
        consolidators = [pool.submit(consolidate) for _ in range(2)]
        try:
            list(pool.map(write, keys))
        finally:
            written.set()
        assert [consolidator.result() for consolidator in consolidators] == [None, None]
    engine.clock.turn(seconds=30)

    def all_brought() -> bool:
        bring()
        return all(drafts.get(key) == 15 for key in keys) and not engine.due()

    eventually(all_brought, within=PATIENCE_SECONDS, what="every head is brought")
    heads = [engine.item(key) or {} for key in keys]
    assert [head["number"] for head in heads] == [{"N": "15"}] * 4
    assert not any("due_time" in head for head in heads)


def test_nothing_is_begun_after_the_deadline(engine: Engine) -> None:
    engine.append()
    head = engine.found_when_due()
    late = Deadline.after(0)
    with pytest.raises(DeadlineExceededError):
        engine.dirty.due(1, late)
    with pytest.raises(DeadlineExceededError):
        engine.dirty.settle(head, expire=1, keep=HOUR, clean=True, next_due=START, deadline=late)
    assert engine.found() == head
    assert "expire_time" not in (engine.item(KEY, 1) or {})


def test_a_missing_table_is_a_store_that_cannot_be_used(engine: Engine) -> None:
    lost = DynamoDirtyHeads(
        engine.client, prefix=f"{engine.prefix}other_", unreadable=lambda *_: None
    )
    head = DirtyHead(KEY, 1, b"", START, 0)
    with pytest.raises(StoreUnavailableError):
        lost.due(1, soon())
    for expire in (0, 1):
        with pytest.raises(StoreUnavailableError):
            lost.settle(
                head, expire=expire, keep=HOUR, clean=True, next_due=engine.clock(), deadline=soon()
            )
