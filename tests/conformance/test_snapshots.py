"""What every engine of the snapshots promises.

Otherwise, by engine: ``embedded`` counts the base64 of a payload, so that the largest
snapshot that DynamoDB takes is refused there.
"""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuplicateInProgressError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import Appended, SnapshotPage, StoredSnapshot
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.head_items import micros, number
from duostore_server.storage.dynamodb.head_payloads import held
from duostore_server.storage.dynamodb.snapshots import open_snapshots
from tests.support.dynamodb_traffic import Traffic
from tests.support.snapshot_engines import (
    COMPRESS_ABOVE,
    KEY,
    START,
    client_of,
    engine_on,
    idempotency,
    key_of,
    soon,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal
    from tests.support.snapshot_engines import Engine

TEXT = b"an acknowledged snapshot is the newest until the next one; " * 50
OTHER_HASH = bytes(32)
THREADS = 8


@pytest.fixture(scope="module")
def dynamodb_client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with closing(client_of(dynamodb.endpoint_url)) as client:
        yield client


@pytest.fixture(scope="module")
def embedded_client() -> Iterator[DynamoDBClient]:
    with EmbeddedDynamoDB() as server, closing(client_of(server.endpoint_url)) as client:
        yield client


@pytest.fixture(params=["dynamodb_local", "embedded"])
def engine(request: pytest.FixtureRequest, table_prefix: str) -> Iterator[Engine]:
    embedded = request.param == "embedded"
    client: DynamoDBClient = request.getfixturevalue(
        "embedded_client" if embedded else "dynamodb_client"
    )
    with engine_on(client, table_prefix, counts_base64=embedded) as engine:
        yield engine


def stored(sequence: int, payload: bytes = b"payload") -> StoredSnapshot:
    return StoredSnapshot(sequence, payload, START)


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize("in_history", [True, False])
@pytest.mark.parametrize("payload", [b"", b"payload", TEXT, bytes(range(256))])
def test_what_is_appended_is_read(
    engine: Engine, payload: bytes, *, in_history: bool, once: Any
) -> None:
    assert engine.append(payload, in_history=in_history, once=once) == Appended(1, START)
    assert engine.read() == engine.read(1) == stored(1, payload)
    assert engine.history() == [stored(1, payload)]
    assert (engine.item(KEY, 1) is not None) == in_history
    assert engine.unreadable == []


def test_what_was_never_appended_is_missing(engine: Engine) -> None:
    assert engine.read() is None
    assert engine.read(1) is None
    assert engine.history() == []
    engine.append()
    assert engine.read(2) is None
    assert engine.read(key=key_of(2)) is None
    assert engine.history(key_of(2)) == []


def test_each_is_newer_than_the_one_before(engine: Engine) -> None:
    for n in range(1, 6):
        engine.clock.turn(seconds=1)
        by = engine.others if n % 2 else engine.snapshots
        assert engine.append(b"%d" % n, by=by) == Appended(n, engine.clock())
        assert engine.read() == StoredSnapshot(n, b"%d" % n, engine.clock())
    assert engine.read(2) == StoredSnapshot(2, b"2", START + timedelta(seconds=2))


def test_without_history_only_the_newest_is_there(engine: Engine) -> None:
    for n in range(1, 4):
        engine.append(b"%d" % n, in_history=False)
    assert engine.read() == engine.read(3) == stored(3, b"3")
    assert engine.read(2) is None
    assert engine.history() == [stored(3, b"3")]


def test_a_small_snapshot_replaces_a_compressed_one_entirely(engine: Engine) -> None:
    engine.append(TEXT)
    item = engine.item()
    assert item is not None
    assert item["encoding"] == {"S": "zstd"}
    assert len(item["payload"]["B"]) < COMPRESS_ABOVE // 4
    engine.append(TEXT[:COMPRESS_ABOVE])
    item = engine.item()
    assert item is not None
    assert item["payload"] == {"B": TEXT[:COMPRESS_ABOVE]}
    assert "encoding" not in item
    assert [snapshot.payload for snapshot in engine.history()] == [TEXT[:COMPRESS_ABOVE], TEXT]


@pytest.mark.parametrize("once", [False, True], ids=["plain", "once"])
def test_of_concurrent_appends_none_is_lost_and_no_sequence_used_twice(
    engine: Engine, *, once: bool
) -> None:
    """Two instances and eight threads; each sees its own sequences grow."""
    each = 6 if once else 12

    def append(thread: int) -> dict[int, bytes]:
        acknowledged: dict[int, bytes] = {}
        by = engine.others if thread % 2 else engine.snapshots
        for n in range(each):
            payload = b"%d %d" % (thread, n)
            for repetition in itertools.count():
                try:
                    appended = engine.append(
                        payload, once=idempotency(payload.decode()) if once else None, by=by
                    )
                except DuplicateInProgressError:
                    # Nothing was written: it is safe to repeat.
                    assert repetition < 100
                else:
                    break
            assert not appended.replayed
            assert appended.sequence > max(acknowledged, default=0)
            acknowledged[appended.sequence] = payload
        return acknowledged

    with ThreadPoolExecutor(THREADS) as pool:
        acknowledged = list(pool.map(append, range(THREADS)))
    everything = {sequence: payload for part in acknowledged for sequence, payload in part.items()}
    assert sorted(everything) == list(range(1, THREADS * each + 1))
    assert {s.sequence: s.payload for s in engine.history()} == everything
    assert engine.read() == stored(THREADS * each, everything[THREADS * each])


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100])
def test_pages_hold_each_snapshot_once_newest_first(engine: Engine, limit: int) -> None:
    for n in range(1, 8):
        engine.append(b"%d" % n)
    page = engine.page(limit=limit)
    assert [s.sequence for s in page.snapshots] == list(range(7, 0, -1))[:limit]
    assert page.more or limit >= 7
    assert engine.history(limit=limit) == [stored(n, b"%d" % n) for n in range(7, 0, -1)]
    assert engine.page(1, limit).snapshots == ()
    assert engine.page(4, 2).snapshots == (stored(3, b"3"), stored(2, b"2"))
    assert not engine.page(limit=100).more


