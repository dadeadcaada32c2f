"""A backfill under fire: Saves go on, and the process that does it dies in the middle, twice."""

from __future__ import annotations

import random
import secrets
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import grpc
import psutil
import psycopg
import pytest

from duostore.v1 import admin_pb2, admin_pb2_grpc
from duostore.v1.admin_pb2 import BackfillRequest, BackfillResponse
from duostore_server import codec
from duostore_server.domain.entities import Form
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb import items
from duostore_server.storage.dynamodb.tables import projection_table
from tests.support.crowd import failure_of
from tests.support.service import CALL_SECONDS, Caller, Service, kill
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

KIND = "note"
ENTITIES = 4_000
MANY = 200_000
WORKERS, BATCH, PARTS = 2, 50, 5
KILLS = 2
# Of all entities, those that are saved again and again meanwhile.
SAVED = 200
SAVERS = 2
# Until the first death, so that there is a middle; of the many, what a small machine can do.
RATE, MANY_RATE = 500, 0
PROGRESS_SECONDS = 60.0
# What was claimed by one that died falls due again after fifteen seconds.
DONE_SECONDS = 90.0
MANY_SECONDS = 1200.0
KINDS = f"""
[admin]
open = true
[backfill]
workers = {WORKERS}
batch = {BATCH}
[kinds.{KIND}]
projection_version = 2
transforms = {{ 2 = "note_2.jmespath" }}
[kinds.other]
"""
TRANSFORM = "{second: n, saves: saves}"
INSERT = """
INSERT INTO duostore.entity (tenant, kind, id, version, data, deleted, create_time, update_time)
SELECT '', kind, 'n' || n, 1, jsonb_build_object('n', n, 'saves', 0), false, now(), now()
FROM unnest(%s::text[]) AS kind, generate_series(1, %s) AS n
"""


@pytest.fixture
def another(
    postgres: PostgresServer, dynamodb: DynamoDBLocal, memcached: MemcachedServer, tmp_path: Path
) -> Iterator[Callable[[], Service]]:
    """Starts services, all over the same stores."""
    dsn, prefix = postgres.create_database(), f"t{secrets.token_hex(4)}_"
    with ExitStack() as stack:

        def start() -> Service:
            folder = tmp_path / secrets.token_hex(4)
            folder.mkdir()
            service = Service(
                folder,
                dsn=dsn,
                endpoint_url=dynamodb.endpoint_url,
                prefix=prefix,
                node=memcached.address,
                kinds=KINDS,
                sql={"note_2.jmespath": TRANSFORM},
            )
            return stack.enter_context(service)

        yield start


@pytest.fixture
def service(another: Callable[[], Service]) -> Service:
    return another()


class Watch:
    """Somebody who runs a backfill and sees how far it is, in a thread of their own."""

    def __init__(self, service: Service, seconds: float) -> None:
        self._service = service
        self._seconds = seconds
        self.looks: list[BackfillResponse] = []

    def run(self, rate: int = 0) -> None:
        """Look on until the backfill has ended, whatever becomes of the connection."""
        request = BackfillRequest(kind=KIND, rate=rate, parallel=PARTS)
        with self._service.channel() as channel:
            stub = admin_pb2_grpc.AdminStub(channel)
            for look in stub.Backfill(request, timeout=self._seconds):
                self.looks.append(look)

    @property
    def done(self) -> int:
        """Return how many entities were looked at, as far as is known."""
        return self.looks[-1].done_count if self.looks else 0

    def wait_for(self, count: int) -> None:
        eventually(
            lambda: self.done >= count,
            within=self._seconds,
            what=f"{count} entities were looked at",
        )


def ask(
    service: Service, action: BackfillRequest.Action.ValueType, rate: int = 0
) -> BackfillResponse:
    with service.channel() as channel:
        stub = admin_pb2_grpc.AdminStub(channel)
        request = BackfillRequest(kind=KIND, action=action, rate=rate, parallel=PARTS)
        (answer,) = stub.Backfill(request, timeout=CALL_SECONDS)
        assert isinstance(answer, BackfillResponse)
        return answer


def set_flag(service: Service, value: str) -> None:
    with service.channel() as channel:
        request = admin_pb2.SetFlagRequest(name=f"projection_write.{KIND}.2")
        request.value.string_value = value
        admin_pb2_grpc.AdminStub(channel).SetFlag(request, timeout=CALL_SECONDS)


def insert(service: Service, count: int) -> None:
    """Write entities behind the service's back, as a restore does."""
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        connection.execute(INSERT, ([KIND, "other"], count))
        connection.execute("ANALYZE duostore.entity")


