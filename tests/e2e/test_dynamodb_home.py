"""Kinds at home in DynamoDB: alone they go on, they end in time, and what a death costs them."""

from __future__ import annotations

import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
import psycopg
import pytest

from duostore.v1.entity_pb2 import PROJECTION_DONE, STORE_CACHE, STORE_DYNAMODB
from duostore_server import codec
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb.head_items import NUMBER, head_key
from duostore_server.storage.dynamodb.tables import snapshot_table
from tests.support.crowd import Crowd, Failure, Persistence, failure_of
from tests.support.gate import Gate
from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer, running
from tests.support.service import Caller, Service, kill
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore.v1 import data_access_pb2, entity_pb2

TTL = timedelta(seconds=3)
CACHE_TTL = timedelta(seconds=5)
KINDS = f"""
[kinds.proposal]
[kinds.note]
home = "dynamodb"
cache_ttl = "{CACHE_TTL.seconds}s"
[kinds.flash]
home = "dynamodb"
ttl = "{TTL.seconds}s"
cache_ttl = "1m"
[kinds.layout]
home = "dynamodb"
consolidate_every = "1s"
"""
# For what has no bound of its own, on a machine that may be busy.
RECOVERY_SECONDS = 30.0
# By so much the clock of a memcached that is short of CPU is late.
LATE = timedelta(seconds=1)

WRITERS = 8
WRITES = 1_600
LOST_ANSWERS = 0.15


class Losses:
    """Loses answers of DynamoDB to what writes a head, at random, while it is told to."""

    def __init__(self) -> None:
        self.share = 0.0
        self._chance = random.Random(WRITES).random

    def __call__(self, asked: bytes, _answered: bytes) -> bool:
        writes = b".UpdateItem" in asked or b".TransactWriteItems" in asked
        return writes and self._chance() < self.share


@dataclass(frozen=True)
class Home:
    """A service whose PostgreSQL nobody else uses, with gates before its other stores."""

    service: Service
    postgres: PostgresServer
    before_memcached: Gate
    before_dynamodb: Gate
    losses: Losses

    def caller(self, channel: grpc.Channel, kind: str = "note") -> Caller:
        return Caller(channel, kind=kind)


@pytest.fixture(scope="module")
def home(
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Home]:
    """Leave its PostgreSQL running and its gates open."""
    losses = Losses()
    with ExitStack() as stack:
        postgres = stack.enter_context(running(PostgresServer()))
        cache = stack.enter_context(Gate(int(memcached.address.rpartition(":")[2])))
        port = urlsplit(dynamodb.endpoint_url).port
        assert port is not None
        tables = stack.enter_context(Gate(port, loses=losses))
        service = stack.enter_context(
            Service(
                tmp_path_factory.mktemp("home"),
                dsn=postgres.create_database(),
                endpoint_url=f"http://127.0.0.1:{tables.port}",
                prefix=f"t{secrets.token_hex(4)}_",
                node=f"127.0.0.1:{cache.port}",
                kinds=KINDS,
                # Long: so long there is to kill who waits for the cache.
                cache_timeout="700ms",
            )
        )
        yield Home(service, postgres, cache, tables, losses)


@pytest.fixture
def entity() -> str:
    return secrets.token_hex(8)


