"""The data folder of a PostgreSQL: how it comes to be, what it holds, and who works in it."""

from __future__ import annotations

import fcntl
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from duostore_server.embedded.postgres_install import environment, private_temp_dir
from duostore_server.embedded.process import EmbeddedStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.embedded.postgres_install import Install

SUPERUSER: Final = "postgres"
_PASSWORD_FILE: Final = "duostore.password"  # noqa: S105 - the name of the file
_LEAVE_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.05


def holds_data(data_dir: Path) -> bool:
    """Return whether the folder is there and was made by PostgreSQL."""
    try:
        return (data_dir / "PG_VERSION").exists()
    except PermissionError as error:
        raise EmbeddedStoreError(
            f"the data folder {data_dir} belongs to another user; start this as that user, or "
            "name another folder"
        ) from error


def check(data_dir: Path, install: Install) -> None:
    """Raise ``EmbeddedStoreError`` unless the installation can work on the folder's data."""
    owner = data_dir.stat().st_uid
    if owner != install.uid:
        raise EmbeddedStoreError(
            f"the data folder {data_dir} belongs to the user with id {owner}, and PostgreSQL "
            f"would run as the one with id {install.uid}; start this as before, or remove the "
            "folder and lose what it holds"
        )
    version = (data_dir / "PG_VERSION").read_text().strip()
    if version != install.major:
        raise EmbeddedStoreError(
            f"the data folder {data_dir} was written by PostgreSQL {version}, and the installed "
            f"one is {install.major}; carry its content over with the pg_dump of version "
            f"{version}, or remove the folder and lose what it holds"
        )


def create(data_dir: Path, install: Install, *, durable: bool) -> None:
    """Create the folder, whole or not at all.

    Raises ``EmbeddedStoreError`` if it cannot be, or if there is one with anything in it.
    """
    with ExitStack() as undo:
        private = private_temp_dir()
        undo.callback(shutil.rmtree, private)
        password_file = private / _PASSWORD_FILE
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(24))
        install.give(password_file)
        install.give(private)

        new = Path(tempfile.mkdtemp(prefix=f".{data_dir.name}.", dir=data_dir.parent))
        undo.callback(shutil.rmtree, new, ignore_errors=True)
        install.give(new)
        _initdb(new, install, password_file, durable=durable)
        shutil.copy2(password_file, new)
        install.give(new / _PASSWORD_FILE)
        try:
            new.rename(data_dir)
        except OSError as error:
            raise EmbeddedStoreError(
                f"{data_dir} is there, but is no data folder of PostgreSQL and not empty; name "
                "another folder"
            ) from error


def _initdb(new: Path, install: Install, password_file: Path, *, durable: bool) -> None:
    done = subprocess.run(  # noqa: S603 - the wheel's own program
        [
            *(str(install.bin / "initdb"), "-D", install.seen(new)),
            *("--username", SUPERUSER, "--pwfile", str(password_file)),
            *("--auth-local=trust", "--auth-host=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            "--no-instructions",
            *(() if durable else ("--no-sync",)),
        ],
        cwd=new,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        **install.identity(),
    )
    if done.returncode:
        raise EmbeddedStoreError(
            f"initdb failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}"
        )


def password(data_dir: Path) -> str:
    """Return the password of the superuser, needed by TCP."""
    return (data_dir / _PASSWORD_FILE).read_text()


@contextmanager
def reserved(data_dir: Path) -> Iterator[None]:
    """Keep others that use this function away from the folder.

    Raises ``EmbeddedStoreError`` at once if one of them is there. The reservation ends
    with this process at the latest; the server may live on for a moment: see ``vacate``.
    """
    path = data_dir.with_name(f"{data_dir.name}.lock")
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedStoreError(
                f"another process is using the data folder {data_dir}; stop it, or name another "
                "folder"
            ) from None
        yield


def cluster_name(data_dir: Path) -> str:
    """Return a name for ``cluster_name`` by which the folder's processes can be told.

    PostgreSQL shows it in the command line of all of its processes.
    """
    status = data_dir.stat()
    return f"duostore-{status.st_dev:x}-{status.st_ino:x}"


def vacate(data_dir: Path) -> None:
    """Wait until no server process works in the folder, then remove a stale pid file.

    PostgreSQL itself trusts such a file if *any* process of its user has that number,
    which after a restart of a container is likely. Raises ``EmbeddedStoreError`` if
    somebody stays. Where there is no ``/proc`` it is left to PostgreSQL.
    """
    if sys.platform != "linux":
        return
    name = cluster_name(data_dir)
    deadline = time.monotonic() + _LEAVE_SECONDS
    while pids := list(_processes(name)):
        if time.monotonic() > deadline:
            raise EmbeddedStoreError(
                f"a PostgreSQL is still running on the data folder {data_dir} (process "
                f"{', '.join(map(str, pids))}); stop it, or name another folder"
            )
        time.sleep(_POLL_SECONDS)
    (data_dir / "postmaster.pid").unlink(missing_ok=True)


def _processes(name: str) -> Iterator[int]:
    wanted = name.encode()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue  # gone in the meantime
            if wanted in command:
                yield int(process.name)
