"""A backfill on the stores themselves, by two processes' worth of backfillers, beside Saves."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest

from duostore_server import codec
from duostore_server.access.propagation import Propagation
from duostore_server.access.reprojecting import Reprojecting
from duostore_server.access.shapes import Shapes
from duostore_server.domain.backfills import BackfillState
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.backfills import AuroraBackfills
from duostore_server.storage.aurora.entities import AuroraEntities
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.cache.memory import MemoryCache
from duostore_server.storage.dynamodb.projections import open_projections
from duostore_server.storage.dynamodb.tables import create_tables
from duostore_server.workers.backfiller import SETTLE_SECONDS, Backfiller
from duostore_server.workers.loop import IncompleteRoundError
from tests.support.authority_engines import migrated_pool, soon, write_of
from tests.support.authority_faults import wait_until_blocked
from tests.support.dynamodb_engines import patient_client
from tests.support.reader_stack import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import Entity

TENANTS = ("", "acme")
IDS = 600
# Of each tenant: some documents of which a page holds few, and one that DynamoDB does not take.
LARGE, TOO_LARGE = 20, 1
BACKFILLERS, WORKERS, BATCH = 2, 2, 100
WITHIN_SECONDS = 60.0
POLICY = KindPolicy(
    60,
    10,
    ProjectionMode.INLINE,
    1 << 20,
    projection_version=2,
    transforms={2: lambda document: {"second": document["n"]}},
)


def filler(size: int) -> str:
    """Return text that no compression makes much smaller."""
    return random.Random(size).randbytes(size // 2).hex()


class Stage:
    """Entities in Aurora that DynamoDB has nothing of, and what is needed to bring them."""

    def __init__(self, stack: ExitStack, dsn: str, endpoint_url: str, prefix: str) -> None:
        self.dsn = dsn
        self.pool = stack.enter_context(migrated_pool(dsn))
        client = stack.enter_context(patient_client(endpoint_url))
        create_tables(client, prefix=prefix, pause=time.sleep)
        self.authority = AuroraAuthority(self.pool)
        self.backfills = AuroraBackfills(self.pool, claim=2)
        self.projections = stack.enter_context(
            open_projections(client, prefix=prefix, unreadable=lambda *_: None, timeout=10)
        )
        self.cache = MemoryCache()
        flags: dict[str, FlagValue] = {
            "projection_write.note.2": "both",
            "projection_read.note.2": 0,
        }
        self.shapes = Shapes(Policies({"note": POLICY}), codec.encode, flags.__getitem__)
        self.propagation = Propagation(self.projections, self.cache, self.shapes.project)
        self.failed_rounds = 0
        with psycopg.connect(dsn) as connection:
            for tenant in TENANTS:
                connection.execute(
                    "INSERT INTO duostore.entity"
                    " SELECT %s, kind, 'n' || n, 1, jsonb_build_object('n', n, 'text', ''), 1,"
                    " false, now(), now()"
                    " FROM generate_series(1, %s) AS n, unnest(ARRAY['note', 'other']) AS kind",
                    (tenant, IDS),
                )
                connection.execute(
                    "UPDATE duostore.entity SET data = data || jsonb_build_object('text', %s::text)"
                    " WHERE tenant = %s AND (data ->> 'n')::integer <= %s",
                    (filler(300_000), tenant, LARGE),
                )
                connection.execute(
                    "UPDATE duostore.entity SET data = data || jsonb_build_object('text', %s::text)"
                    " WHERE tenant = %s AND (data ->> 'n')::integer <= %s",
                    (filler(1_000_000), tenant, TOO_LARGE),
                )

    def backfiller(
        self, clock: Callable[[], float] = time.monotonic, settle: float = 0.0
    ) -> Backfiller:
        return Backfiller(
            backfills=self.backfills,
            entities=AuroraEntities(self.pool),
            reprojecting=Reprojecting(
                shapes=self.shapes,
                projections=self.projections,
                cache=self.cache,
                outbox=AuroraOutbox(self.pool, claim=5),
            ),
            kinds=("note", "absent"),
            workers=WORKERS,
            batch=BATCH,
            clock=clock,
            backfilled=lambda *_: None,
            settle=settle,
        )

    def state(self, kind: str = "note") -> BackfillState:
        found = self.backfills.find(kind, soon())
        assert found is not None
        return found.state

    def work(self, backfiller: Backfiller, rest: threading.Event) -> None:
        """Do as a Loop does, until the backfill is done."""
        end = time.monotonic() + WITHIN_SECONDS
        while self.state() is BackfillState.RUNNING:
            assert time.monotonic() < end, "the backfill is not done"
            try:
                more = backfiller.run_once()
            except IncompleteRoundError:
                self.failed_rounds += 1
                more = False
            if not more:
                rest.wait(0.02)

    def save(self, key: EntityKey, n: int) -> None:
        data: JsonObject | None = {"n": n, "text": "saved"} if n % 10 else None
        transaction = write_of(Change(key, data, None, timedelta()))
        (written,) = self.authority.write(transaction, soon()).written
        assert self.propagation.propagate((written.entity,), soon())

    def assert_agrees(self, keys: list[EntityKey]) -> None:
        entities = self.authority.read(keys, soon())
        assert len(entities) == len(keys)
        for start in range(0, len(keys), BATCH):
            part = keys[start : start + BATCH]
            held = self.projections.read(part, soon())
            for key in part:
                self.assert_projected(entities[key], held[key])

    def assert_projected(self, entity: Entity, held: Any) -> None:
        assert held.version == entity.version, entity.key
        if entity.data is None:
            assert held.form is Form.TOMBSTONE, entity.key
        elif len(entity.data["text"]) > 900_000:
            assert held.form is Form.STUB, entity.key
        else:
            assert held == self.shapes.project(entity), entity.key


@pytest.fixture
def stage(postgres_dsn: str, dynamodb: Any, table_prefix: str) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(stack, postgres_dsn, dynamodb.endpoint_url, table_prefix)


def all_keys() -> list[EntityKey]:
    return [EntityKey(tenant, "note", f"n{n}") for tenant in TENANTS for n in range(1, IDS + 1)]


def test_two_backfillers_bring_all_entities_beside_saves_and_nothing_else(stage: Stage) -> None:
    keys = all_keys()
    started = stage.backfills.start("note", rate=0, parts=6, caller="", deadline=soon())
    assert started.parts > BACKFILLERS
    saved: set[EntityKey] = set()
    over = threading.Event()

    def save(seed: int) -> None:
        order = random.Random(seed)
        n = 1000 * seed
        while not over.is_set():
            # Not those at the limits of DynamoDB, which would be small afterwards.
            key = order.choice([key for key in keys if int(key.id[1:]) > LARGE])
            n += 1
            stage.save(key, n)
            saved.add(key)

    with ThreadPoolExecutor(BACKFILLERS + 2) as pool:
        savers = [pool.submit(save, seed) for seed in (1, 2)]
        try:
            workers = [
                pool.submit(stage.work, stage.backfiller(), over) for _ in range(BACKFILLERS)
            ]
            for worker in workers:
                worker.result()
        finally:
            over.set()
        for saver in savers:
            saver.result()
    assert saved
    assert stage.failed_rounds == 0
    stage.assert_agrees(keys)
    done = stage.backfills.find("note", soon())
    assert done is not None
    assert (done.state, done.done, done.failed) == (BackfillState.DONE, len(keys), 0)
    # A Save projects by itself.
    assert len(keys) - len(saved) - done.projected <= len(TENANTS) * TOO_LARGE
    assert done.projected <= len(keys)
    other = [EntityKey(tenant, "other", "n50") for tenant in TENANTS]
    assert not stage.projections.read(other, soon())


def test_a_second_backfill_finds_nothing_to_do(stage: Stage) -> None:
    for expected in (len(all_keys()), 0):
        stage.backfills.start("note", rate=0, parts=3, caller="", deadline=soon())
        stage.work(stage.backfiller(), threading.Event())
        done = stage.backfills.find("note", soon())
        assert done is not None
        assert (done.done, done.projected) == (len(all_keys()), expected)
    stage.assert_agrees(all_keys())


def test_stubs_of_what_fits_are_replaced_and_those_of_what_does_not_are_left(
    stage: Stage,
) -> None:
    keys = all_keys()
    for key in keys:
        stage.projections.put(key, Projection(1, Form.STUB), soon())
    for expected in (len(keys) - len(TENANTS) * TOO_LARGE, 0):
        stage.backfills.start("note", rate=0, parts=3, caller="", deadline=soon())
        stage.work(stage.backfiller(), threading.Event())
        done = stage.backfills.find("note", soon())
        assert done is not None
        assert (done.done, done.projected) == (len(keys), expected)
    stage.assert_agrees(keys)


# In force in every process within so many seconds.
IN_FORCE_SECONDS = 2.0
LOCK: LiteralString = """
SELECT FROM duostore.entity WHERE tenant = '' AND kind = 'note' AND id = %s FOR UPDATE
"""


class Behind:
    """A process that takes a flag for what it was, while it is set anew."""

    def __init__(self, stage: Stage, pool: AuroraPool) -> None:
        self.flags: dict[str, FlagValue] = {
            "projection_write.note.2": "old",
            "projection_read.note.2": 0,
        }
        shapes = Shapes(Policies({"note": POLICY}), codec.encode, self.flags.__getitem__)
        self.authority = AuroraAuthority(pool)
        self.propagation = Propagation(stage.projections, stage.cache, shapes.project)

    def save(self, key: EntityKey) -> None:
        change = Change(key, {"n": 7, "text": "saved"}, None, timedelta())
        patient = Deadline.after(WITHIN_SECONDS)
        (written,) = self.authority.write(write_of(change), patient).written
        assert self.propagation.propagate((written.entity,), patient)


@pytest.mark.parametrize("commits", ["before the first batch", "after the last batch"])
def test_a_save_that_was_under_way_when_a_flag_was_set_leaves_no_shape_behind(
    stage: Stage, commits: str
) -> None:
    # Of its tenant the first key in order, as it is of the kind.
    key = EntityKey("", "note", "n100")
    clock = Clock()
    backfiller = stage.backfiller(clock=clock, settle=SETTLE_SECONDS)
    with ExitStack() as stack:
        pool = stack.enter_context(
            AuroraPool(stage.dsn, lock_timeout=WITHIN_SECONDS, statement_timeout=WITHIN_SECONDS)
        )
        behind = Behind(stage, pool)
        thread = stack.enter_context(ThreadPoolExecutor(1))
        holder = stack.enter_context(psycopg.connect(stage.dsn))
        holder.execute(LOCK, (key.id,))
        saved = thread.submit(behind.save, key)
        wait_until_blocked(stage.dsn)
        stage.backfills.start("note", rate=0, parts=WORKERS, caller="", deadline=soon())
        for clock.now in (0.0, 1.0, IN_FORCE_SECONDS - 0.01):
            while backfiller.run_once():
                pass
        if commits == "before the first batch":
            holder.rollback()
            saved.result()
        behind.flags["projection_write.note.2"] = "both"
        clock.now = IN_FORCE_SECONDS + 1.0
        stage.work(backfiller, threading.Event())
        holder.rollback()
        saved.result()
    held = stage.projections.read([key], soon())[key]
    assert (held.version, held.shapes) == (2, frozenset({1, 2}))
    stage.assert_agrees(all_keys())


def test_a_kind_without_entities_is_done_at_once(stage: Stage) -> None:
    stage.backfills.start("absent", rate=0, parts=4, caller="", deadline=soon())
    backfiller = stage.backfiller()
    backfiller.run_once()
    assert stage.state("absent") is BackfillState.DONE


def test_the_largest_batch_is_within_what_the_stores_take_at_a_time(stage: Stage) -> None:
    stage.backfills.start("note", rate=0, parts=1, caller="", deadline=soon())
    backfiller = stage.backfiller()
    backfiller._batch = 1000
    stage.work(backfiller, threading.Event())
    assert stage.failed_rounds == 0
    stage.assert_agrees(all_keys())