class Savers:
    """Those who save some of the entities, and count what was acknowledged."""

    def __init__(self, service: Service, entities: int) -> None:
        self._service = service
        order = random.Random(6)
        self.ids = [f"n{n}" for n in order.sample(range(1, entities + 1), SAVED)]
        self.acknowledged: Counter[str] = Counter()
        self._over = threading.Event()

    def meanwhile(self, act: Callable[[], None]) -> None:
        """Save while something is done; raise what anybody met."""
        with ThreadPoolExecutor(SAVERS) as pool:
            working = [pool.submit(self._save, self.ids[n::SAVERS]) for n in range(SAVERS)]
            try:
                act()
            finally:
                self._over.set()
            for each in working:
                each.result()

    def _save(self, mine: list[str]) -> None:
        order = random.Random(mine[0])
        with self._service.channel() as channel:
            caller = Caller(channel, kind=KIND)
            while not self._over.is_set():
                id_ = order.choice(mine)
                data = {"n": int(id_[1:]), "saves": self.acknowledged[id_] + 1}
                try:
                    answer = caller.save(id_, data, idempotency_key=secrets.token_hex(8))
                except grpc.RpcError as error:
                    # Not acknowledged: what became of it is of no matter here.
                    if not failure_of(error).is_passing:
                        raise
                else:
                    self.acknowledged[id_] = answer.version - 1


def kill_background(service: Service) -> None:
    """Let the process that does the backfill die; return when another is there."""
    [process] = service.background()
    kill(process)
    eventually(
        lambda: [each for each in service.background() if each.pid != process.pid],
        within=PROGRESS_SECONDS,
        what="the background process is replaced",
    )


def kill_machine(service: Service) -> None:
    """Let all processes of a service die at once, and none of them be replaced."""
    for process in service.family():
        with suppress(psutil.NoSuchProcess):
            kill(process)


def works(service: Service) -> bool:
    """Return whether the background process of this service has done a batch."""
    return service.metric("duostore_backfilled_total", kind=KIND) > 0


def claims(service: Service) -> dict[int, int]:
    """Return how often each part was claimed that somebody has begun."""
    return dict(service.fetch("SELECT number, claim FROM duostore.backfill_part WHERE claim > 0"))


def assert_no_drift(service: Service, client: DynamoDBClient, shapes: set[int]) -> int:
    """Compare every row of Aurora with its item, and find no other items; return how many."""
    rows = {
        id_: (version, data)
        for id_, version, data in service.fetch(
            "SELECT id, version, data FROM duostore.entity WHERE kind = %s", KIND
        )
    }
    count = 0
    pages = client.get_paginator("scan").paginate(
        TableName=projection_table(service.prefix), ConsistentRead=True
    )
    for item in (item for page in pages for item in page["Items"]):
        tenant, kind, id_ = str(item["pk"]["S"]).split("#", 2)
        assert (tenant, kind) == ("", KIND)
        version, data = rows.pop(id_)
        held = items.decode(EntityKey(tenant, kind, id_), item, lambda *_: None)
        assert (held.version, held.form, held.shapes) == (version, Form.VALUE, frozenset(shapes)), (
            id_
        )
        expected = {1: data, 2: {"second": data["n"], "saves": data["saves"]}}
        for shape in shapes:
            payload = held.in_shape(shape)
            assert payload is not None
            entity = codec.decode(payload)
            assert (entity.version, entity.data) == (version, expected[shape]), id_
        count += 1
    assert not rows, f"{len(rows)} entities are not projected"
    return count


