"""A reader: a second PostgreSQL that repeats what the first one does."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from duostore_server.embedded.postgres_install import environment, installed
from tests.support.authority_faults import query
from tests.support.postgres import PostgresServer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WITHIN = 10.0


class StandbyServer(PostgresServer):
    """A streaming standby of a server that runs. Its databases have the names of that one's."""

    def __init__(self, writer: PostgresServer) -> None:
        super().__init__()
        self._writer = writer

    def catch_up(self) -> None:
        """Return when all that the writer has written by now is replayed."""
        ((written,),) = query(self._writer.dsn(), "SELECT pg_current_wal_insert_lsn()::text")
        eventually(
            lambda: (
                query(self.dsn(), "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written)
                == [(True,)]
            ),
            within=_WITHIN,
            what="the reader has caught up",
        )

    @contextmanager
    def replay_paused(self) -> Iterator[None]:
        """Let the reader stay where it is, answering from the past."""
        query(self.dsn(), "SELECT pg_wal_replay_pause()")
        eventually(
            lambda: query(self.dsn(), "SELECT pg_get_wal_replay_pause_state()") == [("paused",)],
            within=_WITHIN,
            what="replay is paused",
        )
        try:
            yield
        finally:
            query(self.dsn(), "SELECT pg_wal_replay_resume()")

    def _prepare(self, data_dir: Path) -> None:
        install = installed()
        data_dir.mkdir(mode=0o700)
        install.give(data_dir)
        subprocess.run(
            [
                install.bin / "pg_basebackup",
                *("--dbname", self._writer.dsn()),
                *("--pgdata", install.seen(data_dir)),
                *("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast"),
                "--no-sync",
            ],
            cwd=data_dir,
            env=environment(),
            check=True,
            **install.identity(),
        )
