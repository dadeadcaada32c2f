"""`duostore limit --data`, on the PostgreSQL of a `duostore dev` that runs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore import Client
from duostore_server.embedded.postgres import EmbeddedPostgres
from duostore_server.embedded.postgres_address import conninfo, ready_postmaster, running_dsn
from duostore_server.embedded.process import EmbeddedStoreError
from tests.integration.test_cli_limit import Command
from tests.support.dev import running_dev
from tests.support.ports import free_port
from tests.support.scripted_service import DIRECT
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_limit_is_set_while_dev_runs(tmp_path: Path) -> None:
    # What the environment names is of no concern: nothing answers there.
    command = Command(tmp_path, f"host=127.0.0.1 port={free_port()} dbname=none")
    data = tmp_path / "a folder"
    of_dev = ("--data", str(data))
    with running_dev(tmp_path, data) as dev, Client(dev.target, options=[DIRECT]) as client:
        assert client.peek_quota("api_calls", "alice").limit == 1000
        command.done("set", "api_calls", "alice", "5000", *of_dev)
        eventually(
            lambda: client.peek_quota("api_calls", "alice").limit == 5000,
            within=30,
            what="the limit is in force",
        )
        (listed,) = json.loads(command.done("list", "--json", *of_dev))
        assert (listed["subject"], listed["limit"]) == ("alice", 5000)
        command.done("unset", "api_calls", "alice", *of_dev)
        assert command.done("list", *of_dev) == "no limits are set at run time\n"
    for arguments in (("list",), ("unset", "tokens", "a"), ("set", "tokens", "a", "5")):
        said = command.failed(3, *arguments, *of_dev)
        assert said == (
            f"no PostgreSQL is running on the data folder {data / 'postgres'}; "
            "--data names the folder of a `duostore dev` that is running"
        )


def test_a_folder_of_nothing_is_told(tmp_path: Path) -> None:
    command = Command(tmp_path, None)
    said = command.failed(3, "list", "--data", str(tmp_path))
    assert said.startswith(f"{tmp_path / 'postgres'} is no data folder of PostgreSQL; --data names")
    assert "to reach that of `duostore dev`, give --data" in command.failed(2, "list")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "data", durable=False) as server:
        yield server


def test_a_running_server_is_reached_by_its_folder_alone(server: EmbeddedPostgres) -> None:
    dsn = running_dsn(server.data_dir)
    assert "password" not in dsn
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT current_setting('data_directory')").fetchone()
    with psycopg.connect(server.dsn()) as connection:
        assert row == connection.execute("SELECT current_setting('data_directory')").fetchone()


def test_a_server_with_a_port_is_reached_without_its_password(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data", durable=False, port=free_port()) as server:
        assert "password" in server.dsn()
        assert "password" not in running_dsn(server.data_dir)
        psycopg.connect(running_dsn(server.data_dir)).close()


def test_what_a_killed_server_left_behind_is_not_taken_for_one(server: EmbeddedPostgres) -> None:
    server.kill()
    assert ready_postmaster(server.data_dir) is not None
    with pytest.raises(EmbeddedStoreError, match="no PostgreSQL is running on the data folder"):
        running_dsn(server.data_dir)


def test_a_server_that_is_starting_is_not_ready(server: EmbeddedPostgres) -> None:
    written = (server.data_dir / "postmaster.pid").read_text().splitlines(keepends=True)
    copy = server.data_dir.with_name("copy")
    shutil.copytree(server.data_dir, copy, ignore=lambda *_: ["base", "pg_wal"])
    for lines in ([], written[:5], written[:7], [*written[:7], "starting\n"]):
        (copy / "postmaster.pid").write_text("".join(lines))
        assert ready_postmaster(copy) is None
        with pytest.raises(EmbeddedStoreError, match="no PostgreSQL is running"):
            running_dsn(copy)
    (copy / "postmaster.pid").write_text("".join(written))
    assert running_dsn(copy) == running_dsn(server.data_dir)


def test_values_of_a_connection_string_are_quoted() -> None:
    values = {"host": "/tmp/it's a \\ folder", "port": "5432", "user": "postgres"}
    assert psycopg.conninfo.conninfo_to_dict(conninfo(**values)) == values
