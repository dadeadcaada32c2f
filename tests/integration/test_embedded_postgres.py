from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.embedded.postgres import EmbeddedPostgres
from duostore_server.embedded.postgres_install import copied, installed, private_temp_dir
from duostore_server.embedded.process import EmbeddedStoreError
from tests.support.owners import is_gone, orphan
from tests.support.ports import free_port
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psutil


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "data", durable=False) as server:
        yield server


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    folder = private_temp_dir()
    yield folder
    shutil.rmtree(folder)


def orphaned_server(data_dir: Path, socket_dir: Path) -> psutil.Process:
    return orphan(
        "from pathlib import Path\n"
        "from duostore_server.embedded.postgres import EmbeddedPostgres\n"
        f"paths = [Path(path) for path in {[str(data_dir), str(socket_dir)]!r}]\n"
        "server = EmbeddedPostgres(paths[0], socket_dir=paths[1], durable=False)\n",
        temp=data_dir.parent,
    )


def setting(server: EmbeddedPostgres, name: str) -> str:
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT current_setting(%s)", [name]).fetchone()
    assert row is not None
    return str(row[0])


def write_row(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn()) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
        connection.execute("INSERT INTO kept VALUES (1)")


def rows(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        return len(connection.execute("SELECT n FROM kept").fetchall())


def test_data_is_kept_over_a_stop_and_over_a_kill(server: EmbeddedPostgres) -> None:
    write_row(server)
    server.stop()
    server.start()
    write_row(server)
    server.kill()
    server.start()
    assert rows(server) == 2


def test_text_is_utf_8_and_sorted_by_code_point(server: EmbeddedPostgres) -> None:
    assert setting(server, "server_encoding") == "UTF8"
    with psycopg.connect(server.dsn()) as connection:
        ordered = connection.execute("SELECT unnest('{é,z,Z,ä}'::text[]) ORDER BY 1").fetchall()
        upper = connection.execute("SELECT upper('é')").fetchone()
    assert [row[0] for row in ordered] == ["Z", "z", "ä", "é"]
    assert upper == ("É",)


def test_commits_reach_the_disk_if_they_shall(server: EmbeddedPostgres, tmp_path: Path) -> None:
    assert setting(server, "fsync") == "off"
    assert setting(server, "synchronous_commit") == "on"
    with EmbeddedPostgres(tmp_path / "durable") as durable:
        assert setting(durable, "fsync") == "on"
        assert setting(durable, "full_page_writes") == "on"


def test_it_listens_on_its_socket_alone_unless_told_otherwise(server: EmbeddedPostgres) -> None:
    assert setting(server, "listen_addresses") == ""


def test_by_tcp_the_password_is_needed(tmp_path: Path) -> None:
    port = free_port()
    with EmbeddedPostgres(tmp_path / "data", durable=False, port=port) as server:
        with psycopg.connect(server.dsn()) as connection:
            assert connection.info.host == "127.0.0.1"
            assert connection.info.port == port
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn(), password="guessed")


def test_the_data_folder_is_closed_to_others(server: EmbeddedPostgres) -> None:
    assert server.data_dir.stat().st_mode & 0o077 == 0


def test_a_folder_of_another_major_version_is_refused_and_left_alone(
    server: EmbeddedPostgres,
) -> None:
    server.stop()
    version = server.data_dir / "PG_VERSION"
    version.write_text("13\n")
    with pytest.raises(EmbeddedStoreError, match=r"written by PostgreSQL 13, .* is \d\d"):
        server.start()
    assert version.read_text() == "13\n"


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.png").write_bytes(b"meow")
    with pytest.raises(EmbeddedStoreError, match="not empty"):
        EmbeddedPostgres(folder, durable=False).start()
    assert [path.name for path in folder.iterdir()] == ["cat.png"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["photos"]


def test_a_folder_in_use_is_refused(server: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedStoreError, match="another process is using the data folder"):
        EmbeddedPostgres(server.data_dir, durable=False).start()
    assert setting(server, "server_encoding") == "UTF8"


def test_what_postgres_says_is_shown_if_it_does_not_start(server: EmbeddedPostgres) -> None:
    server.stop()
    broken = EmbeddedPostgres(server.data_dir, settings={"shared_buffers": "-1"})
    with pytest.raises(EmbeddedStoreError, match="shared_buffers"):
        broken.start()
    server.start()


def test_a_stale_pid_file_that_names_a_living_process_is_no_obstacle(
    server: EmbeddedPostgres,
) -> None:
    write_row(server)
    pid_file = server.data_dir / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    server.kill()
    bystander = subprocess.Popen(["sleep", "600"], **installed().identity())
    try:
        # As after a restart of a container, which gives out the same numbers again.
        pid_file.write_text("".join([f"{bystander.pid}\n", *lines[1:]]))
        server.start()
        assert rows(server) == 1
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_it_dies_with_the_process_that_started_it_and_can_be_started_at_once(
    tmp_path: Path, socket_dir: Path
) -> None:
    orphaned = orphaned_server(tmp_path / "data", socket_dir)
    with EmbeddedPostgres(tmp_path / "data", durable=False) as server:
        assert is_gone(orphaned)
        assert "was shut down at" in server.log_path.read_text()


def test_nobody_need_ask_for_its_death(tmp_path: Path, socket_dir: Path) -> None:
    orphaned = orphaned_server(tmp_path / "data", socket_dir)
    eventually(lambda: is_gone(orphaned), within=15, what="PostgreSQL is gone")


def test_a_copy_of_the_programs_is_made_once_and_can_be_run(tmp_path: Path) -> None:
    program = installed().bin / "initdb"
    site = program.parents[3]
    copy = tmp_path / "copies" / "postgres"
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(copied, site, copy) for _ in range(2)]:
            done.result()
    assert [path.name for path in copy.parent.iterdir()] == ["postgres"]
    copied_program = copy / program.relative_to(site)
    made = copied_program.stat()
    copied(site, copy)
    assert copied_program.stat() == made
    assert made.st_mode & 0o777 == 0o755
    version = subprocess.run([copied_program, "--version"], capture_output=True, check=True)
    assert version.stdout.startswith(b"initdb (PostgreSQL) ")
