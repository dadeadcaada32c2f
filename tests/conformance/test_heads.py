"""What every engine of the heads promises.

Left out, by engine: ``embedded`` counts the base64 of a payload, so that it refuses the
largest item that DynamoDB takes. No engine loses an answer, or refuses a write for another
one that is under way: see ``tests/integration/test_dynamodb_heads.py``.
"""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    EntityExistsError,
    EntityNotFoundError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    RefusalError,
    StoreUnavailableError,
    VersionMismatchError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import Head, HeadWritten
from duostore_server.domain.transactions import IfAbsent, IfVersion
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.attributes import UnreadableError
from duostore_server.storage.dynamodb.heads import direct_heads
from tests.support.dynamodb_engines import never, patient_client
from tests.support.dynamodb_traffic import Traffic
from tests.support.head_engines import (
    COMPRESS_ABOVE,
    KEY,
    MICROSECOND,
    NOW,
    SECOND,
    Engine,
    change,
    direct,
    idempotency,
    soon,
    threaded,
)
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.transactions import Precondition
    from tests.support.servers import DynamoDBLocal

TEXT = b"what an editor has open, and where its cursor is; " * 50
NOISE = random.Random(1).randbytes(500 * 1024)
TTL = timedelta(hours=24)
WEEK = timedelta(days=7)


def key_of(number: int) -> EntityKey:
    return EntityKey("acme", "editor_state", f"s-{number}")


def micros(item: Mapping[str, Any], name: str) -> int:
    return int(item[name]["N"])


@pytest.fixture(scope="module")
def dynamodb_client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with patient_client(dynamodb.endpoint_url) as client:
        yield client


@pytest.fixture(scope="module")
def embedded_client() -> Iterator[DynamoDBClient]:
    with EmbeddedDynamoDB() as server, patient_client(server.endpoint_url) as client:
        yield client


@pytest.fixture(params=["dynamodb_local", "embedded", "simulated"])
def engine(request: pytest.FixtureRequest, table_prefix: str) -> Iterator[Engine]:
    if request.param == "simulated":
        yield direct(SimulatedDynamoDB().client, table_prefix, pause=lambda _: None)
        return
    fixture = {"dynamodb_local": "dynamodb_client", "embedded": "embedded_client"}[request.param]
    with threaded(request.getfixturevalue(fixture), table_prefix) as engine:
        yield engine


only_local = pytest.mark.parametrize("engine", ["dynamodb_local"], indirect=True)


@pytest.mark.parametrize("payload", [b"payload", TEXT, bytes(range(256)), b""])
def test_what_is_written_is_read(engine: Engine, payload: bytes) -> None:
    assert engine.write(payload) == HeadWritten(1, NOW)
    assert engine.read() == Head(1, payload, NOW, NOW, None)
    assert engine.unreadable == []


def test_what_was_never_written_is_missing(engine: Engine) -> None:
    engine.write()
    assert engine.heads.read((key_of(2), KEY), soon()).keys() == {KEY}
    assert engine.heads.read((), soon()) == {}


def test_each_write_is_the_next_version(engine: Engine) -> None:
    payloads = [b"one", TEXT, b"three", None, None, b"six", None, TEXT]
    held: list[Head | None] = []
    for number, payload in enumerate(payloads, 1):
        now = NOW + number * SECOND
        if payload is None and number == 5:
            with pytest.raises(EntityNotFoundError):
                engine.write(None, now=now)
            continue
        engine.write(payload, now=now)
        held.append(engine.read())
    at = [NOW + number * SECOND for number in range(9)]
    assert held == [
        Head(1, b"one", at[1], at[1], None),
        Head(2, TEXT, at[1], at[2], None),
        Head(3, b"three", at[1], at[3], None),
        Head(4, None, at[4], at[4], None),
        Head(5, b"six", at[6], at[6], None),
        Head(6, None, at[7], at[7], None),
        Head(7, TEXT, at[8], at[8], None),
    ]


def test_a_clock_that_was_set_back_does_not_take_the_time_with_it(engine: Engine) -> None:
    engine.write(b"ahead")
    assert engine.write(b"behind", now=NOW - 60 * SECOND) == HeadWritten(2, NOW)
    assert engine.read() == Head(2, b"behind", NOW, NOW, None)
    assert engine.write(b"more", IfVersion(2), now=NOW - 59 * SECOND) == HeadWritten(3, NOW)
    assert engine.write(None, now=NOW - 60 * SECOND) == HeadWritten(4, NOW)
    assert engine.write(b"again", IfAbsent(), now=NOW - 60 * SECOND) == HeadWritten(5, NOW)
    assert engine.read() == Head(5, b"again", NOW, NOW, None)