def test_pages_do_not_shift_while_others_append(engine: Engine) -> None:
    for _ in range(9):
        engine.append()
    found: list[int] = []
    page = engine.page(limit=2)
    while page.snapshots:
        found += [snapshot.sequence for snapshot in page.snapshots]
        engine.append()
        page = engine.page(found[-1], 2)
    assert found == list(range(9, 0, -1))
    assert not page.more


def test_a_head_whose_history_is_on_its_way_is_listed(engine: Engine) -> None:
    for _ in range(3):
        engine.append()
    engine.client.delete_item(
        TableName=engine.table, Key={"pk": {"S": str(KEY)}, "sk": {"S": f"{3:020}"}}
    )
    assert engine.history(limit=1) == engine.history() == [stored(3), stored(2), stored(1)]
    page = engine.page(limit=2)
    assert (page.snapshots, page.more) == ((stored(3), stored(2)), True)
    assert engine.read(3) == stored(3)


def expire(engine: Engine, sequences: range, after: timedelta) -> None:
    for sequence in sequences:
        end = number(micros(START + after))
        engine.change(engine.item(KEY, sequence), expire_time=end)


def test_what_has_expired_is_gone_to_the_microsecond(engine: Engine) -> None:
    for _ in range(3):
        engine.append()
    expire(engine, range(1, 3), timedelta(hours=1))
    engine.clock.turn(hours=1, microseconds=-1)
    assert engine.read(1) == stored(1)
    assert engine.sequences() == [3, 2, 1]
    engine.clock.turn(microseconds=1)
    assert engine.read(1) is None
    assert engine.sequences() == [3]
    assert engine.read() == engine.read(3) == stored(3)


def test_pages_end_where_all_has_expired(engine: Engine) -> None:
    """There may be any number of items below that DynamoDB has not swept yet."""
    for _ in range(8):
        engine.append()
    expire(engine, range(1, 6), timedelta())
    assert engine.sequences() == [8, 7, 6]
    page = engine.page(7, 2)
    assert (page.snapshots, page.more) == ((stored(6),), True)
    with Traffic(engine.client).watched() as traffic:
        assert engine.page(5, 2) == SnapshotPage((), more=False)
    assert traffic.sent == {"Query": 1}
    expire(engine, range(1, 9), timedelta())
    assert engine.sequences() == [8]
    assert not engine.page(8, 2).more


def test_a_snapshot_has_no_end_on_a_head_that_had_one(engine: Engine) -> None:
    """A kind that was at home in DynamoDB may be moved to Aurora."""
    engine.append()
    past = number(micros(START))
    engine.change(engine.item(), expire_time=past, sweep_time=number(int(START.timestamp())))
    assert engine.read() is None
    assert engine.append().sequence == 2
    item = engine.item()
    assert item is not None
    assert not {"expire_time", "sweep_time"} & item.keys()
    assert engine.read() == stored(2)