def survive(service: Service, client: DynamoDBClient, entities: int, rate: int) -> None:
    """Run a backfill through its deaths, and hold what comes of it against Aurora."""
    insert(service, entities)
    set_flag(service, "both")
    savers = Savers(service, entities)
    seconds = DONE_SECONDS if entities == ENTITIES else MANY_SECONDS
    watch = Watch(service, seconds)

    def backfill() -> None:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(watch.run, rate)
            for death in range(1, KILLS + 1):
                watch.wait_for(entities * death // (KILLS + 2))
                kill_background(service)
            ask(service, BackfillRequest.ACTION_START, rate=1_000_000)
            running.result(seconds)

    savers.meanwhile(backfill)
    last = watch.looks[-1]
    assert last.state == BackfillResponse.STATE_DONE
    assert (last.part_count, last.parts_done) == (PARTS, PARTS)
    # Each entity counts once, whoever died.
    assert (last.done_count, last.failed_count) == (entities, 0)
    # What was put and not noted is found unchanged: at most a batch of each worker.
    unchanged = last.done_count - last.projected_count
    assert unchanged <= KILLS * WORKERS * BATCH + len(savers.acknowledged)
    assert len(savers.acknowledged) > SAVED // 2
    assert all(
        earlier.done_count <= later.done_count
        for earlier, later in zip(watch.looks, watch.looks[1:], strict=False)
    )
    assert any(look.HasField("remaining") for look in watch.looks)
    assert last.estimated_total == pytest.approx(entities, rel=0.3)
    eventually(service.is_drained, within=PROGRESS_SECONDS, what="the outbox is empty")
    for id_, version in savers.acknowledged.items():
        ((held,),) = service.fetch(
            "SELECT version FROM duostore.entity WHERE kind = %s AND id = %s", KIND, id_
        )
        assert held > version
    assert assert_no_drift(service, client, {1, 2}) == entities


def test_a_backfill_survives_two_deaths_beside_saves(
    service: Service, dynamodb_client: DynamoDBClient
) -> None:
    survive(service, dynamodb_client, ENTITIES, RATE)
    # Nothing is left to be done, and that is found soon.
    again = Watch(service, DONE_SECONDS)
    again.run()
    assert (again.looks[-1].done_count, again.looks[-1].projected_count) == (ENTITIES, 0)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_backfill_of_200_000_entities_survives_two_deaths_beside_saves(
    service: Service, dynamodb_client: DynamoDBClient
) -> None:
    survive(service, dynamodb_client, MANY, MANY_RATE)


def test_two_services_share_a_backfill_and_one_ends_it_when_the_other_has_died(
    service: Service, another: Callable[[], Service], dynamodb_client: DynamoDBClient
) -> None:
    other = another()
    insert(service, ENTITIES)
    set_flag(service, "both")
    watch = Watch(service, DONE_SECONDS)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(watch.run, RATE)
        eventually(
            lambda: all(works(each) for each in (service, other)),
            within=PROGRESS_SECONDS,
            what="both do a part of it",
        )
        before = claims(service)
        kill_machine(other)
        ask(service, BackfillRequest.ACTION_START, rate=1_000_000)
        running.result(DONE_SECONDS)
    last = watch.looks[-1]
    assert (last.state, last.parts_done) == (BackfillResponse.STATE_DONE, PARTS)
    assert (last.done_count, last.failed_count) == (ENTITIES, 0)
    # What the dead had put and not noted is found unchanged.
    assert last.done_count - last.projected_count <= WORKERS * BATCH
    # Both had what they can hold; who lived has lost nothing, and the other's was taken up.
    assert before == dict.fromkeys(before, 1)
    assert len(before) >= 2 * WORKERS
    taken_up = [number for number, claim in claims(service).items() if claim > 1]
    assert 0 < len(taken_up) <= WORKERS
    assert assert_no_drift(service, dynamodb_client, {1, 2}) == ENTITIES


def test_one_that_is_paused_goes_on_where_it_was_and_one_that_is_cancelled_begins_anew(
    service: Service, dynamodb_client: DynamoDBClient
) -> None:
    insert(service, 1000)
    with pytest.raises(grpc.RpcError) as caught:
        ask(service, BackfillRequest.ACTION_PAUSE)
    assert failure_of(caught.value).reason == "BACKFILL_NOT_FOUND"
    watch = Watch(service, DONE_SECONDS)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(watch.run, 100)
        watch.wait_for(100)
        ask(service, BackfillRequest.ACTION_PAUSE)
        running.result(DONE_SECONDS)
    assert watch.looks[-1].state == BackfillResponse.STATE_PAUSED
    # A batch that was under way may have been the last.
    paused = ask(service, BackfillRequest.ACTION_SHOW).done_count
    assert paused < 500
    going_on = ask(service, BackfillRequest.ACTION_START, rate=1_000_000)
    assert going_on.done_count >= paused
    assert going_on.start_time == watch.looks[0].start_time
    again = Watch(service, DONE_SECONDS)
    again.run()
    assert again.looks[-1].done_count == 1000
    assert assert_no_drift(service, dynamodb_client, {1}) == 1000
    ask(service, BackfillRequest.ACTION_START, rate=1)
    cancelled = ask(service, BackfillRequest.ACTION_CANCEL)
    assert cancelled.state == BackfillResponse.STATE_CANCELLED
    anew = ask(service, BackfillRequest.ACTION_START, rate=1_000_000)
    assert anew.done_count == 0
    assert anew.start_time.ToDatetime() > cancelled.start_time.ToDatetime()
