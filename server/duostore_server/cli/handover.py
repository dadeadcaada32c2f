"""Hands the settings of a service from its supervisor to its processes.

A process that is started again must not see a file that was edited meanwhile: a mistake in
it would end what runs, and two processes with different lists of cache nodes would not
invalidate each other's entries.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from duostore_server.config import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def handed_over(settings: Settings) -> Iterator[int]:
    """Yield a file descriptor from which processes that inherit it take the settings.

    The file behind it has no name: what is secret in it can be read by those processes
    alone, and nothing is left of it, however they end.
    """
    with tempfile.TemporaryFile() as file:
        file.write(pickle.dumps(settings))
        file.flush()
        yield file.fileno()


def taken_over(descriptor: int) -> Settings:
    """Return the settings of the supervisor. Any number of processes may take them."""
    # Not by read, which moves on a position that all of them share.
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    os.close(descriptor)
    settings = pickle.loads(content)  # noqa: S301 - what our own supervisor wrote
    if not isinstance(settings, Settings):
        raise TypeError(f"not the settings of a service: {type(settings).__name__}")
    return settings