def test_it_lives_by_the_clock_of_its_last_writer(engine: Engine) -> None:
    engine.write(b"ahead", ttl=TTL)
    engine.write(b"behind", now=NOW - 60 * SECOND, ttl=TTL, consolidate_after=SECOND)
    assert engine.read() == Head(2, b"behind", NOW, NOW, NOW - 60 * SECOND + TTL)
    # It has expired by its own clock, whatever time it bears.
    engine.write(b"short", now=NOW - 60 * SECOND, ttl=SECOND)
    assert engine.write(b"new", IfAbsent(), now=NOW - 59 * SECOND) == HeadWritten(4, NOW)
    assert engine.read() == Head(4, b"new", NOW, NOW, None)


REFUSED: list[tuple[str, bytes | None, Precondition, RefusalError]] = [
    ("absent", b"p", IfVersion(1), VersionMismatchError(1, 0)),
    ("absent", None, None, EntityNotFoundError(0)),
    ("absent", None, IfVersion(1), VersionMismatchError(1, 0)),
    ("live", b"p", IfVersion(1), VersionMismatchError(1, 2)),
    ("live", b"p", IfVersion(3), VersionMismatchError(3, 2)),
    ("live", b"p", IfAbsent(), EntityExistsError(2)),
    ("live", None, IfVersion(1), VersionMismatchError(1, 2)),
    ("deleted", b"p", IfVersion(3), VersionMismatchError(3, 0)),
    ("deleted", b"p", IfVersion(2), VersionMismatchError(2, 0)),
    ("deleted", None, None, EntityNotFoundError(3)),
    ("deleted", None, IfVersion(3), VersionMismatchError(3, 0)),
    ("expired", b"p", IfVersion(2), VersionMismatchError(2, 0)),
    ("expired", None, None, EntityNotFoundError(2)),
    ("expired", None, IfVersion(2), VersionMismatchError(2, 0)),
]


def prepare(engine: Engine, state: str) -> None:
    if state == "absent":
        return
    engine.write(b"one", now=NOW - 2 * TTL)
    engine.write(b"two", now=NOW - TTL, ttl=TTL if state == "expired" else 2 * TTL)
    if state == "deleted":
        engine.write(None, now=NOW - SECOND)


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize(("state", "payload", "precondition", "expected"), REFUSED)
def test_a_change_whose_precondition_does_not_hold_is_refused(
    engine: Engine,
    state: str,
    payload: bytes | None,
    precondition: Precondition,
    expected: RefusalError,
    *,
    once: Any,
) -> None:
    prepare(engine, state)
    before = engine.read()
    with pytest.raises(type(expected)) as refused:
        engine.write(payload, precondition, once=once)
    assert refused.value.metadata == expected.metadata
    assert engine.read() == before
    if once is not None:
        assert engine.record(once) is None


APPLIED: list[tuple[str, bytes | None, Precondition, int]] = [
    ("absent", b"p", IfAbsent(), 1),
    ("absent", b"p", None, 1),
    ("live", b"p", IfVersion(2), 3),
    ("live", b"p", None, 3),
    ("live", None, None, 3),
    ("live", None, IfVersion(2), 3),
    ("deleted", b"p", IfAbsent(), 4),
    ("deleted", b"p", None, 4),
    ("expired", b"p", IfAbsent(), 3),
    ("expired", b"p", None, 3),
]


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize(("state", "payload", "precondition", "version"), APPLIED)
def test_a_change_whose_precondition_holds_is_applied(
    engine: Engine,
    state: str,
    payload: bytes | None,
    precondition: Precondition,
    version: int,
    *,
    once: Any,
) -> None:
    prepare(engine, state)
    assert engine.write(payload, precondition, once=once) == HeadWritten(version, NOW)
    kept = NOW - 2 * TTL if state == "live" and payload is not None else NOW
    assert engine.read() == Head(version, payload, kept, NOW, None)