def refusal(call: Callable[[], object]) -> Failure:
    """Return what a call that has to fail is told."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return failure_of(refused.value)


def found(caller: Caller, entity: str, **freshness: Any) -> data_access_pb2.GetResponse | None:
    """Get an entity; return None if it does not exist."""
    try:
        return caller.get(entity, **freshness)
    except grpc.RpcError as error:
        if failure_of(error).reason == "ENTITY_NOT_FOUND":
            return None
        raise


def number_of(entity: entity_pb2.Entity) -> int:
    return int(codec.plain(entity.data)["n"])


def held(client: DynamoDBClient, home: Home, key: EntityKey) -> int:
    """Return the version that DynamoDB holds, 0 if none."""
    item = client.get_item(
        TableName=snapshot_table(home.service.prefix), Key=head_key(key), ConsistentRead=True
    ).get("Item", {})
    return int(item[NUMBER]["N"]) if item else 0


def test_with_postgresql_stopped_they_go_on(home: Home) -> None:
    home.postgres.stop()
    try:
        for _ in range(4):
            with home.service.channel() as channel:
                _lead_a_life(home.caller(channel), secrets.token_hex(8))
                proposals = home.caller(channel, "proposal")
                other = refusal(lambda: proposals.save("any", {"n": 1}))  # noqa: B023 - called now
                assert other.code is grpc.StatusCode.UNAVAILABLE
    finally:
        home.postgres.start()


def _lead_a_life(caller: Caller, entity: str) -> None:
    key = f"key-{entity}"
    assert refusal(lambda: caller.get(entity)).reason == "ENTITY_NOT_FOUND"
    first = caller.save(entity, {"n": 1}, if_absent=True, idempotency_key=key)
    assert (first.version, first.projection, first.replayed) == (1, PROJECTION_DONE, False)
    again = caller.save(entity, {"n": 1}, if_absent=True, idempotency_key=key)
    assert (again.version, again.update_time, again.replayed) == (1, first.update_time, True)
    reused = refusal(lambda: caller.save(entity, {"n": 2}, idempotency_key=key))
    assert reused.reason == "IDEMPOTENCY_KEY_REUSED"
    exists = refusal(lambda: caller.save(entity, {"n": 2}, if_absent=True))
    assert (exists.reason, exists.metadata) == ("ENTITY_EXISTS", {"version": "1"})

    assert [caller.get(entity).receipt.served_from for _ in range(2)] == [
        STORE_DYNAMODB,
        STORE_CACHE,
    ]
    assert caller.save(entity, {"n": 2}, if_version=1).version == 2
    mismatch = refusal(lambda: caller.save(entity, {"n": 3}, if_version=1))
    assert mismatch.reason == "VERSION_MISMATCH"
    assert mismatch.metadata == {"expected": "1", "version": "2"}
    assert number_of(caller.get(entity, min_version=2).entity) == 2
    assert number_of(caller.get(entity, strong=True).entity) == 2
    batch = caller.batch_get([entity, f"{entity}-absent"])
    assert [number_of(one) for one in batch.entities] == [2]
    assert [missing.id for missing in batch.missing] == [f"{entity}-absent"]

    deleted = caller.delete(entity, if_version=2, idempotency_key=f"{key}-end")
    assert (deleted.version, deleted.replayed) == (3, False)
    again_deleted = caller.delete(entity, if_version=2, idempotency_key=f"{key}-end")
    assert (again_deleted.version, again_deleted.replayed) == (3, True)
    absent = refusal(lambda: caller.get(entity))
    assert (absent.reason, absent.metadata) == ("ENTITY_NOT_FOUND", {"version": "3"})
    assert caller.save(entity, {"n": 4}, if_absent=True).version == 4
    assert number_of(caller.get(entity).entity) == 4


@pytest.mark.parametrize("strong", [False, True], ids=["through the cache", "from DynamoDB"])
def test_an_entity_ends_when_its_ttl_is_over_and_not_before(
    home: Home, entity: str, *, strong: bool
) -> None:
    """What began before the end finds it, what ended after it does not."""
    with home.service.channel() as one, home.service.channel() as two:
        callers = [home.caller(channel, "flash") for channel in (one, two)]
        saved = callers[0].save(entity, {"n": 1})
        ends = saved.update_time.ToDatetime(UTC) + TTL
        found_in: set[int] = set()

        def is_gone() -> bool:
            caller = callers[len(found_in) % 2]
            began = datetime.now(UTC)
            answer = found(caller, entity, strong=strong)
            if answer is None:
                assert datetime.now(UTC) >= ends
                return True
            assert began < ends
            found_in.add(answer.receipt.served_from)
            return False

        eventually(is_gone, within=TTL.seconds + RECOVERY_SECONDS, what="its time is over")
        assert found_in == {STORE_DYNAMODB} if strong else found_in >= {STORE_CACHE}
        for caller in callers:
            assert refusal(lambda: caller.get(entity)).reason == "ENTITY_NOT_FOUND"  # noqa: B023
            assert [key.id for key in caller.batch_get([entity]).missing] == [entity]
        mismatch = refusal(lambda: callers[0].save(entity, {"n": 2}, if_version=1))
        assert mismatch.reason == "VERSION_MISMATCH"
        assert callers[1].save(entity, {"n": 2}, if_absent=True).version == 2
        assert {number_of(caller.get(entity).entity) for caller in callers} == {2}


def test_a_saver_that_dies_before_the_bust_leaves_the_old_value_for_the_cache_ttl_at_most(
    home: Home, dynamodb_client: DynamoDBClient, entity: str
) -> None:
    with home.service.channel() as channel, ThreadPoolExecutor(1) as pool:
        saver = home.caller(channel)
        saver.save(entity, {"n": 1})
        eventually(
            lambda: saver.get(entity).receipt.served_from == STORE_CACHE,
            within=RECOVERY_SECONDS,
            what="it is cached",
        )
        # Nobody else calls: the process that is called is the saver's.
        [victim, _] = home.service.serving()
        home.before_memcached.close()
        try:
            saving = pool.submit(saver.save, entity, {"n": 2})
            eventually(
                lambda: held(dynamodb_client, home, EntityKey("", "note", entity)) == 2,
                within=RECOVERY_SECONDS,
                what="it is written",
            )
            kill(victim)
        finally:
            home.before_memcached.open()
        assert refusal(saving.result).code is grpc.StatusCode.UNAVAILABLE
    stale = []
    with home.service.channel() as channel:
        reader = home.caller(channel)

        def is_new() -> bool:
            began = datetime.now(UTC)
            answer = reader.get(entity)
            if number_of(answer.entity) == 2:
                return True
            assert answer.receipt.served_from == STORE_CACHE
            stale.append(began - answer.receipt.cached_time.ToDatetime(UTC))
            return False

        eventually(is_new, within=RECOVERY_SECONDS, what="the new value is read")
        # With a token the old value is not taken, however long it lasts.
        assert number_of(reader.get(entity, min_version=2).entity) == 2
    assert stale, "the saver died too late"
    assert max(stale) <= CACHE_TTL + LATE
    eventually(
        lambda: len(home.service.serving()) == 2, within=RECOVERY_SECONDS, what="it is replaced"
    )


def test_no_answer_that_dynamodb_loses_becomes_a_refusal_or_a_second_version(
    home: Home, record_property: Callable[[str, object], None]
) -> None:
    """A conditional write may fail because it had succeeded: its sender is told the truth.

    Each entity has one writer, who says by if_version what it has to be, so that nothing
    but its own lost write could refuse it. One write in two has an idempotency key.
    """
    persistence = Persistence()
    entities = [secrets.token_hex(8) for _ in range(WRITERS)]

    def save_in_turn(channel: grpc.Channel, entity: str) -> None:
        caller = home.caller(channel)
        for version in range(WRITES // WRITERS):
            if version % 2:
                saved = persistence.answer(
                    lambda: _save_over(caller, entity, version, key=f"{entity}/{version}"),  # noqa: B023 - called now
                    what="a Save with a key is answered",
                )
            else:
                saved = _save_and_see(caller, entity, version, persistence.unanswered)
            assert saved == version + 1

    home.losses.share = LOST_ANSWERS
    lost_before = home.before_dynamodb.lost_answers
    try:
        Crowd[str](home.service.channel, threads=WRITERS).work_off(entities, save_in_turn)
    finally:
        home.losses.share = 0.0
    lost = home.before_dynamodb.lost_answers - lost_before
    record_property("lost answers", lost)
    record_property("unanswered calls", dict(persistence.unanswered))
    # Else it was not tried.
    assert lost > WRITES * LOST_ANSWERS / 2
    assert persistence.unanswered["WRITE_OUTCOME_UNKNOWN"]
    with home.service.channel() as channel:
        newest = home.caller(channel).batch_get(entities).entities
    assert [(one.key.id, one.version, number_of(one)) for one in newest] == [
        (entity, WRITES // WRITERS, WRITES // WRITERS) for entity in entities
    ]


def _save_over(caller: Caller, entity: str, version: int, *, key: str = "") -> int:
    """Save the version that follows; return what it was told to be."""
    options: dict[str, Any] = {"if_version": version} if version else {"if_absent": True}
    return caller.save(entity, {"n": version + 1}, idempotency_key=key, **options).version


def _save_and_see(caller: Caller, entity: str, version: int, unanswered: Counter[str]) -> int:
    """Do the same without a key; whether it was applied is looked up where nobody says."""
    while True:
        try:
            return _save_over(caller, entity, version)
        except grpc.RpcError as error:
            failure = failure_of(error)
            assert failure.is_passing, failure
            unanswered[failure.reason] += 1
        answer = found(caller, entity, strong=True)
        if answer is not None and answer.entity.version != version:
            return answer.entity.version


def test_what_is_to_be_consolidated_comes_to_aurora_deletions_too(home: Home, entity: str) -> None:
    def in_aurora() -> list[tuple[object, ...]]:
        with psycopg.connect(home.service.dsn, autocommit=True) as connection:
            return connection.execute(
                "SELECT sequence, data, deleted FROM duostore.draft WHERE id = %s", (entity,)
            ).fetchall()

    with home.service.channel() as channel:
        layouts, notes = home.caller(channel, "layout"), home.caller(channel)
        notes.save(entity, {"n": 0})
        for n in range(1, 21):
            layouts.save(entity, {"n": n})
        eventually(
            lambda: in_aurora() == [(20, {"n": 20}, False)],
            within=RECOVERY_SECONDS,
            what="the newest version is in Aurora",
        )
        layouts.delete(entity)
        eventually(
            lambda: in_aurora() == [(21, None, True)],
            within=RECOVERY_SECONDS,
            what="the deletion is in Aurora",
        )
