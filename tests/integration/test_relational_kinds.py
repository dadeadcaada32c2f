"""Saves and deletes of relational kinds: the user's rows and the entity, all or nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from duostore_server.domain.errors import (
    ConstraintViolatedError,
    EntityExistsError,
    EntityNotFoundError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    VersionMismatchError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import (
    Change,
    Check,
    Idempotency,
    IdempotencyKey,
    IfAbsent,
    IfVersion,
)
from duostore_server.storage.aurora.authority import AuroraAuthority
from tests.support.authority_engines import empty, migrated_pool, soon, write_of
from tests.support.authority_faults import query, round_trips, wait_until_blocked
from tests.support.read_models import by_kind, of_table, read_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.entities import Entity
    from duostore_server.domain.transactions import Committed, Mutation, Precondition
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

DUE = timedelta()

TABLES = """
CREATE TABLE public.customer (tenant text, id text, name text NOT NULL, PRIMARY KEY (tenant, id));
CREATE TABLE public.invoice (
    tenant text,
    id text,
    customer text NOT NULL,
    number integer CONSTRAINT numbers_are_positive CHECK (number > 0),
    total numeric(12, 2),
    version bigint NOT NULL,
    PRIMARY KEY (tenant, id),
    CONSTRAINT customer_exists FOREIGN KEY (tenant, customer) REFERENCES public.customer,
    CONSTRAINT number_is_unique UNIQUE (tenant, number) DEFERRABLE INITIALLY DEFERRED
);
CREATE TABLE public.line (
    tenant text, invoice text, place bigint, text text,
    FOREIGN KEY (tenant, invoice) REFERENCES public.invoice ON DELETE CASCADE
);
CREATE FUNCTION public.refuse_the_devil() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF new.number = 666 THEN RAISE EXCEPTION 'not this one'; END IF;
    RETURN new;
END
$$;
CREATE TRIGGER refuse_the_devil BEFORE INSERT OR UPDATE ON public.invoice
    FOR EACH ROW EXECUTE FUNCTION public.refuse_the_devil();