def test_a_tombstone_is_no_snapshot(engine: Engine) -> None:
    engine.append()
    engine.change(engine.item(), form={"S": "tombstone"}, payload=None, number=number(2))
    assert engine.read() is None
    assert engine.sequences() == [1]
    assert engine.append().sequence == 3
    assert engine.unreadable == []


DAMAGE: dict[str, dict[str, Any]] = {
    "no payload": {"payload": None},
    "payload of text": {"payload": {"S": "p"}},
    "corrupt payload": {"payload": {"B": b"garbage"}, "encoding": {"S": "zstd"}},
    "unknown encoding": {"encoding": {"S": "brotli"}},
    "no time": {"time": None},
    "time of text": {"time": {"S": "now"}},
    "impossible time": {"time": {"N": "99999999999999999999"}},
}
HEAD_DAMAGE: dict[str, dict[str, Any]] = {
    **DAMAGE,
    "no form": {"form": None},
    "unknown form": {"form": {"S": "essay"}},
    "no number": {"number": None},
    "negative number": {"number": {"N": "-1"}},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_cannot_be_read_is_passed_over(engine: Engine, damage: dict[str, Any]) -> None:
    for _ in range(3):
        engine.append()
    engine.change(engine.item(KEY, 2), **damage)
    assert engine.read(2) is None
    assert engine.sequences() == [3, 1]
    for key, sequence, problem in engine.unreadable:
        assert (key, sequence) == (KEY, 2)
        assert problem
    assert len(engine.unreadable) == 2


@pytest.mark.parametrize("damage", HEAD_DAMAGE.values(), ids=HEAD_DAMAGE)
def test_a_head_that_cannot_be_read_is_passed_over(engine: Engine, damage: dict[str, Any]) -> None:
    engine.append()
    engine.change(engine.item(), **damage)
    assert engine.read() is None
    assert engine.read(1) == stored(1)
    assert engine.sequences() == [1]
    assert {key for key, _, _ in engine.unreadable} == {KEY}
    assert len(engine.unreadable) == 3


def noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
def test_what_is_too_large_for_an_item_is_refused(engine: Engine, once: Any) -> None:
    engine.append()
    with pytest.raises(InvalidRequestError, match="data: takes 409600 bytes") as caught:
        engine.append(noise(400 * 1024), once=once)
    (violation,) = caught.value.violations
    assert violation.field == "data"
    assert engine.read() == stored(1)
    assert engine.append(b"small again", once=once).sequence == 2


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
def test_the_largest_snapshot_is_taken(engine: Engine, once: Any) -> None:
    longest = EntityKey("t" * 64, "k" * 64, "i" * 512)
    room = 400 * 1024 - len(str(longest)) - 512
    with pytest.raises(InvalidRequestError):
        held(longest, noise(room + 1), compress_above=0)
    largest = noise(room)
    if engine.counts_base64:
        with pytest.raises(InvalidRequestError, match=f"data: takes {room} bytes"):
            engine.append(largest, longest, once=once)
        assert engine.read(key=longest) is None
        return
    assert engine.append(largest, longest, once=once).sequence == 1
    head = engine.found_when_due(longest)
    engine.settle(head, expire=1)
    assert engine.read(1, longest) == stored(1, largest)
    assert engine.append(largest, longest).sequence == 2


def test_compression_comes_before_the_limit(engine: Engine) -> None:
    large = TEXT * 1000
    assert engine.append(large).sequence == 1
    assert engine.read() == stored(1, large)


UNUSUAL = [
    EntityKey("", "proposal", "p-1"),
    EntityKey("acme", "proposal", "a#b##c"),
    EntityKey("acme", "proposal", "#"),
    EntityKey("acme", "proposal", " leading and trailing "),
    EntityKey("acme", "proposal", "quotes ' \" ? :payload \\"),
    EntityKey("acme", "proposal", "P-1"),
    EntityKey("acme", "proposal", "é"),
    EntityKey("acme", "proposal", "e\u0301"),
    EntityKey("日本", "種類", "🦆" * 128),
    EntityKey("t" * 64, "k" * 64, "i" * 512),
]


def test_unusual_keys_are_kept_apart(engine: Engine) -> None:
    keys = [KEY, *UNUSUAL]
    for n in (1, 2):
        for key in keys:
            assert engine.append(repr(key).encode(), key).sequence == n
    for key in keys:
        assert engine.history(key) == [stored(n, repr(key).encode()) for n in (2, 1)]


def test_a_repetition_adds_nothing(engine: Engine) -> None:
    engine.append(b"earlier")
    first = engine.append(b"mine", once=idempotency("k"))
    assert first == Appended(2, START)
    engine.append(b"later")
    engine.clock.turn(hours=1)
    for by in (engine.snapshots, engine.others):
        assert engine.append(b"mine", once=idempotency("k"), by=by) == Appended(
            2, START, replayed=True
        )
    assert engine.sequences() == [3, 2, 1]
    assert engine.read() == stored(3, b"later")


def test_a_key_that_is_used_again_is_refused(engine: Engine) -> None:
    engine.append(b"mine", once=idempotency("k"))
    for key in (KEY, key_of(2)):
        with pytest.raises(IdempotencyKeyReusedError):
            engine.append(b"other", key, once=idempotency("k", OTHER_HASH))
    assert engine.sequences() == [1]
    assert engine.read(key=key_of(2)) is None


def test_keys_are_those_of_a_tenant(engine: Engine) -> None:
    for n, tenant in enumerate(("acme", "", "acme2"), start=1):
        once = idempotency("k", bytes([n]) * 32, tenant)
        assert engine.append(once=once) == Appended(n, START)


def test_a_key_is_forgotten_after_its_time(engine: Engine) -> None:
    engine.append(b"mine", once=idempotency("k"))
    engine.clock.turn(hours=24, microseconds=-1)
    assert engine.append(b"mine", once=idempotency("k")).replayed
    engine.clock.turn(microseconds=1)
    again = engine.append(b"other", once=idempotency("k", OTHER_HASH))
    assert again == Appended(2, engine.clock())
    assert engine.append(b"other", once=idempotency("k", OTHER_HASH)).replayed


def test_a_refused_append_is_not_remembered(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError):
        engine.append(noise(400 * 1024), once=idempotency("k", OTHER_HASH))
    assert engine.append(once=idempotency("k")) == Appended(1, START)


def test_an_instance_that_guesses_wrong_finds_out(engine: Engine) -> None:
    for n in range(1, 9):
        by = engine.others if n % 3 else engine.snapshots
        assert engine.append(once=idempotency(f"k{n}"), by=by).sequence == n
    engine.client.delete_item(
        TableName=engine.table, Key={"pk": {"S": str(KEY)}, "sk": {"S": "HEAD"}}
    )
    # Whoever deletes a head has the numbers begin anew; nobody is to be stuck.
    assert engine.append(once=idempotency("k9")).sequence == 1


def test_of_concurrent_repetitions_one_is_applied(engine: Engine) -> None:
    engine.append()

    def append(thread: int) -> Appended:
        by = engine.others if thread % 2 else engine.snapshots
        for repetition in itertools.count():
            try:
                return engine.append(b"mine", once=idempotency("k"), by=by)
            except DuplicateInProgressError:
                assert repetition < 100
        raise AssertionError

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(append, range(THREADS)))
    assert {answer.sequence for answer in answers} == {2}
    assert sum(not answer.replayed for answer in answers) == 1
    assert engine.sequences() == [2, 1]


def test_nothing_is_begun_after_the_deadline(engine: Engine) -> None:
    late = Deadline.after(0)
    for once in (None, idempotency("k")):
        with pytest.raises(DeadlineExceededError):
            engine.append(once=once, deadline=late)
    with pytest.raises(DeadlineExceededError):
        engine.snapshots.read(KEY, 0, late)
    with pytest.raises(DeadlineExceededError):
        engine.snapshots.page(KEY, None, 1, late)
    assert engine.read() is None


def test_a_missing_table_is_a_store_that_cannot_be_used(engine: Engine) -> None:
    with open_snapshots(
        engine.client, prefix=f"{engine.prefix}other_", unreadable=lambda *_: None, timeout=20
    ) as lost:
        for once in (None, idempotency("k")):
            with pytest.raises(StoreUnavailableError):
                engine.append(once=once, by=lost)
        with pytest.raises(StoreUnavailableError):
            lost.read(KEY, 0, soon())
        with pytest.raises(StoreUnavailableError):
            lost.page(KEY, None, 1, soon())
