"""Stale documents: recomputed from what is committed, whoever else is at work."""

from __future__ import annotations

import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from structlog.testing import capture_logs

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.domain.policies import INLINE_DUE_AFTER
from duostore_server.domain.read_models import Outcome
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.built import building
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.source_changes import AuroraSourceChanges
from duostore_server.storage.aurora.stale import AuroraStaleDocuments
from duostore_server.storage.aurora.stale_rows import touching
from duostore_server.storage.aurora.triggers import install
from tests.support.authority_engines import migrated_pool, soon, write_of
from tests.support.authority_faults import blocked, query, round_trips, wait_until_blocked
from tests.support.fan_out import (
    CARD,
    MODELS,
    TABLES,
    TENANT,
    all_due,
    begin,
    bring_up_to_date,
    card,
    define,
    elapse,
    expand_all,
    found,
    note,
    recompute_all,
    stale,
)
from tests.support.read_models import by_kind, of_table, read_model
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.read_models import (
        Expansion,
        ReadModel,
        Recomputed,
        SourceChange,
        StaleDocument,
    )
    from duostore_server.storage.aurora.trips import Course, Rows, Statement
    from tests.support.servers import PostgresServer

SAME, OTHER = Outcome.UNCHANGED, Outcome.CHANGED

AL, BO, CY = card("al"), card("bo"), card("cy")


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        query(dsn, TABLES)
        yield dsn, pool


@pytest.fixture
def dsn(database: tuple[str, AuroraPool]) -> str:
    dsn, _ = database
    begin(dsn)
    query(dsn, "INSERT INTO public.owner VALUES ('al', 'Al', 1), ('bo', 'Bo', 2), ('cy', 'Cy', 5)")
    return dsn


@pytest.fixture
def pool(database: tuple[str, AuroraPool], dsn: str) -> AuroraPool:
    assert dsn
    return database[1]


@pytest.fixture
def documents(pool: AuroraPool) -> AuroraStaleDocuments:
    return AuroraStaleDocuments(pool, MODELS)


def touch(pool: AuroraPool, *keys: EntityKey) -> None:
    statement = touching(keys)
    pool.execute(statement.query, statement.params, soon())


def outcomes(recomputed: Sequence[Recomputed]) -> list[Outcome]:
    return [each.outcome for each in recomputed]


def al(notes: int = 0, name: str = "Al") -> dict[str, Any]:
    return {"name": name, "share": 10, "notes": notes}


def test_a_document_follows_its_sources(dsn: str, pool: AuroraPool) -> None:
    note(pool, "n-1", "al")
    recomputed = bring_up_to_date(pool)
    assert set(outcomes(list(recomputed.values()))) == {Outcome.CHANGED}
    written = recomputed["al"].written
    assert written
    assert (written.entity.key, written.entity.version) == (AL, 1)
    assert written.entity.data == al(1)
    assert AuroraAuthority(pool).read([AL], soon())[AL] == written.entity
    note(pool, "n-1", "bo")
    query(dsn, "UPDATE public.owner SET name = 'Bob' WHERE id = 'bo'")
    query(dsn, "DELETE FROM public.owner WHERE id = 'cy'")
    recomputed = bring_up_to_date(pool)
    assert set(recomputed) == {"al", "bo", "cy"}
    assert found(pool, AL, BO, CY) == [al(), {"name": "Bob", "share": 5, "notes": 1}, None]
    assert (written := recomputed["cy"].written)
    assert (written.entity.version, written.entity.data) == (2, None)
    query(dsn, "INSERT INTO public.owner VALUES ('cy', 'Cyd', 5)")
    assert (written := bring_up_to_date(pool)["cy"].written)
    assert written.entity.version == 3
    assert stale(dsn) == []


def test_a_version_is_written_only_if_the_document_has_changed(dsn: str, pool: AuroraPool) -> None:
    bring_up_to_date(pool)
    query(dsn, "UPDATE public.owner SET name = name")
    touch(pool, card("nobody"))
    recomputed = bring_up_to_date(pool)
    assert len(recomputed) == 4
    assert set(outcomes(list(recomputed.values()))) == {Outcome.UNCHANGED}
    assert query(dsn, "SELECT DISTINCT version FROM duostore.entity") == [(1,)]
    assert stale(dsn) == []


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ("1::bigint", "1.0::float8", SAME),
        ("1::bigint", "true", OTHER),
        ("0::bigint", "false", OTHER),
        ("NULL::text", "NULL::bigint", SAME),
        ("1::numeric", "'1'::text", SAME),
        ("1::bigint", "'1'::text", OTHER),
        ("""'{"a": 1, "bb": 2}'::json""", """'{"bb": 2.0, "a": 1}'::jsonb""", SAME),
        ("""'[1, 2]'::jsonb""", """'[2, 1]'::jsonb""", OTHER),
        ("0.1::float8", "0.1::float4", SAME),
        ("1e-300::float8", "1e-300::float8", SAME),
        ("9007199254740991", "9007199254740992", OTHER),
    ],
)
def test_documents_are_compared_as_json(
    dsn: str, pool: AuroraPool, before: str, after: str, outcome: Outcome
) -> None:
    for value, expected in ((before, OTHER), (after, outcome), (after, SAME)):
        model = replace(
            read_model("card", f"SELECT {value} AS v WHERE :id <> ''"), sources=CARD.sources
        )
        define(dsn, by_kind(model))
        touch(pool, AL)
        (recomputed,) = recompute_all(AuroraStaleDocuments(pool, by_kind(model))).values()
        assert recomputed.outcome is expected