def test_an_entity_expires_to_the_microsecond(engine: Engine) -> None:
    engine.write(b"one", ttl=TTL)
    head = engine.read()
    assert head == Head(1, b"one", NOW, NOW, NOW + TTL)
    assert head.is_live(NOW + TTL - MICROSECOND)
    assert not head.is_live(NOW + TTL)
    with pytest.raises(EntityExistsError):
        engine.write(b"two", IfAbsent(), now=NOW + TTL - MICROSECOND)
    with pytest.raises(VersionMismatchError):
        engine.write(b"two", IfVersion(1), now=NOW + TTL)
    engine.write(b"two", IfAbsent(), now=NOW + TTL, ttl=TTL)
    assert engine.read() == Head(2, b"two", NOW + TTL, NOW + TTL, NOW + 2 * TTL)
    engine.write(b"three", IfVersion(2), now=NOW + 2 * TTL - MICROSECOND, ttl=TTL)
    head = engine.read()
    assert head is not None
    assert head.create_time == NOW + TTL


def test_a_save_without_ttl_ends_the_expiry(engine: Engine) -> None:
    engine.write(b"one", ttl=TTL)
    engine.write(b"two", now=NOW + SECOND)
    assert engine.read() == Head(2, b"two", NOW, NOW + SECOND, None)
    assert not {"expire_time", "sweep_time"} & engine.item().keys()


def test_versions_begin_anew_a_week_after_an_expiry_at_the_earliest(engine: Engine) -> None:
    engine.write(b"one", ttl=TTL)
    assert micros(engine.item(), "sweep_time") == int((NOW + TTL + WEEK).timestamp())
    engine.write(None, now=NOW + SECOND, ttl=TTL)
    item = engine.item()
    assert "expire_time" not in item
    assert micros(item, "sweep_time") == int((NOW + SECOND + TTL + WEEK).timestamp())


def test_what_aurora_is_brought_is_never_swept(engine: Engine) -> None:
    engine.write(b"one", ttl=TTL, consolidate_after=SECOND)
    assert "sweep_time" not in engine.item()
    engine.write(None, ttl=TTL, consolidate_after=SECOND)
    assert "sweep_time" not in engine.item()


def test_the_oldest_change_decides_when_a_head_is_due(engine: Engine) -> None:
    engine.write(b"one")
    assert not {"dirty_shard", "due_time"} & engine.item().keys()
    engine.write(b"two", consolidate_after=30 * SECOND)
    item = engine.item()
    due = micros(item, "time") + 30_000_000
    assert micros(item, "due_time") == due
    engine.write(b"three", now=NOW + SECOND, consolidate_after=30 * SECOND)
    engine.write(None, now=NOW + SECOND, consolidate_after=30 * SECOND)
    item = engine.item()
    assert micros(item, "due_time") == due
    assert item["form"] == {"S": "tombstone"}
    assert item["dirty_shard"]["S"].isdecimal()


def test_an_item_holds_nothing_that_is_over(engine: Engine) -> None:
    always = {"pk", "sk", "number", "form", "time", "nonce"}
    engine.write(TEXT, ttl=TTL)
    value = always | {"payload", "create_time"}
    assert engine.item().keys() == value | {"encoding", "expire_time", "sweep_time"}
    engine.write(b"small", ttl=TTL)
    assert engine.item().keys() == value | {"expire_time", "sweep_time"}
    engine.write(None)
    assert engine.item().keys() == always


def test_payloads_are_compressed_past_a_size(engine: Engine) -> None:
    engine.write(TEXT[:COMPRESS_ABOVE])
    assert engine.item()["payload"] == {"B": TEXT[:COMPRESS_ABOVE]}
    engine.write(TEXT[: COMPRESS_ABOVE + 1])
    assert len(engine.item()["payload"]["B"]) < COMPRESS_ABOVE // 4
    head = engine.read()
    assert head is not None
    assert head.payload == TEXT[: COMPRESS_ABOVE + 1]


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
@pytest.mark.parametrize("size", [400 * 1024, 500 * 1024])
def test_what_is_too_large_for_an_item_is_refused(engine: Engine, size: int, once: Any) -> None:
    engine.write(b"small")
    with pytest.raises(InvalidRequestError) as refused:
        engine.write(NOISE[:size], once=once)
    assert [violation.field for violation in refused.value.violations] == ["data"]
    assert engine.read() == Head(1, b"small", NOW, NOW, None)
    assert engine.write(TEXT * 1000, once=once).version == 2


@pytest.mark.parametrize("once", [None, idempotency("k")], ids=["plain", "once"])
def test_what_an_engine_finds_too_large_is_refused_as_well(once: Any) -> None:
    """By a count of its own."""
    engine = direct(SimulatedDynamoDB(item_max=400).client)
    engine.write(b"small", once=once)
    with pytest.raises(InvalidRequestError) as refused:
        engine.write(NOISE[:400], once=idempotency("k-2") if once else None)
    assert [violation.field for violation in refused.value.violations] == ["data"]
    assert engine.read() == Head(1, b"small", NOW, NOW, None)


