"""The few file operations that a load's records are made of."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class Disk(Protocol):
    """Files of one folder. What is not synced may be lost, in part or whole, at a crash."""

    def read(self, path: Path) -> bytes | None:
        """Return the content, or None if there is no such file."""
        ...

    def size(self, path: Path) -> int | None:
        """Return the size in bytes, or None if there is no such file."""
        ...

    def write(self, path: Path, data: bytes, *, at: int) -> None:
        """Make ``data`` what the file holds from byte ``at`` to its end; create it if need be.

        Raises ``OSError`` if the file is shorter than ``at``.
        """
        ...

    def sync(self, path: Path) -> None:
        """Return once the content of the file is safe."""
        ...

    def sync_names(self, folder: Path) -> None:
        """Return once all that was created, renamed or removed in the folder is safe."""
        ...

    def rename(self, path: Path, new: Path) -> None:
        """Give the file a new name, atomically; a file that had that name is gone."""
        ...

    def remove(self, path: Path) -> None:
        """Remove the file, if there is one."""
        ...


class LocalDisk:
    """The files of this machine. Raises ``OSError``."""

    def read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def size(self, path: Path) -> int | None:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def write(self, path: Path, data: bytes, *, at: int) -> None:
        with path.open("ab") as file:
            if file.seek(0, os.SEEK_END) < at:
                raise OSError(errno.EIO, "somebody else has cut the file", str(path))
            file.truncate(at)
            file.write(data)

    def sync(self, path: Path) -> None:
        _sync(path)

    def sync_names(self, folder: Path) -> None:
        _sync(folder)

    def rename(self, path: Path, new: Path) -> None:
        path.replace(new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
