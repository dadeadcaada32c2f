"""Changes of sources are noted in the transaction that makes them, whoever makes it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from structlog.testing import capture_logs

from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.migrate import MigrationError
from duostore_server.storage.aurora.source_changes import AuroraSourceChanges
from duostore_server.storage.aurora.triggers import install, missing
from tests.support.authority_engines import migrated_pool, soon, write_of
from tests.support.authority_faults import query, wait_until_blocked
from tests.support.fan_out import elapse, expand_all, stale
from tests.support.read_models import by_kind, of_kind, of_table, read_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.read_models import ReadModel, Source
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

TABLES = """
CREATE TABLE public.town (
    id bigint PRIMARY KEY, country text, at timestamptz, size double precision, raw bytea,
    tags text[]
);
CREATE TABLE public.log (day date, town bigint, text text) PARTITION BY RANGE (day);
CREATE TABLE public.log_1 PARTITION OF public.log FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE public.log_2 PARTITION OF public.log FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE VIEW public.view AS SELECT * FROM public.town;
"""

UPSERT = """
INSERT INTO public.town VALUES (3, 'it'), (4, 'es')
ON CONFLICT (id) DO UPDATE SET country = excluded.country
"""

IDS = "SELECT :country AS id"
TOWNS = of_table("public.town", IDS, "country")


def card(*sources: Source, sql: str = "SELECT 1 AS n WHERE :id <> ''") -> ReadModel:
    return read_model("card", sql, *sources)


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        query(dsn, TABLES)
        yield dsn, pool


@pytest.fixture
def dsn(database: tuple[str, AuroraPool]) -> str:
    """Return a database without any trigger of ours."""
    dsn, _ = database
    install(dsn, {})
    query(
        dsn,
        "TRUNCATE public.town, public.log, duostore.source_change, duostore.stale, duostore.entity,"
        " duostore.outbox",
    )
    return dsn


def watch(dsn: str, *sources: Source) -> None:
    """Have changes of these noted, and begin with none."""
    install(dsn, by_kind(card(*sources)))
    query(dsn, "TRUNCATE duostore.source_change")


def images(dsn: str) -> list[Any]:
    return [
        image
        for (image,) in query(dsn, "SELECT image FROM duostore.source_change ORDER BY image::text")
    ]


def triggers(dsn: str) -> list[tuple[object, ...]]:
    return query(
        dsn,
        "SELECT tgrelid::regclass::text, tgname::text FROM pg_trigger"
        " WHERE starts_with(tgname::text, 'duostore') ORDER BY 1, 2",
    )


def countries(*names: str | None) -> list[dict[str, str | None]]:
    return [{"country": name} for name in names]


def test_each_kind_of_statement_is_noted(dsn: str) -> None:
    watch(dsn, TOWNS)
    done = []
    for statement, noted in (
        ("INSERT INTO public.town VALUES (1, 'fr'), (2, 'fr'), (3, 'de')", countries("de", "fr")),
        ("UPDATE public.town SET size = 1 WHERE country = 'fr'", countries("fr")),
        ("UPDATE public.town SET country = 'be' WHERE id = 1", countries("be", "fr")),
        ("UPDATE public.town SET size = 1 WHERE false", []),
        (
            UPSERT,
            countries("de", "es", "it"),
        ),
        ("INSERT INTO public.town VALUES (3, 'x') ON CONFLICT DO NOTHING", []),
        ("WITH gone AS (DELETE FROM public.town WHERE id = 4) SELECT 1", countries("es")),
        ("DELETE FROM public.town WHERE id <= 2", countries("be", "fr")),
        ("INSERT INTO public.town VALUES (9, NULL)", countries(None)),
        ("TRUNCATE public.town", [None]),
    ):
        query(dsn, statement)
        assert images(dsn) == noted, statement
        query(dsn, "TRUNCATE duostore.source_change")
        done.append(statement)
    assert len(done) == 10


def test_copied_rows_are_noted(dsn: str) -> None:
    watch(dsn, TOWNS)
    with (
        psycopg.connect(dsn, autocommit=True) as connection,
        connection.cursor().copy("COPY public.town (id, country) FROM STDIN") as copy,
    ):
        for n in range(1000):
            copy.write_row((n, f"c{n % 3}"))
    assert images(dsn) == countries("c0", "c1", "c2")


def test_a_change_is_noted_with_its_transaction_or_not_at_all(dsn: str) -> None:
    watch(dsn, TOWNS)
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO public.town VALUES (1, 'fr')")
        assert images(dsn) == []
        connection.rollback()
    assert images(dsn) == []


def test_values_are_text_that_does_not_depend_on_who_writes(dsn: str) -> None:
    watch(dsn, of_table("public.town", "SELECT :at AS id", "at", "size", "raw", "tags", "id"))
    with psycopg.connect(dsn, autocommit=True) as connection:
        for setting in (
            "datestyle = 'German'",
            "timezone = 'Asia/Tokyo'",
            "bytea_output = 'escape'",
            "extra_float_digits = -3",
            "search_path = ''",
        ):
            connection.execute(f"SET {setting}")
        connection.execute(
            "INSERT INTO public.town (id, at, size, raw, tags)"
            " VALUES (7, '2026-01-02T03:04:05Z', 0.1, '\\x6100', '{a,\"b c\"}')"
        )
    assert images(dsn) == [
        {
            "id": "7",
            "at": "2026-01-02 03:04:05+00",
            "size": "0.1",
            "raw": "\\x6100",
            "tags": '{a,"b c"}',
        }
    ]


def test_of_a_partitioned_table_both_ways_of_writing_are_noted(dsn: str) -> None:
    watch(dsn, of_table("public.log", "SELECT :town AS id", "town"))
    query(dsn, "INSERT INTO public.log VALUES ('2026-01-05', 1), ('2026-02-05', 2)")
    assert images(dsn) == [{"town": "1"}, {"town": "2"}]
    query(dsn, "INSERT INTO public.log_1 VALUES ('2026-01-06', 3)")
    query(dsn, "UPDATE public.log SET day = '2026-02-07' WHERE town = 3")
    assert images(dsn) == [{"town": str(n)} for n in (1, 2, 3, 3)]
    query(dsn, "TRUNCATE public.log_2")
    assert images(dsn)[-1] is None


def test_partitions_that_come_later_are_watched_once_it_is_migrated(dsn: str) -> None:
    logs = by_kind(card(of_table("public.log", "SELECT :town AS id", "town")))
    install(dsn, logs)
    query(
        dsn,
        "CREATE TABLE public.log_3 PARTITION OF public.log"
        " FOR VALUES FROM ('2026-03-01') TO ('2026-04-01')",
    )
    try:
        assert missing(dsn, logs) == []
        query(dsn, "TRUNCATE duostore.source_change")
        query(dsn, "INSERT INTO public.log VALUES ('2026-03-05', 1)")
        assert images(dsn) == [{"town": "1"}]
        assert install(dsn, logs)
        query(dsn, "INSERT INTO public.log_3 VALUES ('2026-03-05', 2)")
        assert images(dsn) == [{"town": "2"}, None]
    finally:
        query(dsn, "DROP TABLE public.log_3")


def test_who_writes_needs_no_right_to_our_tables(dsn: str) -> None:
    watch(dsn, TOWNS)
    with psycopg.connect(dsn, autocommit=True) as connection, role(connection, "writer"):
        connection.execute("GRANT INSERT, SELECT ON public.town TO writer")
        connection.execute("SET ROLE writer")
        connection.execute("INSERT INTO public.town VALUES (1, 'fr')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM duostore.source_change")
        # Nor may they note what did not happen, by a trigger of their own.
        connection.execute("CREATE TEMPORARY TABLE mine (n int)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(
                "CREATE TRIGGER t AFTER INSERT ON mine EXECUTE FUNCTION"
                " duostore.note_rows('card', 'table:public.town', 'n')"
            )
    assert images(dsn) == countries("fr")


@contextmanager
def role(connection: psycopg.Connection[Any], name: str) -> Iterator[None]:
    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
    try:
        yield
    finally:
        connection.execute("RESET ROLE")
        connection.execute(sql.SQL("DROP OWNED BY {0} CASCADE").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_column_that_is_gone_stops_nobody_and_is_told_of(dsn: str) -> None:
    query(dsn, "CREATE TABLE public.lake (id bigint, country text, depth bigint)")
    try:
        lakes = by_kind(card(of_table("public.lake", IDS, "country", "depth")))
        install(dsn, lakes)
        query(dsn, "TRUNCATE duostore.source_change")
        query(dsn, "ALTER TABLE public.lake DROP COLUMN depth")
        query(dsn, "INSERT INTO public.lake VALUES (1, 'fr')")
        query(dsn, "UPDATE public.lake SET country = 'de'")
        # Any row, and once for all of them.
        assert images(dsn) == [None]
        (problem,) = missing(dsn, lakes)
        assert "which has no column depth" in problem
        with pytest.raises(MigrationError, match="has no column depth"):
            install(dsn, lakes)
    finally:
        query(dsn, "DROP TABLE public.lake")


def test_what_is_written_while_a_column_is_away_is_found_once_it_is_back(
    dsn: str, database: tuple[str, AuroraPool]
) -> None:
    _, pool = database
    query(dsn, "CREATE TABLE public.lake (id bigint, country text)")
    try:
        ids = "SELECT 'acme' AS tenant, :country AS id WHERE :country IS NOT NULL"
        lakes = by_kind(card(of_table("public.lake", ids, "country")))
        install(dsn, lakes)
        query(dsn, "TRUNCATE duostore.source_change")
        query(dsn, "ALTER TABLE public.lake RENAME country TO land")
        query(dsn, "INSERT INTO public.lake VALUES (1, 'fr')")
        changes = AuroraSourceChanges(pool, lakes)
        with capture_logs():
            assert expand_all(changes) == 1
        query(dsn, "ALTER TABLE public.lake RENAME land TO country")
        elapse(dsn, 60)
        expand_all(changes)
        assert stale(dsn) == ["fr"]
    finally:
        query(dsn, "DROP TABLE public.lake")


def save(pool: AuroraPool, kind: str, id_: str, data: dict[str, Any] | None) -> None:
    change = Change(EntityKey("acme", kind, id_), data, None, timedelta())
    AuroraAuthority(pool).write(write_of(change), soon())


def test_of_a_kind_every_version_is_noted_with_what_it_was_before(
    dsn: str, database: tuple[str, AuroraPool]
) -> None:
    _, pool = database
    watch(dsn, of_kind("note", "SELECT :author AS id", "author", "tags"))

    def noted(*pairs: tuple[str | None, str | None]) -> list[dict[str, str | None]]:
        key = {"id": "n-1", "tenant": "acme"}
        return [{"author": author, "tags": tags, **key} for author, tags in pairs]

    for data, expected in (
        ({"author": "al", "tags": ["x"]}, noted(("al", '["x"]'))),
        ({"author": "al", "tags": ["x"], "more": 1}, noted(("al", '["x"]'))),
        ({"author": "bo"}, noted(("al", '["x"]'), ("bo", None))),
        (None, noted(("bo", None), (None, None))),
        ({"author": 5}, noted(("5", None), (None, None))),
    ):
        save(pool, "note", "n-1", data)
        save(pool, "other", "n-1", {"author": "nobody"})
        assert images(dsn) == expected, data
        query(dsn, "TRUNCATE duostore.source_change")


def test_of_a_relational_kind_the_document_that_was_built_is_noted(
    dsn: str, database: tuple[str, AuroraPool]
) -> None:
    _, pool = database
    watch(dsn, of_kind("town", "SELECT :country AS id", "country"))
    town = read_model(
        "town",
        "SELECT upper(country) AS country FROM public.town WHERE id = :id::bigint",
        save="""
        INSERT INTO public.town (id, country) VALUES (:id::bigint, :data ->> 'country')
        ON CONFLICT (id) DO UPDATE SET country = excluded.country
        """,
        delete="DELETE FROM public.town WHERE id = :id::bigint",
    )
    authority = AuroraAuthority(pool, by_kind(town))
    for country in ("fr", "be"):
        change = Change(EntityKey("", "town", "1"), {"country": country}, None, timedelta())
        authority.write(write_of(change), soon())
    assert [image["country"] for image in images(dsn)] == ["BE", "FR", "FR", "be", "fr"]


def test_two_kinds_may_depend_on_one_table_and_one_on_two(dsn: str) -> None:
    other = read_model("other", "SELECT 1 AS n WHERE :id <> ''", TOWNS)
    logs = of_table("public.log", "SELECT :town AS id", "town")
    install(dsn, by_kind(card(TOWNS, logs), other))
    query(dsn, "TRUNCATE duostore.source_change")
    query(dsn, "INSERT INTO public.town VALUES (1, 'fr')")
    query(dsn, "INSERT INTO public.log VALUES ('2026-01-05', 1)")
    assert query(dsn, "SELECT kind, source FROM duostore.source_change ORDER BY 1, 2") == [
        ("card", "table:public.log"),
        ("card", "table:public.town"),
        ("other", "table:public.town"),
    ]


def test_what_is_installed_is_not_installed_again(dsn: str) -> None:
    models = by_kind(card(TOWNS, of_kind("note", IDS, "country")))
    assert missing(dsn, models) == [
        "changes of table:public.town are not noted for 'card': run `duostore migrate`",
        "changes of kind:note are not noted for 'card': run `duostore migrate`",
    ]
    assert install(dsn, models) == [
        "card: changes of table:public.town are noted from now on; all will be recomputed",
        "card: changes of kind:note are noted from now on; all will be recomputed",
    ]
    assert images(dsn) == [None, None]
    before = triggers(dsn)
    assert len(before) == 5
    assert all(len(str(name)) <= 63 for _, name in before)
    query(dsn, "TRUNCATE duostore.source_change")
    with psycopg.connect(dsn) as other:
        # It would wait for this lock if it wanted one.
        other.execute("INSERT INTO public.town VALUES (1, 'fr')")
        other.execute("LOCK TABLE duostore.entity IN ROW EXCLUSIVE MODE")
        assert install(dsn, models) == []
        assert missing(dsn, models) == []
        other.rollback()
    assert triggers(dsn) == before
    assert images(dsn) == []


@pytest.mark.parametrize(
    "changed",
    [
        card(of_table("public.town", "SELECT lower(:country) AS id", "country")),
        card(TOWNS, sql="SELECT 2 AS n WHERE :id <> ''"),
        card(of_table("public.town", IDS, "country", "id")),
    ],
    ids=["ids", "read model", "fields"],
)
def test_what_was_changed_is_noted_anew_and_recomputed(dsn: str, changed: ReadModel) -> None:
    watch(dsn, TOWNS)
    query(dsn, "INSERT INTO public.town VALUES (1, 'fr')")
    assert images(dsn) == countries("fr")
    (problem,) = missing(dsn, by_kind(changed))
    assert "run `duostore migrate`" in problem
    assert install(dsn, by_kind(changed)) == [
        "card: changes of table:public.town are noted as configured now; all will be recomputed"
    ]
    assert missing(dsn, by_kind(changed)) == []
    # All of it is what was noted before, too.
    assert images(dsn) == [None]
    assert len(triggers(dsn)) == 4


def test_what_is_not_configured_any_more_is_removed(dsn: str) -> None:
    watch(dsn, TOWNS)
    query(dsn, "INSERT INTO public.town VALUES (1, 'fr')")
    query(dsn, "INSERT INTO duostore.stale VALUES ('', 'card', 'fr'), ('', 'newer', 'x')")
    # Another deployment's concern, for who only looks.
    assert missing(dsn, {}) == []
    assert install(dsn, {}) == ["card: changes of table:public.town are no longer noted"]
    assert triggers(dsn) == []
    assert images(dsn) == []
    assert query(dsn, "SELECT kind FROM duostore.stale") == [("newer",)]
    assert install(dsn, {}) == []


@pytest.mark.parametrize(
    "harm",
    [
        "ALTER TABLE public.town DISABLE TRIGGER USER",
        "DROP TABLE public.town; CREATE TABLE public.town (id bigint, country text)",
    ],
)
def test_what_was_not_watched_for_a_while_is_recomputed(
    postgres: PostgresServer, harm: str
) -> None:
    dsn = postgres.create_database()
    with migrated_pool(dsn):
        query(dsn, "CREATE TABLE public.town (id bigint, country text)")
        watch(dsn, TOWNS)
        with psycopg.connect(dsn) as connection:
            connection.execute(harm)
        assert missing(dsn, by_kind(card(TOWNS))) == [
            "changes of table:public.town are not noted for 'card': run `duostore migrate`"
        ]
        assert len(install(dsn, by_kind(card(TOWNS)))) == 1
        assert images(dsn) == [None]
        query(dsn, "INSERT INTO public.town VALUES (1, 'fr')")
        assert images(dsn) == [{"country": "fr"}, None]


def test_what_cannot_be_watched_is_told_of_all_at_once(dsn: str) -> None:
    models = by_kind(
        card(
            of_table("public.nowhere", IDS, "country"),
            of_table("public.view", IDS, "country"),
            of_table("public.town", IDS, "country", "colour", "smell"),
        )
    )
    with pytest.raises(MigrationError) as refused:
        install(dsn, models)
    told = str(refused.value).split("; ")
    assert told == [
        "'card' depends on table:public.nowhere, which does not exist",
        "'card' depends on table:public.view, which is no table: name those that it is made from",
        "'card' depends on table:public.town, which has no column colour, smell",
    ]
    assert missing(dsn, models) == [f"{problem}: run `duostore migrate`" for problem in told]
    assert triggers(dsn) == []


def test_a_role_that_may_not_is_told_who_may(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection, role(connection, "guest"):
        connection.execute("ALTER ROLE guest LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA duostore TO guest")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA duostore TO guest")
        connection.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA duostore TO guest")
        guest = psycopg.conninfo.make_conninfo(dsn, user="guest")
        with pytest.raises(MigrationError, match=r"triggers of public\.town: run .* as its owner"):
            install(guest, by_kind(card(TOWNS)))
    assert triggers(dsn) == []


def test_a_table_that_is_locked_for_long_is_told_of(dsn: str) -> None:
    with psycopg.connect(dsn) as other:
        other.execute("LOCK TABLE public.town")
        with pytest.raises(MigrationError, match="other sessions keep a table locked"):
            install(dsn, by_kind(card(TOWNS)), lock_timeout=0.05)
    assert triggers(dsn) == []


def test_who_waits_for_a_users_table_holds_up_no_save(
    dsn: str, database: tuple[str, AuroraPool]
) -> None:
    _, pool = database
    models = by_kind(card(of_kind("note", IDS, "country"), TOWNS))
    paused, may_go_on = threading.Event(), threading.Event()

    def pause(_: float) -> None:
        paused.set()
        assert may_go_on.wait(10)

    with psycopg.connect(dsn) as other, ThreadPoolExecutor(1) as threads:
        other.execute("INSERT INTO public.town VALUES (1, 'fr')")
        installing = threads.submit(install, dsn, models, pause=pause)
        try:
            wait_until_blocked(dsn)
            # Waiting, it has no lock of the entities yet, and afterwards none at all.
            save(pool, "note", "meanwhile", {"country": "de"})
            assert not paused.is_set()
            assert paused.wait(10)
            query(dsn, "UPDATE public.town SET size = 1")
            other.rollback()
        finally:
            may_go_on.set()
        assert len(installing.result(10)) == 2
    assert len(triggers(dsn)) == 5
