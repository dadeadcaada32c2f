from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
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

NAMES = sorted(
    file.name.removesuffix(".sql") for file in MIGRATIONS.iterdir() if file.name.endswith(".sql")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_a.sql").write_text("CREATE TABLE duostore.a (n int);")
    (tmp_path / "0002_b.sql").write_text("CREATE TABLE duostore.b (n int); SELECT pg_sleep(0.05);")
    (tmp_path / "0003_c.sql").write_text("CREATE TABLE duostore.c (n int);")
    (tmp_path / "README.md").write_text("no migration")
    return tmp_path


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'duostore'")
        return {name for (name,) in found}


def test_our_own_migrations_are_applied_once(postgres_dsn: str) -> None:
    assert pending(postgres_dsn) == NAMES
    assert migrate(postgres_dsn) == NAMES
    assert {"entity", "outbox", "migration"} <= tables(postgres_dsn)
    assert pending(postgres_dsn) == []
    assert migrate(postgres_dsn) == []
    ensure_current(postgres_dsn)


def test_they_are_applied_in_the_order_of_their_names(postgres_dsn: str, folder: Path) -> None:
    assert migrate(postgres_dsn, folder=folder) == ["0001_a", "0002_b", "0003_c"]


def test_what_is_missing_is_named_with_the_command_that_helps(
    postgres_dsn: str, folder: Path
) -> None:
    with pytest.raises(MigrationError, match=r"lacks 0001_a, 0002_b, 0003_c: run `duostore migr"):
        ensure_current(postgres_dsn, folder=folder)
    migrate(postgres_dsn, target="0002_b", folder=folder)
    assert pending(postgres_dsn, folder=folder) == ["0003_c"]
    with pytest.raises(MigrationError, match="lacks 0003_c: run"):
        ensure_current(postgres_dsn, folder=folder)


def test_only_what_leads_to_the_target_is_applied(postgres_dsn: str, folder: Path) -> None:
    assert migrate(postgres_dsn, target="0002_b", folder=folder) == ["0001_a", "0002_b"]
    assert tables(postgres_dsn) == {"migration", "a", "b"}
    with pytest.raises(MigrationError, match=r"no migration 0009_x; there are 0001_a, 0002_b"):
        migrate(postgres_dsn, target="0009_x", folder=folder)
    assert migrate(postgres_dsn, folder=folder) == ["0003_c"]


def test_a_file_that_was_changed_after_it_was_applied_is_refused(
    postgres_dsn: str, folder: Path
) -> None:
    migrate(postgres_dsn, target="0002_b", folder=folder)
    (folder / "0001_a.sql").write_text("CREATE TABLE duostore.a (n bigint);")
    for call in (migrate, pending, ensure_current):
        with pytest.raises(MigrationError, match="0001_a was changed after it was applied"):
            call(postgres_dsn, folder=folder)
    assert tables(postgres_dsn) == {"migration", "a", "b"}


def test_a_migration_is_applied_whole_or_not_at_all(postgres_dsn: str, folder: Path) -> None:
    (folder / "0002_b.sql").write_text("CREATE TABLE duostore.b (n int); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(postgres_dsn, folder=folder)
    assert tables(postgres_dsn) == {"migration", "a"}
    assert pending(postgres_dsn, folder=folder) == ["0002_b", "0003_c"]


def test_a_migration_of_a_later_version_does_not_disturb(postgres_dsn: str, folder: Path) -> None:
    migrate(postgres_dsn, folder=folder)
    (folder / "0003_c.sql").unlink()
    ensure_current(postgres_dsn, folder=folder)
    assert migrate(postgres_dsn, folder=folder) == []


def test_concurrent_migrators_apply_each_file_once(postgres_dsn: str, folder: Path) -> None:
    migrators = 6
    barrier = threading.Barrier(migrators)

    def run(_: int) -> list[str]:
        barrier.wait()
        return migrate(postgres_dsn, folder=folder)

    with ThreadPoolExecutor(migrators) as pool:
        applied = [name for names in pool.map(run, range(migrators)) for name in names]
    assert sorted(applied) == ["0001_a", "0002_b", "0003_c"]


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError):
        migrate(f"host={tmp_path} dbname=none")