"""

# Quotes, a percent sign, and a comment at the end of each file: as people write them.
INVOICE = read_model(
    "invoice",
    """
    SELECT i.number, i.total, c.name AS customer, i.version, 'a % of it' AS note,
        (SELECT jsonb_agg(l.text ORDER BY l.place) FROM public.line AS l
         WHERE l.tenant = i.tenant AND l.invoice = i.id) AS lines
    FROM public.invoice AS i
    JOIN public.customer AS c ON c.tenant = i.tenant AND c.id = i.customer
    WHERE i.tenant = :tenant AND i.id = :id -- one row
    """,
    save="""
    INSERT INTO public.invoice (tenant, id, customer, number, total, version)
    VALUES (:tenant, :id, :data ->> 'customer', (:data ->> 'number')::integer,
        (:data ->> 'total')::numeric, :version)
    ON CONFLICT (tenant, id) DO UPDATE SET
        customer = excluded.customer, number = excluded.number,
        total = excluded.total, version = excluded.version;
    DELETE FROM public.line WHERE tenant = :tenant AND invoice = :id;
    INSERT INTO public.line
    SELECT :tenant, :id, place, text
    FROM jsonb_array_elements_text(:data -> 'lines') WITH ORDINALITY AS l (text, place); -- done
    """,
    delete="DELETE FROM public.invoice WHERE tenant = :tenant AND id = :id",
)
CUSTOMER = read_model(
    "customer",
    "SELECT name FROM public.customer WHERE tenant = :tenant AND id = :id",
    save="""
    INSERT INTO public.customer VALUES (:tenant, :id, :data ->> 'name')
    ON CONFLICT (tenant, id) DO UPDATE SET name = excluded.name
    """,
    delete="DELETE FROM public.customer WHERE tenant = :tenant AND id = :id",
)
MODELS = by_kind(INVOICE, CUSTOMER)

KEY = EntityKey("acme", "invoice", "i-1")
ALICE = EntityKey("acme", "customer", "alice")
PLAIN = EntityKey("acme", "note", "n-1")


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        query(dsn, TABLES)
        yield dsn, pool


@pytest.fixture
def dsn(database: tuple[str, AuroraPool]) -> str:
    dsn, _ = database
    empty(dsn)
    query(dsn, "TRUNCATE public.customer, public.invoice, public.line")
    return dsn


@pytest.fixture
def authority(database: tuple[str, AuroraPool], dsn: str) -> AuroraAuthority:
    query(dsn, "INSERT INTO public.customer VALUES ('acme', 'alice', 'Alice')")
    return AuroraAuthority(database[1], MODELS)


def data(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"customer": "alice", "number": number, "total": "12.5", "lines": ["a", "b"], **fields}


def saved(
    fields: dict[str, Any], precondition: Precondition = None, key: EntityKey = KEY
) -> Change:
    return Change(key, fields, precondition, DUE)


def deleted(key: EntityKey = KEY, precondition: IfVersion | None = None) -> Change:
    return Change(key, None, precondition, DUE)


def write(
    authority: AuroraAuthority, *mutations: Mutation, once: Idempotency | None = None
) -> Committed:
    return authority.write(write_of(*mutations, idempotency=once), soon())


def read(authority: AuroraAuthority, key: EntityKey = KEY) -> Entity | None:
    return authority.read([key], soon()).get(key)


def rows(dsn: str, table: str = "invoice") -> list[tuple[object, ...]]:
    return query(dsn, f"SELECT id FROM public.{table} ORDER BY id")


def once(text: str, request: int = 1) -> Idempotency:
    return Idempotency(IdempotencyKey("acme", text), bytes([request]) * 32, timedelta(hours=1))


def nothing_was_written(dsn: str) -> bool:
    tables = ("entity", "outbox", "audit", "idempotency")
    return all(query(dsn, f"SELECT FROM duostore.{table}") == [] for table in tables)


def test_a_save_writes_the_rows_and_answers_what_the_read_model_builds(
    dsn: str, authority: AuroraAuthority
) -> None:
    (written,) = write(authority, saved(data())).written
    assert written.entity.data == {
        "number": 1,
        "total": "12.50",
        "customer": "Alice",
        "version": 1,
        "note": "a % of it",
        "lines": ["a", "b"],
    }
    assert written.entity == read(authority)
    write(authority, saved(data(2, lines=[])))
    assert query(dsn, "SELECT number, version FROM public.invoice") == [(2, 2)]
    assert (found := read(authority))
    assert found.data
    assert (found.data["lines"], found.data["version"]) == (None, 2)
    assert query(dsn, "SELECT count(*) FROM duostore.outbox") == [(1,)]
    assert query(dsn, "SELECT version FROM duostore.audit ORDER BY 1") == [(1,), (2,)]


def test_a_delete_removes_the_rows_and_leaves_a_tombstone(
    dsn: str, authority: AuroraAuthority
) -> None:
    write(authority, saved(data()))
    (written,) = write(authority, deleted()).written
    assert (written.entity.version, written.entity.data) == (2, None)
    assert written.entity == read(authority)
    assert rows(dsn) == []
    assert query(dsn, "SELECT count(*) FROM public.line") == [(0,)]
    assert write(authority, saved(data(), IfAbsent())).answer[0].version == 3


def test_a_save_is_two_round_trips(dsn: str) -> None:
    query(dsn, "INSERT INTO public.customer VALUES ('acme', 'alice', 'Alice')")
    with migrated_pool(dsn, max_size=1) as pool:
        authority = AuroraAuthority(pool, MODELS)
        for _ in range(8):
            write(authority, saved(data()))
        with round_trips(pool) as count:
            write(authority, saved(data()))
            assert count() == 2
            write(authority, saved(data()), saved({"a": 1}, key=PLAIN), once=once("k"))
            assert count() == 4


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        (data(-1), "numbers_are_positive"),
        (data(customer="nobody"), "customer_exists"),
        (data(customer=None), "customer"),
        (data(666), ""),
    ],
)
def test_a_constraint_that_does_not_hold_is_named_and_nothing_is_written(
    dsn: str, authority: AuroraAuthority, fields: dict[str, Any], constraint: str
) -> None:
    with pytest.raises(ConstraintViolatedError) as violated:
        write(authority, saved(fields), once=once("k"))
    assert violated.value.metadata == {"constraint": constraint}
    assert nothing_was_written(dsn)
    assert rows(dsn) == []


def test_the_check_option_of_a_view_is_a_constraint(
    dsn: str, database: tuple[str, AuroraPool]
) -> None:
    _, pool = database
    query(
        dsn,
        "CREATE VIEW public.large AS SELECT * FROM public.customer WHERE length(name) > 5"
        " WITH CHECK OPTION",
    )
    try:
        large = read_model(
            "large",
            "SELECT name FROM public.large WHERE tenant = :tenant AND id = :id",
            save="INSERT INTO public.large VALUES (:tenant, :id, :data ->> 'name')",
            delete="DELETE FROM public.large WHERE tenant = :tenant AND id = :id",
        )
        authority = AuroraAuthority(pool, by_kind(large))
        key = EntityKey("acme", "large", "l-1")
        with pytest.raises(ConstraintViolatedError):
            write(authority, saved({"name": "Al"}, key=key))
        write(authority, saved({"name": "Alexander"}, key=key))
    finally:
        query(dsn, "DROP VIEW public.large")


def test_a_constraint_that_is_checked_at_the_commit_is_named_too(
    authority: AuroraAuthority,
) -> None:
    write(authority, saved(data(7)))
    other = EntityKey("acme", "invoice", "i-2")
    with pytest.raises(ConstraintViolatedError) as violated:
        write(authority, saved(data(7), key=other))
    assert violated.value.constraint == "number_is_unique"
    assert read(authority, other) is None
    # Two may change places, which is what it is deferred for.
    write(authority, saved(data(8), key=other))
    write(authority, saved(data(8)), saved(data(7), key=other))


@pytest.mark.parametrize("fields", [data(total="much"), data(2**31), data(lines={"a": 1})])
def test_a_value_that_the_database_does_not_take_is_a_fault_of_the_data(
    dsn: str, authority: AuroraAuthority, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError) as invalid:
        write(authority, saved(fields))
    (violation,) = invalid.value.violations
    assert violation.field == "data"
    assert "much" not in violation.description
    with pytest.raises(InvalidRequestError) as invalid:
        write(authority, saved({"a": 1}, key=PLAIN), saved(fields))
    assert [v.field for v in invalid.value.violations] == ["mutations[1].save.data"]
    assert nothing_was_written(dsn)


def test_a_document_that_is_not_there_afterwards_cannot_be_saved(
    database: tuple[str, AuroraPool], dsn: str
) -> None:
    model = read_model(
        "void", "SELECT 1 AS n WHERE :id = 'there'", save="SELECT 1", delete="SELECT 1"
    )
    authority = AuroraAuthority(database[1], by_kind(model))
    with pytest.raises(InvalidRequestError, match="the read model of 'void' answers no document"):
        write(authority, saved({}, key=EntityKey("", "void", "gone")))
    assert nothing_was_written(dsn)
    write(authority, saved({}, key=EntityKey("", "void", "there")))


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT repeat('x', 5000) AS text", "has 50[0-9][0-9] bytes of JSON; at most 4096"),
        ("SELECT n FROM generate_series(1, 2) AS n", "several rows"),
    ],
)
def test_a_document_that_cannot_be_one_cannot_be_saved(
    database: tuple[str, AuroraPool], dsn: str, sql: str, why: str
) -> None:
    model = read_model("odd", sql, save="SELECT 1", delete="SELECT 1")
    authority = AuroraAuthority(database[1], by_kind(model))
    with pytest.raises(InvalidRequestError, match=why):
        write(authority, saved({}, key=EntityKey("", "odd", "1")))
    assert nothing_was_written(dsn)


def test_documents_hold_what_every_store_gives_back(
    database: tuple[str, AuroraPool], dsn: str
) -> None:
    model = read_model(
        "odd",
        """
        SELECT 1.0::float8 AS one, 1e20::float8 AS large, 2::bigint ^ 60 AS power,
            9007199254740993 AS whole, '{"a": 1e20, "b": 1.0}'::jsonb AS nested,
            'infinity'::timestamptz AS never, 'NaN'::float8 AS nan
        """,
        save="SELECT 1",
        delete="SELECT 1",
    )
    authority = AuroraAuthority(database[1], by_kind(model))
    key = EntityKey("", "odd", "1")
    (written,) = write(authority, saved({}, key=key)).written
    assert written.entity.data
    assert written.entity.data["one"] == 1
    assert written.entity.data["large"] == "1e+20"
    assert written.entity.data["whole"] == "9007199254740993"
    assert (written.entity.data["never"], written.entity.data["nan"]) == ("infinity", "NaN")
    assert written.entity == read(authority, key)
    assert dsn


def test_a_refusal_goes_before_a_violation(dsn: str, authority: AuroraAuthority) -> None:
    bad = data(-1)
    with pytest.raises(VersionMismatchError):
        write(authority, saved(bad, IfVersion(3)))
    write(authority, saved(data()))
    with pytest.raises(EntityExistsError):
        write(authority, saved(bad, IfAbsent()))
    with pytest.raises(VersionMismatchError) as mismatch:
        write(authority, saved(bad), Check(PLAIN, 1))
    assert mismatch.value.mutation == 1
    write(authority, deleted())
    with pytest.raises(EntityNotFoundError):
        write(authority, deleted())
    assert rows(dsn) == []


def test_a_replay_goes_before_a_violation(dsn: str, database: tuple[str, AuroraPool]) -> None:
    """The second time the row is in its own way."""
    query(dsn, "INSERT INTO public.customer VALUES ('acme', 'alice', 'Alice')")
    plain = read_model(
        "customer",
        "SELECT name FROM public.customer WHERE tenant = :tenant AND id = :id",
        save="INSERT INTO public.customer VALUES (:tenant, :id, :data ->> 'name')",
        delete="SELECT 1",
    )
    authority = AuroraAuthority(database[1], by_kind(plain))
    bob = saved({"name": "Bob"}, key=EntityKey("acme", "customer", "bob"))
    first = write(authority, bob, once=once("k"))
    assert write(authority, bob, once=once("k")).answer == first.answer
    with pytest.raises(ConstraintViolatedError):
        write(authority, bob)
    with pytest.raises(IdempotencyKeyReusedError):
        write(authority, bob, once=once("k", 2))


def test_of_two_at_once_with_one_idempotency_key_the_second_is_answered_as_the_first(
    dsn: str, authority: AuroraAuthority
) -> None:
    with psycopg.connect(dsn) as other, ThreadPoolExecutor(2) as threads:
        other.execute("LOCK TABLE public.line")
        both = [
            threads.submit(write, authority, saved(data(), IfAbsent()), once=once("k"))
            for _ in range(2)
        ]
        wait_until_blocked(dsn, 2)
        other.rollback()
        committed = [each.result(10) for each in both]
    assert sorted(each.replayed for each in committed) == [False, True]
    assert committed[0].answer == committed[1].answer


def test_a_transaction_writes_rows_in_the_order_of_the_request(
    dsn: str, authority: AuroraAuthority
) -> None:
    """A row may refer to one of a mutation before it, though its key is locked later."""
    zoe = EntityKey("acme", "zustomer", "zoe")
    models = {**MODELS, "zustomer": read_model_of_customer("zustomer")}
    authority = AuroraAuthority(authority._pool, models)
    committed = write(
        authority,
        saved({"name": "Zoe"}, key=zoe),
        saved(data(customer="zoe")),
        saved({"a": 1}, key=PLAIN),
        once=once("k"),
    )
    assert [each.entity.key for each in committed.written] == [zoe, KEY, PLAIN]
    assert [(each.entity.data or {}).get("customer") for each in committed.written] == [
        None,
        "Zoe",
        None,
    ]
    assert [read(authority, each.entity.key) for each in committed.written] == [
        each.entity for each in committed.written
    ]
    assert write(
        authority,
        saved({"name": "Zoe"}, key=zoe),
        saved(data(customer="zoe")),
        saved({"a": 1}, key=PLAIN),
        once=once("k"),
    ).replayed
    assert rows(dsn, "customer") == [("alice",), ("zoe",)]


def read_model_of_customer(kind: str) -> Any:
    return read_model(
        kind,
        "SELECT name FROM public.customer WHERE tenant = :tenant AND id = :id",
        save="INSERT INTO public.customer VALUES (:tenant, :id, :data ->> 'name')",
        delete="DELETE FROM public.customer WHERE tenant = :tenant AND id = :id",
    )


def test_of_several_the_one_that_violates_is_named_and_none_is_applied(
    dsn: str, authority: AuroraAuthority
) -> None:
    with pytest.raises(ConstraintViolatedError) as violated:
        write(authority, saved({"a": 1}, key=PLAIN), saved(data()), saved({}, key=ALICE))
    assert violated.value.metadata == {"constraint": "name", "mutation": "2"}
    assert nothing_was_written(dsn)
    assert rows(dsn) == []


def test_read_models_see_all_that_the_transaction_writes(
    dsn: str, authority: AuroraAuthority
) -> None:
    write(authority, saved({"name": "Alice"}, key=ALICE))
    committed = write(authority, saved(data()), saved({"name": "Alicia"}, key=ALICE))
    assert (committed.written[0].entity.data or {})["customer"] == "Alicia"
    assert dsn


def test_a_violation_of_a_constraint_of_ours_is_a_fault_of_ours(
    dsn: str, authority: AuroraAuthority
) -> None:
    query(
        dsn,
        "INSERT INTO duostore.audit VALUES ('acme', 'invoice', 'i-1', 1, 'save', '', '', now())",
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        write(authority, saved(data()))
    assert rows(dsn) == []


def test_a_failure_harms_no_write_after_it(dsn: str) -> None:
    """Whenever the driver would have prepared its statements."""
    query(dsn, "INSERT INTO public.customer VALUES ('acme', 'alice', 'Alice')")
    with migrated_pool(dsn, max_size=1) as pool:
        authority = AuroraAuthority(pool, MODELS)
        for n in range(1, 9):
            with pytest.raises(ConstraintViolatedError):
                write(authority, saved(data(-1)))
            assert write(authority, saved(data(n))).answer[0].version == n


def test_concurrent_saves_of_one_entity_leave_the_rows_of_its_newest_version(
    dsn: str, authority: AuroraAuthority
) -> None:
    def save(n: int) -> None:
        write(authority, saved(data(n)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(save, range(1, 41)))
    assert (found := read(authority))
    assert found.data
    assert found.version == 40
    assert query(dsn, "SELECT number, version FROM public.invoice") == [(found.data["number"], 40)]


def test_a_document_that_depends_on_something_is_stale_once_it_is_saved(
    database: tuple[str, AuroraPool], dsn: str
) -> None:
    """So that a change of that, which did not find it yet, is not lost on it."""
    query(dsn, "INSERT INTO public.customer VALUES ('acme', 'alice', 'Alice')")
    depending = read_model(
        "customer",
        "SELECT name FROM public.customer WHERE tenant = :tenant AND id = :id",
        of_table("public.customer", "SELECT :id AS id", "tenant", "id"),
        save="SELECT 1",
        delete="SELECT 1",
    )
    authority = AuroraAuthority(database[1], by_kind(depending, INVOICE))
    query(dsn, "TRUNCATE duostore.stale")
    write(authority, saved({}, key=ALICE), saved(data()))
    assert query(dsn, "SELECT tenant, kind, entity_id FROM duostore.stale") == [
        ("acme", "customer", "alice")
    ]