@pytest.mark.parametrize("engine", ["dynamodb_local", "simulated"], indirect=True)
def test_the_largest_item_is_taken(engine: Engine) -> None:
    longest = EntityKey("t" * 64, "k" * 64, "i" * 512)
    largest = NOISE[: 400 * 1024 - 512 - len(str(longest))]
    engine.write(largest, key=longest, ttl=TTL, now=NOW)
    engine.write(largest, key=longest, ttl=TTL, consolidate_after=SECOND)
    head = engine.read(longest)
    assert head is not None
    assert head.payload == largest
    with pytest.raises(InvalidRequestError):
        engine.write(largest + b"x", key=longest)


def test_500_keys_are_read_in_one_call(engine: Engine) -> None:
    keys = [key_of(number) for number in range(500)]
    stored = keys[::10]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: engine.write(str(key).encode(), key=key), stored))
    heads = engine.heads.read([*keys, *keys[:50]], soon())
    assert {key: head.payload for key, head in heads.items()} == {
        key: str(key).encode() for key in stored
    }


UNUSUAL = [
    EntityKey("", "editor_state", "s-1"),
    EntityKey("acme", "editor_state", "a#b##c"),
    EntityKey("acme", "editor_state", "HEAD"),
    EntityKey("acme", "editor_state", " ' \" ? :nonce #number \\"),
    EntityKey("acme", "editor_state", "S-1"),
    EntityKey("acme", "editor_state", "e\u0301"),
    EntityKey("日本", "種類", "🦆" * 128),
    EntityKey("t" * 64, "k" * 64, "i" * 512),
]


def test_unusual_keys_are_kept_apart(engine: Engine) -> None:
    keys = [KEY, *UNUSUAL]
    for version in (1, 2):
        for key in keys:
            assert engine.write(repr(key).encode(), key=key).version == version
    heads = engine.heads.read(keys, soon())
    assert {key: head.payload for key, head in heads.items()} == {
        key: repr(key).encode() for key in keys
    }


DAMAGES: dict[str, dict[str, Any]] = {
    "no number": {"number": {"S": "1"}},
    "half a number": {"number": {"N": "1.5"}},
    "unknown form": {"form": {"S": "essay"}},
    "no payload": {"payload": {"S": "text"}},
    "no frame": {"encoding": {"S": "zstd"}},
    "unknown encoding": {"encoding": {"S": "brotli"}},
    "no time": {"time": {"S": "noon"}},
    "no such time": {"time": {"N": "1" + "0" * 30}},
    "no create time": {"create_time": {"S": "noon"}},
    "no expire time": {"expire_time": {"S": "noon"}},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_head_that_cannot_be_read_is_an_error_of_its_own(
    engine: Engine, damage: dict[str, Any]
) -> None:
    """Not an absence, which a Save would take for leave to begin anew."""
    engine.write()
    engine.write(b"sound", key=key_of(2))
    engine.damage(**damage)
    with pytest.raises(UnreadableError):
        engine.read()
    assert [key for key, _, _ in engine.unreadable] == [KEY]
    assert engine.read(key_of(2)) == Head(1, b"sound", NOW, NOW, None)


def test_nothing_is_sent_after_the_deadline(engine: Engine) -> None:
    passed = Deadline.after(0)
    with pytest.raises(DeadlineExceededError):
        engine.heads.write(change(), passed)
    with pytest.raises(DeadlineExceededError):
        engine.heads.write(change(once=idempotency("k")), passed)
    with pytest.raises(DeadlineExceededError):
        engine.heads.read((KEY,), passed)
    assert engine.read() is None


def test_a_missing_table_is_a_store_that_cannot_be_used(engine: Engine) -> None:
    heads = direct_heads(
        engine.client,
        prefix=f"{engine.prefix}other_",
        unreadable=lambda *_: None,
        pause=never,
        clock=lambda: 0.0,
    )
    for work in (
        lambda: heads.read((KEY,), soon()),
        lambda: heads.write(change(), soon()),
        lambda: heads.write(change(once=idempotency("k")), soon()),
    ):
        with pytest.raises(StoreUnavailableError):
            work()


def together(work: Callable[[int], Any], threads: int = 8) -> list[Any]:
    """Return what came of the same work in many threads that begin at once."""
    barrier = threading.Barrier(threads)

    def begin(number: int) -> Any:
        barrier.wait(timeout=30)
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(begin, range(threads)))


