"""Where the server of a data folder answers, for whichever process wants to know."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.embedded.postgres_folder import SUPERUSER, holds_data
from duostore_server.embedded.process import EmbeddedStoreError

if TYPE_CHECKING:
    from pathlib import Path

# Lines of postmaster.pid, which PostgreSQL writes one after the other while it starts.
_PID: Final = 0
_PORT: Final = 3
_SOCKET_DIR: Final = 4
_STATUS: Final = 7
_PLAIN: Final = re.compile(r"[\w./:-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Postmaster:
    """The first process of a server that is ready; its socket is named for the port."""

    pid: int
    port: str
    socket_dir: str


def ready_postmaster(data_dir: Path) -> Postmaster | None:
    """Return what the folder says of its server; None if there is none, or it is not ready.

    A server that was killed may have left this behind.
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if len(lines) <= _STATUS or lines[_STATUS].strip() != "ready":
        return None
    return Postmaster(int(lines[_PID]), lines[_PORT], lines[_SOCKET_DIR])


def running_dsn(data_dir: Path) -> str:
    """Return the libpq connection string of the server that another process runs there.

    By its socket, which needs no password: only the user that started it can reach it.
    Raises ``EmbeddedStoreError`` if none is running and ready.
    """
    if not holds_data(data_dir):
        raise EmbeddedStoreError(f"{data_dir} is no data folder of PostgreSQL")
    found = ready_postmaster(data_dir)
    if found is None or not _is_alive(found.pid):
        raise EmbeddedStoreError(f"no PostgreSQL is running on the data folder {data_dir}")
    return conninfo(host=found.socket_dir, port=found.port, user=SUPERUSER, dbname="postgres")


def conninfo(**values: str) -> str:
    """Return a libpq connection string with these values."""
    return " ".join(f"{name}={_quoted(value)}" for name, value in values.items())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _quoted(value: str) -> str:
    """Return a value with quotes where it needs them, for a person may read it."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
