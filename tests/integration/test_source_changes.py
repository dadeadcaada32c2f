"""From the change of a source to the documents that it touches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from structlog.testing import capture_logs

from duostore_server.config.sql_files import parse
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreOverloadedError
from duostore_server.domain.read_models import Expansion, FanOutBacklog
from duostore_server.storage.aurora.definitions import digest_of
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.source_changes import AuroraSourceChanges
from duostore_server.storage.aurora.stale_rows import touching
from duostore_server.storage.aurora.triggers import install
from tests.support.authority_engines import migrated_pool, soon
from tests.support.authority_faults import query, wait_until_blocked
from tests.support.fan_out import (
    CARD,
    MODELS,
    TABLES,
    begin,
    card,
    claimed,
    elapse,
    expand_all,
    note,
    stale,
)
from tests.support.read_models import by_kind, of_kind, of_table, read_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.read_models import ReadModel, SourceChange
    from duostore_server.storage.aurora.trips import Rows, Statement
    from tests.support.servers import PostgresServer

MEMBERS = [f"m{n:02}" for n in range(25)]
THREADS = 4


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
    return dsn


@pytest.fixture
def pool(database: tuple[str, AuroraPool], dsn: str) -> AuroraPool:
    assert dsn
    return database[1]


@pytest.fixture
def changes(pool: AuroraPool) -> AuroraSourceChanges:
    return AuroraSourceChanges(pool, MODELS)


def configure(dsn: str, models: Mapping[str, ReadModel]) -> None:
    """Have it that these were installed; the triggers stay as they are."""
    query(dsn, "TRUNCATE duostore.read_model")
    for model in models.values():
        for source in model.sources:
            query(
                dsn,
                "INSERT INTO duostore.read_model VALUES (%s, %s, %s, now())",
                model.kind,
                source.name,
                digest_of(model, source),
            )


def team_of_25(dsn: str, pool: AuroraPool) -> None:
    """Leave one change, that touches 25 documents, some of which it finds twice."""
    query(
        dsn,
        "INSERT INTO public.membership SELECT m, 'blue' FROM unnest(%s::text[]) AS m",
        [*MEMBERS, *MEMBERS[:5]],
    )
    query(dsn, "TRUNCATE duostore.source_change")
    note(pool, "blue", "x", kind="team")


def test_what_a_change_touches_is_stale_and_the_change_is_gone(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    note(pool, "n-1", "al")
    query(dsn, "INSERT INTO public.owner VALUES ('bo', 'Bo', 1), ('cy', 'Cy', 1)")
    note(pool, "n-1", "cy")
    assert {(change.kind, change.source, change.begun) for change in claimed(changes)} == {
        ("card", "kind:note", False),
        ("card", "table:public.owner", False),
    }
    elapse(dsn, 60)
    expand_all(changes)
    assert stale(dsn) == ["al", "bo", "cy"]
    assert changes.backlog(soon()).changes == 0


def test_the_tenant_is_that_of_the_source_unless_the_select_has_one(
    dsn: str, pool: AuroraPool
) -> None:
    def tenants(models: dict[str, ReadModel]) -> list[object]:
        install(dsn, models)
        query(dsn, "TRUNCATE duostore.source_change, duostore.stale, public.owner")
        query(dsn, "TRUNCATE duostore.source_change")
        note(pool, "n-1", "al")
        query(dsn, "INSERT INTO public.owner VALUES ('bo', 'Bo', 1)")
        expand_all(AuroraSourceChanges(pool, models))
        images = query(dsn, "SELECT tenant, entity_id FROM duostore.stale ORDER BY 2")
        query(dsn, "TRUNCATE duostore.stale")
        for kind, source in models_of(models):
            query(
                dsn,
                "INSERT INTO duostore.source_change (kind, source) VALUES (%s, %s)",
                kind,
                source,
            )
        expand_all(AuroraSourceChanges(pool, models))
        assert query(dsn, "SELECT tenant, entity_id FROM duostore.stale ORDER BY 2") == images
        return [tenant for tenant, _ in images]

    def models_of(models: dict[str, ReadModel]) -> list[tuple[str, str]]:
        return [(kind, each.name) for kind, model in models.items() for each in model.sources]

    def of(kind: str, table: str, *fields: str) -> dict[str, ReadModel]:
        sources = (of_kind("note", kind, "author"), of_table("public.owner", table, *fields))
        return dict(by_kind(read_model("card", "SELECT 1 AS n", *sources)))

    try:
        assert tenants(of("SELECT :author AS id", "SELECT :id AS id", "id")) == ["acme", ""]
        assert tenants(
            of("SELECT 'x' AS tenant, :author AS id", "SELECT :id AS id, 'y' AS tenant", "id")
        ) == ["x", "y"]
    finally:
        install(dsn, MODELS)


def test_a_large_change_is_expanded_a_page_at_a_time(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    team_of_25(dsn, pool)
    (change,) = claimed(changes)
    assert not change.begun
    assert changes.expand(change, 10, soon()) == Expansion(5, done=False)
    assert stale(dsn) == MEMBERS[:5]
    # At once, by whomever, from there.
    (again,) = claimed(AuroraSourceChanges(pool, MODELS))
    assert again == replace(change, begun=True, alone=True)
    assert changes.expand(again, 10, soon()) == Expansion(10, done=False)
    assert changes.expand(change, 10, soon()) == Expansion(10, done=False)
    assert stale(dsn) == MEMBERS
    assert changes.expand(change, 10, soon()) == Expansion(0, done=True)
    assert changes.expand(change, 10, soon()) == Expansion(0, done=True)
    assert changes.backlog(soon()).changes == 0


def test_what_is_begun_waits_behind_what_is_new(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    team_of_25(dsn, pool)
    (large,) = claimed(changes)
    note(pool, "n-1", "al")
    changes.expand(large, 10, soon())
    assert [change.source for change in claimed(changes)] == ["kind:note", "kind:team"]
    elapse(dsn, 60)
    assert [each.source for each in changes.claim(10, soon(), fresh=True)] == ["kind:note"]
    assert [each.source for each in claimed(changes)] == ["kind:team"]


def check_a_page_that_fails_is_done_again(
    dsn: str, pool: AuroraPool, make: type[AuroraSourceChanges]
) -> None:
    team_of_25(dsn, pool)
    with AuroraPool(dsn, lock_timeout=0.05) as impatient:
        unlucky = make(impatient, MODELS)
        (change,) = claimed(unlucky)
        assert not unlucky.expand(change, 10, soon()).done
        with psycopg.connect(dsn) as other:
            other.execute(
                "INSERT INTO duostore.stale (tenant, kind, entity_id) VALUES (%s, 'team_card', %s)",
                ("acme", MEMBERS[8]),
            )
            unlucky.expand(change, 10, soon())
            other.rollback()
        assert stale(dsn) == MEMBERS[:5]
    elapse(dsn, 60)
    expand_all(AuroraSourceChanges(pool, MODELS), 10)
    assert stale(dsn) == MEMBERS


def test_another_worker_goes_on_where_a_page_was_rolled_back(dsn: str, pool: AuroraPool) -> None:
    check_a_page_that_fails_is_done_again(dsn, pool, AuroraSourceChanges)


class CommitsTheCursorFirst(AuroraSourceChanges):
    def expand(self, change: SourceChange, limit: int, deadline: Deadline) -> Expansion:
        self.left: list[Statement] = []
        expansion = super().expand(change, limit, deadline)
        with suppress(StoreOverloadedError):
            for each in self.left:
                self._pool.execute(each.query, each.params, deadline)
        return expansion

    def _noting(
        self, change: SourceChange, page: Rows, keys: Sequence[EntityKey], expansion: Expansion
    ) -> list[Statement]:
        *self.left, advance = super()._noting(change, page, keys, expansion)
        return [advance]


def test_a_cursor_that_is_committed_before_its_page_is_found(dsn: str, pool: AuroraPool) -> None:
    with pytest.raises(AssertionError):
        check_a_page_that_fails_is_done_again(dsn, pool, CommitsTheCursorFirst)
    assert set(MEMBERS) - set(stale(dsn)) == set(MEMBERS[5:15])


def test_a_whole_change_touches_what_the_source_leads_to_and_what_is_there(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    note(pool, "n-1", "al")
    note(pool, "n-2", "bo")
    note(pool, "n-2", None)
    note(pool, "gone", "x", kind="card")
    note(pool, "deleted", "x", kind="card")
    note(pool, "deleted", None, kind="card")
    query(dsn, "INSERT INTO public.owner VALUES ('cy', 'Cy', 1)")
    query(dsn, "TRUNCATE duostore.source_change")
    query(dsn, "INSERT INTO duostore.source_change (kind, source) VALUES ('card', 'kind:note')")
    # A note leads to what is a document too: that is found once.
    note(pool, "n-3", "gone")
    query(dsn, "DELETE FROM duostore.source_change WHERE image IS NOT NULL")
    (change,) = claimed(changes)
    assert changes.expand(change, 1, soon()) == Expansion(1, done=False)
    assert stale(dsn) == ["al"]
    assert changes.expand(change, 2, soon()) == Expansion(1, done=True)
    assert stale(dsn) == ["al", "gone"]
    query(dsn, "DELETE FROM duostore.entity WHERE kind = 'note' AND id = 'n-3'")
    query(dsn, "TRUNCATE duostore.stale")
    query(dsn, "TRUNCATE public.owner")
    expand_all(changes)
    assert stale(dsn) == ["gone"]
    query(dsn, "TRUNCATE duostore.stale")
    query(dsn, "INSERT INTO public.owner VALUES ('cy', 'Cy', 1)")
    query(dsn, "TRUNCATE duostore.source_change")
    query(
        dsn,
        "INSERT INTO duostore.source_change (kind, source) VALUES ('card', 'table:public.owner')",
    )
    expand_all(changes)
    assert stale(dsn) == ["cy", "gone"]


def test_ids_that_no_document_can_have_are_left_out_and_told_of(dsn: str, pool: AuroraPool) -> None:
    ids = """
    SELECT * FROM (VALUES
        ('acme', 'good'), ('acme', NULL), ('acme', ''), ('acme', repeat('x', 513)),
        ('acme', E'tab\\t'), ('a#b', 'x'), (NULL, 'x'), (repeat('t', 65), 'x'), ('', 'good too')
    ) AS v (tenant, id)
    WHERE :author = 'al'
    """
    models = by_kind(read_model("card", "SELECT 1 AS n", of_kind("note", ids, "author")))
    configure(dsn, models)
    changes = AuroraSourceChanges(pool, models)
    note(pool, "n-1", "al")
    with capture_logs() as logs:
        assert expand_all(changes, 4) == 3
    assert stale(dsn) == ["good", "good too"]
    # What is NULL is taken for what is empty, and those are one.
    assert sum(line["left_out"] for line in logs) == 6
    assert {line["event"] for line in logs} == {"change touches what can be no document"}
    assert changes.backlog(soon()).changes == 0


def test_a_change_whose_sql_fails_stays_and_holds_nobody_up(dsn: str, pool: AuroraPool) -> None:
    models = by_kind(
        read_model(
            "card",
            "SELECT 1 AS n",
            of_kind("note", "SELECT 1 / :author::integer AS id", "author"),
            of_table("public.owner", "SELECT :id AS id", "id"),
        )
    )
    configure(dsn, models)
    changes = AuroraSourceChanges(pool, models)
    for n, author in enumerate(("0", "not a number", "1")):
        note(pool, f"n-{n}", author)
    query(dsn, "INSERT INTO public.owner VALUES ('bo', 'Bo', 1)")
    with capture_logs() as logs:
        expand_all(changes)
    assert [line["sqlstate"] for line in logs] == ["22012", "22P02"]
    assert "not a number" not in str(logs)
    assert stale(dsn) == ["1", "bo"]

    def waits() -> list[tuple[object, ...]]:
        return query(
            dsn,
            "SELECT failures, round(extract(epoch FROM due_time - now()))::integer"
            " FROM duostore.source_change ORDER BY id",
        )

    assert waits() == [(1, 1), (1, 1)]
    for n in range(1, 9):
        elapse(dsn, 100)
        # Behind what has not failed.
        note(pool, "n-9", "9")
        assert [change.source for change in claimed(changes, 1)] == ["kind:note"]
        elapse(dsn, 100)
        expand_all(changes)
        seconds = min(60, 2**n)
        assert waits() == [(n + 1, seconds), (n + 1, seconds)]


def test_sql_that_takes_too_long_fails_like_any_other(dsn: str, pool: AuroraPool) -> None:
    slow = of_kind("note", "SELECT :author AS id FROM pg_sleep(10)", "author")
    models = by_kind(read_model("card", "SELECT 1", slow))
    configure(dsn, models)
    note(pool, "n-1", "al")
    with AuroraPool(dsn, statement_timeout=0.05) as hurried, capture_logs() as logs:
        changes = AuroraSourceChanges(hurried, models)
        (change,) = claimed(changes)
        assert changes.expand(change, 10, soon()) == Expansion(0, done=False)
    assert [line["sqlstate"] for line in logs] == ["57014"]
    assert query(dsn, "SELECT failures FROM duostore.source_change") == [(1,)]
    backlog = AuroraSourceChanges(pool, {}).backlog(soon())
    assert (backlog.changes, backlog.failing) == (0, 1)


def test_what_is_not_configured_here_is_left_alone(pool: AuroraPool) -> None:
    note(pool, "n-1", "al")
    older = AuroraSourceChanges(pool, by_kind(replace(CARD, sources=CARD.sources[1:])))
    assert claimed(older) == []
    assert claimed(AuroraSourceChanges(pool, {})) == []
    assert older.backlog(soon()).changes == 1


def test_a_claimed_change_is_given_to_nobody_until_the_claim_runs_out(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    note(pool, "n-1", "al")
    (change,) = claimed(changes)
    assert claimed(changes) == []
    elapse(dsn, 4)
    assert claimed(changes) == []
    elapse(dsn, 1.1)
    assert claimed(changes) == [change]


def test_the_backlog_is_as_old_as_the_oldest_of_both(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    assert changes.backlog(soon()) == FanOutBacklog(0, 0, 0, 0.0)
    note(pool, "n-1", "al")
    expand_all(changes)
    elapse(dsn, 100)
    note(pool, "n-2", "bo")
    note(pool, "n-3", "cy")
    backlog = changes.backlog(soon())
    assert (backlog.changes, backlog.stale) == (2, 1)
    assert 100 <= backlog.oldest_seconds < 130


def test_two_that_expand_one_change_leave_nothing_out(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    team_of_25(dsn, pool)
    (change,) = claimed(changes)
    barrier = threading.Barrier(THREADS)

    def expand(_: int) -> int:
        barrier.wait()
        touched = 0
        while not (expansion := changes.expand(change, 4, soon())).done:
            touched += expansion.touched
        return touched + expansion.touched

    with ThreadPoolExecutor(THREADS) as threads:
        assert sum(threads.map(expand, range(THREADS))) == len(MEMBERS)
    assert stale(dsn) == MEMBERS


def test_a_document_that_is_touched_again_has_a_new_id_and_is_due_at_once(
    dsn: str, pool: AuroraPool
) -> None:
    def row() -> Any:
        ((id_, due),) = query(
            dsn, "SELECT id, due_time <= clock_timestamp() AND failures = 0 FROM duostore.stale"
        )
        return id_, due

    touch = touching([card("al")])
    pool.execute(touch.query, touch.params, soon())
    first, due = row()
    assert due
    query(dsn, "UPDATE duostore.stale SET due_time = now() + interval '1 h', failures = 3")
    pool.execute(touch.query, touch.params, soon())
    second, due = row()
    assert due
    assert second > first


def test_a_deadline_that_passed_stops_a_call_before_it_begins(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    note(pool, "n-1", "al")
    (change,) = claimed(changes)
    elapse(dsn, 60)
    for deadline in (Deadline.after(0), Deadline.after(10, cancelled=lambda: True)):
        for call in (
            lambda: changes.claim(1, deadline),  # noqa: B023 - called at once
            lambda: changes.expand(change, 1, deadline),  # noqa: B023 - called at once
            lambda: changes.expand_together([change], 1, deadline),  # noqa: B023 - called at once
            lambda: changes.waiting(1, deadline),  # noqa: B023 - called at once
            lambda: changes.backlog(deadline),  # noqa: B023 - called at once
        ):
            with pytest.raises(DeadlineExceededError):
                call()
    assert claimed(changes) == [change]
    assert stale(dsn) == []


# Of the same kind and source as CARD, and of another release.
LATER = by_kind(replace(CARD, sql=parse("read_model.sql", "SELECT 1 AS n")))


def test_what_another_release_installed_is_for_its_own_processes(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    note(pool, "n-1", "al")
    earlier = claimed(changes)
    configure(dsn, LATER)
    elapse(dsn, 60)
    assert claimed(changes) == []
    assert changes.expand(earlier[0], 10, soon()) == Expansion(0, done=False)
    assert changes.expand_together(earlier, 10, soon()) == Expansion(0, done=False)
    assert stale(dsn) == []
    assert changes.waiting(10, soon()) == 0
    assert expand_all(AuroraSourceChanges(pool, LATER)) == 1
    assert stale(dsn) == ["al"]


def test_an_installation_under_way_is_not_overtaken(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    note(pool, "n-1", "al")
    (change,) = claimed(changes)
    with psycopg.connect(dsn) as installing:
        installing.execute("UPDATE duostore.read_model SET digest = 'new'")
        assert changes.expand(change, 10, soon()) == Expansion(0, done=False)
        assert changes.expand_together([change], 10, soon()) == Expansion(0, done=False)
        installing.rollback()
    assert stale(dsn) == []
    assert changes.expand(change, 10, soon()) == Expansion(1, done=True)


def test_an_installation_waits_for_what_is_being_expanded(dsn: str, pool: AuroraPool) -> None:
    team_of_25(dsn, pool)
    changes = AuroraSourceChanges(pool, MODELS)
    (change,) = claimed(changes)
    with ThreadPoolExecutor(1) as threads:
        with psycopg.connect(dsn) as other:
            other.execute("LOCK TABLE duostore.stale IN SHARE MODE")
            expanding = threads.submit(changes.expand, change, 100, soon())
            wait_until_blocked(dsn)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                query(
                    dsn,
                    "SELECT FROM duostore.read_model WHERE source = 'kind:team'"
                    " FOR NO KEY UPDATE NOWAIT",
                )
            other.rollback()
        assert expanding.result(10).done


def test_small_changes_are_expanded_together(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    for n, author in enumerate(("al", "bo", "al")):
        note(pool, f"n-{n}", author)
    together = claimed(changes)
    assert not any(change.alone for change in together)
    found = len(together)
    # What two find counts twice.
    assert changes.expand_together(together, 2, soon()) is None
    assert stale(dsn) == []
    assert changes.expand_together(together, found, soon()) == Expansion(2, done=True)
    assert stale(dsn) == ["al", "bo"]
    assert changes.backlog(soon()).changes == 0
    assert changes.expand_together(together, found, soon()) == Expansion(0, done=True)


@pytest.mark.parametrize("source", ["kind:note", "table:public.owner"])
def test_together_the_same_documents_are_found_as_alone(
    dsn: str, pool: AuroraPool, source: str
) -> None:
    ids = (
        "SELECT md5(coalesce(:name, 'none')) AS id, 'of-' || :tenant AS tenant"
        " WHERE coalesce(:name, 'a') LIKE 'a%'"
    )
    of = (
        of_kind("note", ids, "name")
        if source == "kind:note"
        else of_table("public.owner", ids, "name", "tenant")
    )
    models = by_kind(read_model("card", "SELECT 1 AS n", of))
    configure(dsn, models)
    changes = AuroraSourceChanges(pool, models)
    images = [
        {"tenant": tenant, "id": "n", "name": name}
        for tenant in ("acme", "", None)
        for name in ("ab", "b", "a'\"\\%", None)
    ]

    def change() -> Sequence[SourceChange]:
        for image in [*images, {"id": "n"}]:
            query(
                dsn,
                "INSERT INTO duostore.source_change (kind, source, image) VALUES ('card', %s, %s)",
                source,
                Jsonb(image),
            )
        return claimed(changes)

    def found() -> list[tuple[object, ...]]:
        return query(dsn, "SELECT tenant, entity_id FROM duostore.stale ORDER BY 1, 2")

    for each in change():
        changes.expand(each, 100, soon())
    alone = found()
    assert len(alone) == 6
    query(dsn, "TRUNCATE duostore.stale")
    assert changes.expand_together(change(), 100, soon()) == Expansion(6, done=True)
    assert found() == alone


def test_one_that_fails_leaves_all_of_its_group(dsn: str, pool: AuroraPool) -> None:
    ids = "SELECT 1 / :author::integer AS id"
    models = by_kind(read_model("card", "SELECT 1 AS n", of_kind("note", ids, "author")))
    configure(dsn, models)
    changes = AuroraSourceChanges(pool, models)
    for author in ("1", "0"):
        note(pool, f"n-{author}", author)
    together = claimed(changes)
    assert changes.expand_together(together, 10, soon()) is None
    assert stale(dsn) == []
    with capture_logs():
        changes.expand(together[1], 10, soon())
    elapse(dsn, 60)
    assert [change.alone for change in claimed(changes)] == [False, True]


def test_a_change_of_any_row_or_that_is_begun_is_no_part_of_a_group(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    team_of_25(dsn, pool)
    query(dsn, "INSERT INTO duostore.source_change (kind, source) VALUES ('card', 'kind:note')")
    large, whole = claimed(changes)
    assert [large.alone, whole.alone] == [False, True]
    changes.expand(large, 10, soon())
    assert changes.expand_together([large], 100, soon()) == Expansion(0, done=True)
    assert changes.expand_together([whole], 100, soon()) == Expansion(0, done=True)
    assert changes.backlog(soon()).changes == 2


def test_a_tenth_of_a_claim_is_for_what_failed(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    for n in range(30):
        note(pool, f"n-{n}", "al")
    query(dsn, "UPDATE duostore.source_change SET failures = 1 WHERE mod(id, 2) = 0")
    assert [change.alone for change in claimed(changes, 10)] == [False] * 9 + [True]
    # Room that is left is for more of them.
    assert [change.alone for change in claimed(changes, 15)] == [False] * 6 + [True] * 9
    assert [change.alone for change in claimed(changes, 15)] == [True] * 5


def test_rows_of_others_and_what_failed_do_not_wait_here(
    dsn: str, pool: AuroraPool, changes: AuroraSourceChanges
) -> None:
    assert pool
    query(
        dsn,
        "INSERT INTO duostore.stale (tenant, kind, entity_id, failures)"
        " SELECT 'acme', kind, id::text, failures FROM (VALUES"
        " ('gone', 0, 30), ('card', 1, 30), ('card', 0, 2), ('team_card', 0, 3)"
        ") AS v (kind, failures, number), generate_series(number, 2 * number - 1) AS id",
    )
    assert changes.waiting(100, soon()) == 5
    assert changes.waiting(4, soon()) == 4
    assert AuroraSourceChanges(pool, {}).waiting(100, soon()) == 0
    assert changes.backlog(soon()).stale == 35