def test_of_eight_savers_with_the_same_version_one_wins(engine: Engine) -> None:
    engine.write(b"0")
    for version in range(1, 13):

        def save(number: int, version: int = version) -> Any:
            try:
                return engine.write(b"%d by %d" % (version, number), IfVersion(version)).version
            except VersionMismatchError as error:
                return error.metadata

        answers = together(save)
        won = [answer == version + 1 for answer in answers]
        lost = {"expected": str(version), "version": str(version + 1)}
        assert sum(won) == 1
        assert answers.count(lost) == 7
        head = engine.read()
        assert head is not None
        assert (head.version, head.payload) == (
            version + 1,
            b"%d by %d" % (version, won.index(True)),
        )


def test_of_eight_creators_one_wins(engine: Engine) -> None:
    for number in range(6):
        key = key_of(number)

        def create(number: int, key: EntityKey = key) -> Any:
            try:
                return engine.write(b"%d" % number, IfAbsent(), key=key).version
            except EntityExistsError as error:
                return error.metadata

        answers = together(create)
        won = [answer == 1 for answer in answers]
        assert sum(won) == 1
        assert answers.count({"version": "1"}) == 7
        head = engine.read(key)
        assert head is not None
        assert head.payload == b"%d" % won.index(True)


@pytest.mark.parametrize("expired", [False, True])
def test_unconditional_saves_leave_no_gap(engine: Engine, *, expired: bool) -> None:
    """By clocks that differ, of a key that is new, or that has just expired."""
    if expired:
        engine.write(b"old", now=NOW - 2 * TTL, ttl=TTL)
    seen: dict[int, bytes] = {}
    done = threading.Event()

    def save(number: int) -> list[tuple[int, bytes, Any]]:
        written = []
        for turn in range(10):
            payload = b"%d.%d" % (number, turn)
            now = NOW + turn * SECOND + number * 3 * timedelta(milliseconds=1)
            write = engine.write(payload, now=now, ttl=TTL)
            written.append((write.version, payload, write.update_time))
        return written

    def watch() -> None:
        while not done.is_set():
            head = engine.read()
            if head is not None and head.payload is not None:
                assert seen.setdefault(head.version, head.payload) == head.payload
                assert head.version >= max(seen)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            written = sorted(chain.from_iterable(together(save)))
        finally:
            done.set()
        watching.result()
    first = 2 if expired else 1
    assert [version for version, _, _ in written] == list(range(first, first + 80))
    times = [time for _, _, time in written]
    assert times == sorted(times)
    payloads = {version: payload for version, payload, _ in written}
    assert {v: p for v, p in seen.items() if v >= first}.items() <= payloads.items()
    head = engine.read()
    assert head is not None
    assert head.create_time == times[0]


def test_a_repetition_is_answered_as_the_first_was(engine: Engine) -> None:
    engine.write(b"zero", now=NOW - SECOND)
    once = idempotency("k")
    assert engine.write(b"one", once=once) == HeadWritten(2, NOW)
    engine.write(b"other", now=NOW + SECOND)
    for later in (2 * SECOND, timedelta(hours=23)):
        again = engine.write(b"one", now=NOW + later, once=once)
        assert again == HeadWritten(2, NOW, replayed=True)
    assert engine.read() == Head(3, b"other", NOW - SECOND, NOW + SECOND, None)
    assert engine.write(b"one", once=idempotency("k-2"), now=NOW + SECOND).version == 4


@pytest.mark.parametrize("first", [b"one", None])
@pytest.mark.parametrize("precondition", [IfVersion(1), IfAbsent(), None])
def test_a_repetition_that_would_be_refused_by_now_is_answered(
    engine: Engine, first: bytes | None, precondition: Precondition
) -> None:
    once = idempotency("k")
    if precondition != IfAbsent():
        engine.write(b"zero")
    elif first is None:
        return
    written = engine.write(first, precondition, once=once)
    again = engine.write(first, precondition, once=once)
    assert again == HeadWritten(written.version, NOW, replayed=True)


def test_a_key_of_another_request_is_refused(engine: Engine) -> None:
    engine.write(b"one", once=idempotency("k"))
    for precondition in (None, IfVersion(1), IfVersion(9), IfAbsent()):
        with pytest.raises(IdempotencyKeyReusedError):
            engine.write(b"two", precondition, once=idempotency("k", "another"))
    assert engine.read() == Head(1, b"one", NOW, NOW, None)