def test_an_empty_document_is_a_document(dsn: str, pool: AuroraPool) -> None:
    model = replace(
        read_model("card", "SELECT FROM public.owner WHERE id = :id"), sources=CARD.sources
    )
    define(dsn, by_kind(model))
    for n in range(2):
        touch(pool, AL)
        (recomputed,) = recompute_all(AuroraStaleDocuments(pool, by_kind(model))).values()
        assert recomputed.outcome is (Outcome.UNCHANGED if n else Outcome.CHANGED)
    assert found(pool, AL) == [{}]
    query(dsn, "DELETE FROM public.owner")
    touch(pool, AL)
    (recomputed,) = recompute_all(AuroraStaleDocuments(pool, by_kind(model))).values()
    assert recomputed.outcome is Outcome.CHANGED
    assert found(pool, AL) == [None]


def test_a_recomputation_leaves_an_outbox_row_and_who_did_it(dsn: str, pool: AuroraPool) -> None:
    touch(pool, AL)
    written = recompute_all(AuroraStaleDocuments(pool, MODELS))["al"].written
    assert written
    ((id_, waits),) = query(dsn, "SELECT id, due_time - create_time FROM duostore.outbox")
    assert (id_, waits) == (written.row.id, INLINE_DUE_AFTER)
    assert query(dsn, "SELECT operation, caller, request_id, version FROM duostore.audit") == [
        ("save", "duostore", "recompute", 1)
    ]


def test_many_are_answered_in_their_order_in_a_few_round_trips(dsn: str) -> None:
    keys = [card(name) for name in ("cy", "al", "nobody", "bo")]
    with migrated_pool(dsn, max_size=1) as pool:
        documents = AuroraStaleDocuments(pool, MODELS)
        for n in range(8):
            query(dsn, "UPDATE public.owner SET name = %s", str(n))
            touch(pool, *keys)
            by_key = {each.key: each for each in all_due(documents)}
            with round_trips(pool) as count:
                recomputed = documents.recompute([by_key[key] for key in keys], soon())
                assert count() == 3
            assert [each.key for each in recomputed] == keys
            assert outcomes(recomputed) == [
                Outcome.CHANGED,
                Outcome.CHANGED,
                Outcome.UNCHANGED,
                Outcome.CHANGED,
            ]
        assert documents.recompute([], soon()) == []


@contextmanager
def outbox_locked(dsn: str, id_: str) -> Iterator[psycopg.Connection[Any]]:
    """Keep the outbox row of a card locked: who recomputes it waits between reading and writing."""
    with psycopg.connect(dsn) as other:
        other.execute(
            "INSERT INTO duostore.outbox (tenant, kind, entity_id, due_time, create_time)"
            " VALUES (%s, 'card', %s, now() + interval '1 h', now())"
            " ON CONFLICT (tenant, kind, entity_id) DO UPDATE SET due_time = excluded.due_time",
            (TENANT, id_),
        )
        yield other


class TouchesWithoutANewId(AuroraSourceChanges):
    def _noting(
        self, change: SourceChange, page: Rows, keys: Sequence[EntityKey], expansion: Expansion
    ) -> list[Statement]:
        return [
            replace(each, query=each.query.replace("id = DEFAULT,", ""))
            for each in super()._noting(change, page, keys, expansion)
        ]


def check_a_document_that_is_touched_meanwhile_stays_stale(
    dsn: str, pool: AuroraPool, make: type[AuroraSourceChanges]
) -> None:
    bring_up_to_date(pool)
    documents = AuroraStaleDocuments(pool, MODELS)
    query(dsn, "UPDATE public.owner SET name = 'Ali' WHERE id = 'al'")
    expand_all(make(pool, MODELS))
    due = all_due(documents)
    with ThreadPoolExecutor(1) as threads:
        with outbox_locked(dsn, "al") as other:
            recomputing = threads.submit(documents.recompute, due, soon())
            wait_until_blocked(dsn)
            query(dsn, "UPDATE public.owner SET name = 'Alan' WHERE id = 'al'")
            expand_all(make(pool, MODELS))
            other.rollback()
        (recomputed,) = recomputing.result(10)
    assert recomputed.written
    assert recomputed.written.entity.data == al(name="Ali")
    assert stale(dsn) == ["al"]
    bring_up_to_date(pool)
    assert found(pool, AL) == [al(name="Alan")]


