"""Migrations of the user's own, which come after those of Duostore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.storage.aurora.migrate import (
    MIGRATIONS,
    MigrationError,
    ensure_current,
    migrate,
    pending,
)

if TYPE_CHECKING:
    from pathlib import Path

OURS = sorted(
    file.name.removesuffix(".sql") for file in MIGRATIONS.iterdir() if file.name.endswith(".sql")
)
OWN = (
    ("0001_invoices", b"CREATE TABLE invoice (id text PRIMARY KEY);"),
    ("0002_payers", b"ALTER TABLE invoice ADD payer text; CREATE INDEX ON invoice (payer);"),
)


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {name for (name,) in found}


def test_they_are_applied_once_in_their_order_after_ours(postgres_dsn: str) -> None:
    names = [*OURS, "app/0001_invoices", "app/0002_payers"]

    assert pending(postgres_dsn, own=OWN) == names
    assert migrate(postgres_dsn, own=OWN[:1]) == names[:-1]
    assert migrate(postgres_dsn, own=OWN) == names[-1:]
    assert migrate(postgres_dsn, own=OWN) == []
    assert tables(postgres_dsn) == {"invoice"}
    ensure_current(postgres_dsn, own=OWN)
    # Who has none of them does not mind those that are there.
    ensure_current(postgres_dsn)


def test_their_names_are_not_those_of_ours(postgres_dsn: str) -> None:
    own = ((OURS[0], b"CREATE TABLE invoice (id text);"),)
    migrate(postgres_dsn)

    assert migrate(postgres_dsn, own=own) == [f"app/{OURS[0]}"]


def test_a_service_does_not_start_without_them(postgres_dsn: str) -> None:
    migrate(postgres_dsn, own=OWN[:1])

    with pytest.raises(MigrationError, match=r"lacks app/0002_payers: run `duostore migrate`"):
        ensure_current(postgres_dsn, own=OWN)


def test_one_that_was_changed_after_it_was_applied_is_refused(postgres_dsn: str) -> None:
    migrate(postgres_dsn, own=OWN)
    changed = (OWN[0], (OWN[1][0], OWN[1][1] + b"\n"))

    with pytest.raises(MigrationError, match="app/0002_payers was changed after it was applied"):
        migrate(postgres_dsn, own=changed)
    with pytest.raises(MigrationError, match="app/0002_payers was changed after it was applied"):
        ensure_current(postgres_dsn, own=changed)


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT 'é';\n\nSELECT nam FROM invoice;", 'line 3: column "nam" does not exist'),
        ("SELECT 1;\nSELCT 1;", 'line 2: syntax error at or near "SELCT"'),
        (
            "INSERT INTO invoice VALUES ('a'), ('a')",
            'duplicate key value violates unique constraint "invoice_pkey"; Key (id)=(a) already',
        ),
        (
            "SELECT length(1)",
            "line 1: function length(integer) does not exist",
        ),
        ("CREATE INDEX CONCURRENTLY ON invoice (id)", "CREATE INDEX CONCURRENTLY cannot "),
    ],
)
def test_what_the_database_refuses_is_told_with_its_line_and_not_applied(
    sql: str, told: str, postgres_dsn: str
) -> None:
    own = (OWN[0], ("0002_wrong", f"CREATE TABLE left_over ();{sql}".encode()), OWN[1])

    with pytest.raises(MigrationError) as caught:
        migrate(postgres_dsn, own=own)
    assert told in str(caught.value)
    assert str(caught.value).startswith("migration app/0002_wrong was not applied: ")
    assert tables(postgres_dsn) == {"invoice"}
    assert pending(postgres_dsn, own=own) == ["app/0002_wrong", "app/0002_payers"]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "COMMIT; SELECT 1"])
def test_one_that_ends_its_transaction_is_not_recorded(end: str, postgres_dsn: str) -> None:
    own = (("0001_ended", f"CREATE TABLE part (); {end};".encode()),)

    with pytest.raises(MigrationError, match="app/0001_ended ended its transaction"):
        migrate(postgres_dsn, own=own)
    assert pending(postgres_dsn, own=own) == ["app/0001_ended"]


def test_a_database_that_is_away_is_no_fault_of_theirs(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        migrate(f"host={tmp_path} dbname=none", own=OWN)