def test_a_refused_request_is_not_remembered(engine: Engine) -> None:
    once = idempotency("k")
    with pytest.raises(VersionMismatchError):
        engine.write(b"two", IfVersion(1), once=once)
    engine.write(b"one")
    assert engine.write(b"two", IfVersion(1), once=once) == HeadWritten(2, NOW)


def test_a_key_is_free_again_after_its_time(engine: Engine) -> None:
    once = idempotency("k")
    engine.write(b"one", once=once)
    last = NOW + once.keep
    assert engine.write(b"one", now=last - MICROSECOND, once=once).replayed
    assert engine.write(b"one", now=last, once=once) == HeadWritten(2, last)


def test_an_idempotent_write_is_a_write_like_any_other(engine: Engine) -> None:
    options: dict[str, Any] = {"ttl": TTL, "consolidate_after": SECOND}
    engine.write(TEXT, once=idempotency("1"), **options)
    engine.write(b"two", now=NOW - SECOND, once=idempotency("2"), **options)
    assert engine.read() == Head(2, b"two", NOW, NOW, NOW - SECOND + TTL)
    item = engine.item()
    assert micros(item, "due_time") == micros(item, "time") + 1_000_000
    engine.write(None, now=NOW + SECOND, once=idempotency("3"), **options)
    assert engine.read() == Head(3, None, NOW + SECOND, NOW + SECOND, None)
    later = NOW + 2 * SECOND
    engine.write(b"four", IfAbsent(), now=later, once=idempotency("4"), ttl=TTL)
    assert engine.read() == Head(4, b"four", later, later, later + TTL)
    engine.write(b"five", now=later + TTL, once=idempotency("5"))
    assert engine.read() == Head(5, b"five", later + TTL, later + TTL, None)


@pytest.mark.parametrize("precondition", [IfVersion(1), None])
def test_of_eight_duplicates_one_is_applied(engine: Engine, precondition: Precondition) -> None:
    for number in range(4):
        key, once = key_of(number), idempotency(f"k-{number}")
        engine.write(b"zero", key=key)

        def save(
            _: int, key: EntityKey = key, precondition: Precondition = precondition
        ) -> HeadWritten:
            return engine.write(b"one", precondition, key=key, once=once)  # noqa: B023 - called at once

        answers = together(save)
        assert {(answer.version, answer.update_time) for answer in answers} == {(2, NOW)}
        assert engine.read(key) == Head(2, b"one", NOW, NOW, None)


def test_idempotent_saves_of_one_entity_leave_no_gap(engine: Engine) -> None:
    def save(number: int) -> list[int]:
        versions = []
        for turn in range(4):
            once = idempotency(f"k-{number}-{turn}")
            first = engine.write(b"%d" % number, once=once)
            assert engine.write(b"%d" % number, once=once).version == first.version
            versions.append(first.version)
        return versions

    assert sorted(chain.from_iterable(together(save, 3))) == list(range(1, 13))


@only_local
def test_calls_of_dynamodb_are_few(engine: Engine) -> None:
    keys = [key_of(number) for number in range(100)]
    expected: list[tuple[str, Callable[[], object], dict[str, int]]] = [
        ("a first save", lambda: engine.write(TEXT), {"UpdateItem": 1}),
        ("a save", lambda: engine.write(TEXT), {"UpdateItem": 1}),
        ("a conditional save", lambda: engine.write(TEXT, IfVersion(2)), {"UpdateItem": 1}),
        ("a deletion", lambda: engine.write(None), {"UpdateItem": 1}),
        ("a creation", lambda: engine.write(b"p", IfAbsent(), ttl=SECOND), {"UpdateItem": 1}),
        (
            "a save of what has expired",
            lambda: engine.write(b"p", now=NOW + SECOND),
            {"UpdateItem": 2},
        ),
        (
            "a save once",
            lambda: engine.write(b"p", now=NOW + SECOND, once=idempotency("k")),
            {"BatchGetItem": 1, "TransactWriteItems": 1},
        ),
        (
            "its repetition",
            lambda: engine.write(b"p", now=NOW + SECOND, once=idempotency("k")),
            {"BatchGetItem": 1, "TransactWriteItems": 1},
        ),
        ("a hundred reads", lambda: engine.heads.read(keys, soon()), {"BatchGetItem": 1}),
    ]
    for what, work, calls in expected:
        with Traffic(engine.client).watched() as traffic:
            work()
        assert traffic.sent == calls, what