def test_a_document_that_is_touched_while_it_is_recomputed_stays_stale(
    dsn: str, pool: AuroraPool
) -> None:
    check_a_document_that_is_touched_meanwhile_stays_stale(dsn, pool, AuroraSourceChanges)


def test_a_touch_without_a_new_id_is_found(dsn: str, pool: AuroraPool) -> None:
    with pytest.raises(AssertionError):
        check_a_document_that_is_touched_meanwhile_stays_stale(dsn, pool, TouchesWithoutANewId)
    bring_up_to_date(pool)
    assert found(pool, AL) == [al(name="Ali")]


class ReadsBeforeItLocks(AuroraStaleDocuments):
    def _looked_at(self, stale: Sequence[StaleDocument]) -> Generator[Any, Any, Any]:
        found = yield [building(self._models[each.key.kind], each.key) for each in stale]
        seen = yield from super()._looked_at(stale)
        return replace(seen, found=found)


class PausedPool(AuroraPool):
    """A pool whose transactions stop after their first trip until they may go on."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, wait=10, lock_timeout=10, statement_timeout=10)
        self.stopped, self.may_go_on = threading.Event(), threading.Event()

    def transact(self, course: Callable[[], Course], deadline: Deadline) -> None:
        def paused() -> Course:
            inner = course()
            rows = yield next(inner)
            self.stopped.set()
            assert self.may_go_on.wait(10)
            try:
                while True:
                    rows = yield inner.send(rows)
            except StopIteration as done:
                last: Sequence[Statement] = done.value
                return last

        super().transact(paused, deadline)


def check_of_two_at_once_the_newest_sources_win(
    dsn: str, pool: AuroraPool, make: type[AuroraStaleDocuments]
) -> None:
    """The earlier one has read when the sources change, and writes when the later one has read."""
    bring_up_to_date(pool)
    query(dsn, "UPDATE public.owner SET name = 'Ali' WHERE id = 'al'")
    expand_all(AuroraSourceChanges(pool, MODELS))
    later = make(pool, MODELS)
    with PausedPool(dsn) as paused, ThreadPoolExecutor(2) as threads:
        earlier = make(paused, MODELS)
        first = threads.submit(earlier.recompute, all_due(earlier), soon())
        assert paused.stopped.wait(10)
        query(dsn, "UPDATE public.owner SET name = 'Alan' WHERE id = 'al'")
        expand_all(AuroraSourceChanges(pool, MODELS))
        second = threads.submit(later.recompute, all_due(later), soon())
        eventually(
            lambda: second.done() or blocked(dsn) == 1,
            within=10,
            what="the later one is done or waits",
        )
        paused.may_go_on.set()
        assert outcomes([*first.result(10), *second.result(10)]) == [Outcome.CHANGED] * 2
    assert stale(dsn) == []
    assert found(pool, AL) == [al(name="Alan")]


def test_of_two_recomputations_at_once_the_newest_sources_win(dsn: str, pool: AuroraPool) -> None:
    check_of_two_at_once_the_newest_sources_win(dsn, pool, AuroraStaleDocuments)


def test_a_recomputation_that_reads_before_it_locks_is_found(dsn: str, pool: AuroraPool) -> None:
    with pytest.raises(AssertionError):
        check_of_two_at_once_the_newest_sources_win(dsn, pool, ReadsBeforeItLocks)
    # For ever, since nothing is left to do.
    assert stale(dsn) == []
    assert found(pool, AL) == [al(name="Ali")]


@pytest.mark.parametrize("entity", ["absent", "present"])
def test_of_two_that_create_or_change_a_document_at_once_one_waits_for_the_other(
    dsn: str, pool: AuroraPool, entity: str
) -> None:
    """Whether there is an entity to be locked or not."""
    if entity == "present":
        bring_up_to_date(pool)
    documents = AuroraStaleDocuments(pool, MODELS)
    query(dsn, "UPDATE public.owner SET name = 'Ali'")
    touch(pool, AL)
    with ThreadPoolExecutor(2) as threads:
        with outbox_locked(dsn, "al") as other:
            first = threads.submit(documents.recompute, all_due(documents), soon())
            wait_until_blocked(dsn)
            touch(pool, AL)
            second = threads.submit(documents.recompute, all_due(documents), soon())
            wait_until_blocked(dsn, 2)
            other.rollback()
        both = [*first.result(10), *second.result(10)]
    assert outcomes(both) == [Outcome.CHANGED, Outcome.UNCHANGED]


def test_documents_are_locked_in_one_order(dsn: str, pool: AuroraPool) -> None:
    """Two lots with the same documents in opposite orders do not wait for each other."""
    bring_up_to_date(pool)
    documents = AuroraStaleDocuments(pool, MODELS)
    touch(pool, AL, BO, CY)
    due = sorted(all_due(documents), key=lambda each: each.key.id)
    barrier = threading.Barrier(2)

    def recompute(lot: Sequence[StaleDocument]) -> None:
        barrier.wait()
        for _ in range(30):
            assert outcomes(documents.recompute(lot, soon())) == [Outcome.UNCHANGED] * 3

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(recompute, (due, due[::-1])))
    assert query(dsn, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert stale(dsn) == []


def test_one_that_fails_holds_up_none_of_its_lot(dsn: str, pool: AuroraPool) -> None:
    query(dsn, "UPDATE public.owner SET rank = 0 WHERE id = 'bo'")
    expand_all(AuroraSourceChanges(pool, MODELS))
    documents = AuroraStaleDocuments(pool, MODELS)
    with capture_logs() as logs:
        recomputed = {each.key.id: each for each in documents.recompute(all_due(documents), soon())}
    assert {id_: each.outcome for id_, each in recomputed.items()} == {
        "al": Outcome.CHANGED,
        "bo": Outcome.FAILED,
        "cy": Outcome.CHANGED,
    }
    assert [line["why"] for line in logs] == ["SQLSTATE 22012"]
    assert stale(dsn) == ["bo"]
    for n in range(1, 9):
        seconds = min(60, 2 ** (n - 1))
        assert query(
            dsn,
            "SELECT failures, round(extract(epoch FROM due_time - now()))::integer"
            " FROM duostore.stale",
        ) == [(n, seconds)]
        assert all_due(documents) == []
        elapse(dsn, 100)
        # Behind what has not failed.
        touch(pool, AL)
        assert [each.key for each in documents.claim(1, soon())] == [AL]
        query(dsn, "DELETE FROM duostore.stale WHERE entity_id = 'al'")
        recompute_all(documents)
    query(dsn, "UPDATE public.owner SET rank = 1 WHERE id = 'bo'")
    assert bring_up_to_date(pool)["bo"].outcome is Outcome.CHANGED


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("repeat('x', 5000)", "has [0-9]+ bytes of JSON; at most 4096"),
        ("(SELECT 'x' FROM pg_sleep(10))", "SQLSTATE 57014"),
        ("(SELECT name FROM public.owner)", "SQLSTATE 21000"),
        ("repeat('[', 30)::jsonb", "SQLSTATE 22P02"),
        ("(repeat('[', 20) || repeat(']', 20))::jsonb", "nests deeper than 20 levels"),
    ],
)
def test_a_read_model_may_fail_in_many_ways(
    dsn: str, pool: AuroraPool, expression: str, why: str
) -> None:
    sql = f"SELECT CASE WHEN :id = 'bo' THEN {expression}::text END AS v"
    if "deeper" in why:
        sql = f"SELECT CASE WHEN :id = 'bo' THEN {expression} END AS v"
    models = by_kind(replace(read_model("card", sql), sources=CARD.sources))
    define(dsn, models)
    touch(pool, AL, BO, CY)
    with AuroraPool(dsn, statement_timeout=0.2) as hurried, capture_logs() as logs:
        documents = AuroraStaleDocuments(hurried, models)
        recomputed = recompute_all(documents)
    assert {id_: each.outcome for id_, each in recomputed.items()} == {
        "al": Outcome.CHANGED,
        "bo": Outcome.FAILED,
        "cy": Outcome.CHANGED,
    }
    (line,) = logs
    assert re.search(why, line["why"])
    assert query(dsn, "SELECT entity_id, failures FROM duostore.stale") == [("bo", 1)]


def test_one_that_takes_all_the_time_leaves_some_to_the_others(dsn: str, pool: AuroraPool) -> None:
    sql = "SELECT CASE WHEN :id = 'al' THEN (SELECT 'x' FROM pg_sleep(10)) END AS v"
    models = by_kind(replace(read_model("card", sql), sources=CARD.sources))
    define(dsn, models)
    documents = AuroraStaleDocuments(pool, models)
    touch(pool, AL, BO)
    due = sorted(all_due(documents), key=lambda each: each.key.id)
    with capture_logs():
        recomputed = documents.recompute(due, Deadline.after(2))
    assert outcomes(recomputed) == [Outcome.FAILED, Outcome.CHANGED]
    assert query(dsn, "SELECT entity_id, failures FROM duostore.stale") == [("al", 1)]


def test_a_release_leaves_to_the_next_one_what_that_has_to_recompute(
    dsn: str, pool: AuroraPool
) -> None:
    """In a rolling deployment the workers of the release before are still there."""
    bring_up_to_date(pool)
    newer = by_kind(replace(CARD, sql=read_model("card", "SELECT 1 AS n WHERE :id <> ''").sql))
    old, new = AuroraStaleDocuments(pool, MODELS), AuroraStaleDocuments(pool, newer)
    touch(pool, AL, card("al", kind="team_card"))
    claimed_before = sorted(all_due(old), key=lambda each: each.key.kind)
    elapse(dsn, 60)
    define(dsn, newer)
    # What is not redefined goes on; what is, is left without a word.
    recomputed = old.recompute(claimed_before, soon())
    assert [(each.key.kind, each.outcome) for each in recomputed] == [("team_card", SAME)]
    assert query(dsn, "SELECT kind, failures FROM duostore.stale") == [("card", 0)]
    assert all_due(old) == []
    assert found(pool, AL) == [al()]
    assert outcomes(new.recompute(all_due(new), soon())) == [Outcome.CHANGED]
    assert found(pool, AL) == [{"n": 1}]


@pytest.mark.parametrize("change", ["another source", "a source less", "no kind"])
def test_a_kind_of_other_sources_is_another_release_s(
    dsn: str, pool: AuroraPool, change: str
) -> None:
    statement = {
        "another source": "INSERT INTO duostore.read_model VALUES ('card', 'kind:x', '', now())",
        "a source less": "DELETE FROM duostore.read_model WHERE source = 'kind:note'",
        "no kind": "DELETE FROM duostore.read_model WHERE kind = 'card'",
    }[change]
    documents = AuroraStaleDocuments(pool, MODELS)
    touch(pool, AL)
    due = all_due(documents)
    elapse(dsn, 60)
    query(dsn, statement)
    try:
        assert all_due(documents) == []
        assert documents.recompute(due, soon()) == []
        assert stale(dsn) == ["al"]
    finally:
        query(dsn, "TRUNCATE duostore.read_model")


def test_sql_that_a_migration_has_left_behind_does_not_fail(dsn: str, pool: AuroraPool) -> None:
    gone = by_kind(replace(CARD, sql=read_model("card", "SELECT 1 AS n FROM gone").sql))
    define(dsn, gone)
    documents = AuroraStaleDocuments(pool, gone)
    touch(pool, AL, BO)
    due = all_due(documents)
    define(dsn, MODELS)
    assert documents.recompute(due, soon()) == []
    assert query(dsn, "SELECT DISTINCT failures FROM duostore.stale") == [(0,)]


def test_kinds_are_redefined_when_nothing_is_being_recomputed(dsn: str, pool: AuroraPool) -> None:
    newer = by_kind(replace(CARD, sql=read_model("card", "SELECT 1 AS n WHERE :id <> ''").sql))
    bring_up_to_date(pool)
    query(dsn, "UPDATE public.owner SET name = 'Ali' WHERE id = 'al'")
    touch(pool, AL)
    with PausedPool(dsn) as paused, ThreadPoolExecutor(2) as threads:
        documents = AuroraStaleDocuments(paused, MODELS)
        recomputing = threads.submit(documents.recompute, all_due(documents), soon())
        assert paused.stopped.wait(10)
        installing = threads.submit(install, dsn, newer)
        wait_until_blocked(dsn)
        assert not installing.done()
        paused.may_go_on.set()
        assert outcomes(recomputing.result(10)) == [Outcome.CHANGED]
        assert installing.result(10)
    assert found(pool, AL) == [al(name="Ali")]


def test_documents_that_are_slow_together_are_recomputed_alone(dsn: str) -> None:
    sql = "SELECT (SELECT 'x' FROM pg_sleep(CASE :id WHEN 'al' THEN 10 ELSE 0.2 END)) AS v"
    models = by_kind(replace(CARD, sql=read_model("card", sql).sql))
    define(dsn, models)
    # Each statement may take long, so that it is the client that gives up on the lot.
    with AuroraPool(dsn, statement_timeout=30) as patient, capture_logs() as logs:
        documents = AuroraStaleDocuments(patient, models)
        touch(patient, *(card(str(n)) for n in range(6)))
        recomputed = documents.recompute(all_due(documents), Deadline.after(2))
        assert outcomes(recomputed)[:2] == [Outcome.CHANGED] * 2
        touch(patient, AL)
        assert outcomes(documents.recompute(all_due(documents), Deadline.after(1))) == [
            Outcome.FAILED
        ]
    assert logs[-1]["event"] == "document cannot be recomputed"
    assert query(dsn, "SELECT failures FROM duostore.stale WHERE entity_id = 'al'") == [(1,)]


def test_what_another_host_recomputes_just_now_has_not_failed(dsn: str, pool: AuroraPool) -> None:
    bring_up_to_date(pool)
    query(dsn, "UPDATE public.owner SET name = 'Ali'")
    touch(pool, AL, BO)
    with PausedPool(dsn) as paused, AuroraPool(dsn, lock_timeout=0.05) as other:
        documents = AuroraStaleDocuments(paused, MODELS)
        due = sorted(all_due(documents), key=lambda each: each.key.id)
        with ThreadPoolExecutor(1) as threads:
            recomputing = threads.submit(documents.recompute, due[:1], soon())
            assert paused.stopped.wait(10)
            try:
                second = AuroraStaleDocuments(other, MODELS).recompute(due, soon())
                assert [each.key for each in second] == [BO]
                assert query(dsn, "SELECT entity_id, failures FROM duostore.stale") == [("al", 0)]
            finally:
                paused.may_go_on.set()
            assert outcomes(recomputing.result(10)) == [Outcome.CHANGED]
    assert stale(dsn) == []


def test_behind_a_pooler_documents_do_not_depend_on_what_the_session_was_told(
    dsn: str, pool: AuroraPool
) -> None:
    sql = (
        "SELECT ('2026-01-01T12:00:00Z'::timestamptz)::text AS time, '1 day'::interval::text AS d,"
        " (0.1::float8 + 0.2)::text AS f, current_setting('lock_timeout') AS l,"
        " current_setting('idle_in_transaction_session_timeout') AS i WHERE :id <> ''"
    )
    models = by_kind(replace(CARD, sql=read_model("card", sql).sql))
    define(dsn, models)
    touch(pool, AL, BO)
    with AuroraPool(dsn, min_size=1, max_size=1, wait=5, pooler=True) as shared:
        documents = AuroraStaleDocuments(shared, models)
        due = all_due(documents)
        documents.recompute(due[:1], soon())
        for setting in (
            "RESET ALL",
            "SET timezone = 'Europe/Berlin'",
            "SET datestyle = 'German'",
            "SET intervalstyle = 'iso_8601'",
            "SET extra_float_digits = -3",
        ):
            shared.execute(setting, (), soon())
        documents.recompute(due[1:], soon())
    one, other = found(pool, AL, BO)
    assert one == other
    assert (one["time"], one["l"], one["i"]) == ("2026-01-01 12:00:00+00", "1s", "5s")


OWNER = read_model(
    "owner",
    "SELECT o.name, (SELECT count(*) FROM public.membership AS m WHERE m.owner = o.id) AS teams"
    " FROM public.owner AS o WHERE o.id = :id",
    of_table("public.owner", "SELECT 'acme' AS tenant, :id AS id", "id"),
    of_table(
        "public.membership",
        "SELECT 'acme' AS tenant, id FROM public.owner WHERE id = :owner",
        "owner",
    ),
    save="INSERT INTO public.owner VALUES (:id, :data ->> 'name', 1)"
    " ON CONFLICT (id) DO UPDATE SET name = excluded.name",
    delete="DELETE FROM public.owner WHERE id = :id",
)


@pytest.fixture
def owners(dsn: str) -> Iterator[dict[str, ReadModel]]:
    models = dict(by_kind(OWNER))
    install(dsn, models)
    query(dsn, "TRUNCATE duostore.source_change, duostore.stale")
    yield models
    install(dsn, MODELS)


def save_owner(pool: AuroraPool, id_: str, name: str | None) -> None:
    data = None if name is None else {"name": name}
    change = Change(card(id_, kind="owner"), data, None, timedelta())
    AuroraAuthority(pool, by_kind(OWNER)).write(write_of(change), soon())


@pytest.mark.parametrize("id_", ["al", "new"])
def test_a_save_that_is_under_way_is_waited_for_or_wins(
    dsn: str, pool: AuroraPool, owners: dict[str, ReadModel], id_: str
) -> None:
    """The Save has its rows, uncommitted, when the document is recomputed from others."""
    key = card(id_, kind="owner")
    if id_ == "al":
        save_owner(pool, id_, "Al")
    documents = AuroraStaleDocuments(pool, owners)
    query(dsn, "DELETE FROM duostore.stale")
    query(dsn, "INSERT INTO public.membership VALUES (%s, 'blue')", id_)
    touch(pool, key)
    due = all_due(documents)
    with ThreadPoolExecutor(2) as threads:
        with psycopg.connect(dsn) as other:
            # The last statement of the Save waits for it.
            other.execute("LOCK TABLE duostore.stale IN SHARE MODE")
            saving = threads.submit(save_owner, pool, id_, "Newest")
            wait_until_blocked(dsn)
            recomputing = threads.submit(documents.recompute, due, soon())
            wait_until_blocked(dsn, 2)
            other.rollback()
        saving.result(10)
        with capture_logs():
            recomputing.result(10)
    elapse(dsn, 60)
    expand_all(AuroraSourceChanges(pool, owners))
    recompute_all(documents)
    assert found(pool, key) == [{"name": "Newest", "teams": 1}]
    assert stale(dsn) == []


class ReadsEntitiesLast(AuroraStaleDocuments):
    def _looked_at(self, stale: Sequence[StaleDocument]) -> Generator[Any, Any, Any]:
        first = yield from super()._looked_at(stale)
        last = yield from super()._looked_at(stale)
        return replace(last, found=first.found)


def check_a_save_while_its_document_is_built(
    dsn: str, pool: AuroraPool, make: type[AuroraStaleDocuments]
) -> None:
    """The read model waits in the middle; the Save does not wait for it, and is not undone."""
    key = card("al", kind="owner")
    save_owner(pool, "al", "Al")
    query(dsn, "DELETE FROM duostore.stale")
    slow = replace(
        OWNER,
        sql=read_model(
            "owner",
            "SELECT name, 0 AS teams, 1 AS n FROM public.owner,"
            " pg_advisory_xact_lock_shared(77) WHERE id = :id",
        ).sql,
    )
    define(dsn, by_kind(slow))
    documents = make(pool, by_kind(slow))
    touch(pool, key)
    due = all_due(documents)
    with ThreadPoolExecutor(1) as threads:
        with psycopg.connect(dsn) as other:
            other.execute("SELECT pg_advisory_xact_lock(77)")
            recomputing = threads.submit(documents.recompute, due, soon())
            wait_until_blocked(dsn)
            with AuroraPool(dsn, lock_timeout=0.2) as hurried:
                save_owner(hurried, "al", "Newest")
            other.rollback()
        assert recomputing.result(10) == []
    assert query(dsn, "SELECT entity_id, failures FROM duostore.stale") == [("al", 0)]
    assert found(pool, key) == [{"name": "Newest", "teams": 0}]
    recompute_all(documents)
    assert found(pool, key) == [{"name": "Newest", "teams": 0, "n": 1}]


def test_a_save_does_not_wait_for_a_read_model_and_wins(
    dsn: str, pool: AuroraPool, owners: dict[str, ReadModel]
) -> None:
    assert owners
    check_a_save_while_its_document_is_built(dsn, pool, AuroraStaleDocuments)


def test_a_recomputation_that_reads_the_version_last_is_found(
    dsn: str, pool: AuroraPool, owners: dict[str, ReadModel]
) -> None:
    assert owners
    with pytest.raises(AssertionError):
        check_a_save_while_its_document_is_built(dsn, pool, ReadsEntitiesLast)


def test_a_save_that_a_change_did_not_find_is_recomputed(
    dsn: str, pool: AuroraPool, owners: dict[str, ReadModel]
) -> None:
    """It was built before the change was committed, and committed after that was expanded."""
    changes, documents = AuroraSourceChanges(pool, owners), AuroraStaleDocuments(pool, owners)
    with ThreadPoolExecutor(1) as threads:
        with psycopg.connect(dsn) as other:
            other.execute("LOCK TABLE duostore.stale IN SHARE MODE")
            saving = threads.submit(save_owner, pool, "new", "New")
            wait_until_blocked(dsn)
            query(dsn, "INSERT INTO public.membership VALUES ('new', 'blue')")
            ((change,),) = (changes.claim(10, soon()),)
            # Nothing to be touched, so that the lock is in nobody's way.
            assert changes.expand(change, 10, soon()).touched == 0
            other.rollback()
        saving.result(10)
    assert found(pool, card("new", kind="owner")) == [{"name": "New", "teams": 0}]
    elapse(dsn, 60)
    recompute_all(documents)
    assert found(pool, card("new", kind="owner")) == [{"name": "New", "teams": 1}]


def test_rows_that_other_programs_write_become_documents(
    dsn: str, pool: AuroraPool, owners: dict[str, ReadModel]
) -> None:
    query(dsn, "INSERT INTO public.owner VALUES ('new', 'New', 1)")
    expand_all(AuroraSourceChanges(pool, owners))
    recompute_all(AuroraStaleDocuments(pool, owners))
    assert found(pool, card("new", kind="owner")) == [{"name": "New", "teams": 0}]
    save_owner(pool, "new", None)
    expand_all(AuroraSourceChanges(pool, owners))
    recompute_all(AuroraStaleDocuments(pool, owners))
    assert found(pool, card("new", kind="owner")) == [None]


def test_documents_of_kinds_that_are_not_configured_here_are_left_alone(
    dsn: str, pool: AuroraPool
) -> None:
    touch(pool, AL, card("x", kind="newer"))
    documents = AuroraStaleDocuments(pool, MODELS)
    assert [each.key for each in all_due(documents)] == [AL]
    assert all_due(AuroraStaleDocuments(pool, {})) == []
    assert dsn


def test_a_claimed_document_is_given_to_nobody_until_the_claim_runs_out(
    dsn: str, documents: AuroraStaleDocuments, pool: AuroraPool
) -> None:
    touch(pool, AL, BO)
    (first,) = documents.claim(1, soon())
    (second,) = documents.claim(9, soon())
    assert {first.key, second.key} == {AL, BO}
    assert all_due(documents) == []
    elapse(dsn, 4)
    assert all_due(documents) == []
    elapse(dsn, 1.1)
    assert {each.id for each in all_due(documents)} == {first.id, second.id}


def test_a_deadline_that_passed_stops_a_call_before_it_begins(
    dsn: str, documents: AuroraStaleDocuments, pool: AuroraPool
) -> None:
    touch(pool, AL, BO)
    due = all_due(documents)
    elapse(dsn, 60)
    for deadline in (Deadline.after(0), Deadline.after(10, cancelled=lambda: True)):
        with pytest.raises(DeadlineExceededError):
            documents.claim(1, deadline)
        for lot in (due, due[:1]):
            with pytest.raises(DeadlineExceededError):
                documents.recompute(lot, deadline)
    assert len(all_due(documents)) == 2
    assert found(pool, AL, BO) == [None, None]


AUTHORS = [f"a{n}" for n in range(6)]


DELETE_OWNER = "DELETE FROM public.owner WHERE id = %(one)s"
MOVE_OWNER = """
UPDATE public.owner SET id = %(one)s
WHERE id = %(other)s AND NOT EXISTS (SELECT FROM public.owner WHERE id = %(one)s)
"""
SAVE_OWNERS = """
INSERT INTO public.owner VALUES (%(one)s, %(name)s, 1), (%(other)s || 'x', %(name)s, 1)
ON CONFLICT (id) DO UPDATE SET name = excluded.name
"""


def save_at_random(pool: AuroraPool, rng: random.Random) -> None:
    for _ in range(100):
        note(pool, f"n-{rng.randrange(12)}", rng.choice(AUTHORS))


def change_at_random(dsn: str, rng: random.Random) -> None:
    statements = (DELETE_OWNER, MOVE_OWNER, SAVE_OWNERS)
    with psycopg.connect(dsn) as connection:
        for n in range(200):
            one, other = rng.sample(AUTHORS, 2)
            connection.execute(rng.choice(statements), {"one": one, "other": other, "name": str(n)})
            if rng.randrange(3):
                connection.commit()
            elif rng.randrange(2):
                connection.rollback()


def work_until(stop: threading.Event, pool: AuroraPool) -> None:
    """Expand and recompute a little at a time, and give up on whatever is in the way."""
    changes, documents = AuroraSourceChanges(pool, MODELS), AuroraStaleDocuments(pool, MODELS)
    while not stop.is_set():
        with suppress(StoreError):
            for each in changes.claim(3, soon()):
                changes.expand(each, 2, soon())
        with suppress(StoreError):
            documents.recompute(documents.claim(5, soon()), soon())


def test_whatever_changes_each_document_ends_as_its_select_run_afresh(
    dsn: str, pool: AuroraPool
) -> None:
    """Savers, other programs and impatient workers, all at once."""
    stop = threading.Event()
    with (
        capture_logs(),
        AuroraPool(dsn, lock_timeout=0.01, wait=10) as hurried,
        ThreadPoolExecutor(4) as threads,
    ):
        working = [threads.submit(work_until, stop, hurried) for _ in range(2)]
        try:
            writing = [
                threads.submit(save_at_random, pool, random.Random(1)),
                threads.submit(change_at_random, dsn, random.Random(2)),
            ]
            for each in writing:
                each.result(60)
        finally:
            stop.set()
        for each in working:
            each.result(10)
    elapse(dsn, 3600)
    bring_up_to_date(pool)
    assert stale(dsn) == []
    afresh = {
        str(id_): document
        for id_, document in query(
            dsn,
            "SELECT o.id, jsonb_build_object('name', o.name, 'share', 10 / o.rank, 'notes', ("
            " SELECT count(*) FROM duostore.entity WHERE kind = 'note'"
            " AND data ->> 'author' = o.id)) FROM public.owner AS o",
        )
    }
    ids = [*AUTHORS, *(f"{author}x" for author in AUTHORS)]
    assert found(pool, *map(card, ids)) == [afresh.get(id_) for id_ in ids]
