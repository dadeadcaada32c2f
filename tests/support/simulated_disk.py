"""A disk that forgets at a crash whatever was not synced, in every way a real one might."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class CrashError(BaseException):
    """The machine stopped. No handler of errors gets to see it."""


class Content:
    """What a file holds: ``states[0]`` is safe, the last is what programs read.

    After a crash any of the states may be what is left.
    """

    def __init__(self, safe: bytes = b"") -> None:
        self.states = [safe]

    @property
    def now(self) -> bytes:
        return self.states[-1]


class SimulatedDisk:
    """Keeps the promises of ``Disk`` and no others.

    The machine stops before operation number ``crash_at``. Names are lost or kept each
    by itself, and so are contents, a write possibly in part.
    """

    def __init__(self, files: dict[Path, bytes] | None = None, crash_at: int = -1) -> None:
        self._safe = {path: Content(data) for path, data in (files or {}).items()}
        self._names = dict(self._safe)
        self._crash_at = crash_at
        self.operations = 0

    def read(self, path: Path) -> bytes | None:
        self._step()
        content = self._names.get(path)
        return None if content is None else content.now

    def size(self, path: Path) -> int | None:
        data = self.read(path)
        return None if data is None else len(data)

    def write(self, path: Path, data: bytes, *, at: int) -> None:
        self._step()
        content = self._names.setdefault(path, Content())
        if len(content.now) < at:
            raise OSError(errno.EIO, "somebody else has cut the file", str(path))
        kept = content.now[:at]
        for state in (kept, kept + data[: len(data) // 2], kept + data):
            if state != content.now:
                content.states.append(state)

    def sync(self, path: Path) -> None:
        self._step()
        content = self._names[path]
        content.states = [content.now]

    def sync_names(self, folder: Path) -> None:
        self._step()
        assert all(path.parent == folder for path in self._names)
        self._safe = dict(self._names)

    def rename(self, path: Path, new: Path) -> None:
        self._step()
        self._names[new] = self._names.pop(path)

    def remove(self, path: Path) -> None:
        self._step()
        self._names.pop(path, None)

    def files(self) -> dict[Path, bytes]:
        """Return what programs see."""
        return {path: content.now for path, content in self._names.items()}

    def survivors(self) -> Iterator[dict[Path, bytes]]:
        """Yield each set of files that may be left if the machine stops now, once."""
        paths = sorted({*self._safe, *self._names})
        seen: set[tuple[tuple[Path, bytes], ...]] = set()
        choices = [dict.fromkeys((self._safe.get(path), self._names.get(path))) for path in paths]
        for chosen in itertools.product(*choices):
            held = list({id(content): content for content in chosen if content}.values())
            for states in itertools.product(*(content.states for content in held)):
                data = dict(zip(map(id, held), states, strict=True))
                files = tuple(
                    (path, data[id(content)])
                    for path, content in zip(paths, chosen, strict=True)
                    if content
                )
                if files not in seen:
                    seen.add(files)
                    yield dict(files)

    def _step(self) -> None:
        if self.operations == self._crash_at:
            raise CrashError
        self.operations += 1
