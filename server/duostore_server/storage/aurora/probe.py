"""Tells whether the writer of Aurora answers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import Store
from duostore_server.storage.aurora.pool import AuroraPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.connection import Conninfo

_PING: Final = "SELECT current_setting('transaction_read_only')"


class AuroraProbe:
    """``ports.Probe`` of the writer: a server that only reads is as good as none."""

    store = Store.AURORA

    def __init__(self, pool: AuroraPool) -> None:
        self._pool = pool

    def ping(self, deadline: Deadline) -> None:
        self._pool.ask_writer(_PING, (), deadline)


@contextmanager
def open_probe(
    conninfo: Conninfo,
    *,
    timeout: float = 1.0,
    connect_timeout: float = 2.0,
    pooler: bool = False,
) -> Iterator[AuroraProbe]:
    """Yield a probe with a connection of its own: neither a full pool nor a lock is an outage.

    It is opened by the first ping, and again by the next one after an error. A ping waits
    ``timeout`` seconds for it and as many for its answer, within its deadline; a connection
    that takes longer goes on being made and serves a later ping.
    """
    with AuroraPool(
        conninfo,
        min_size=0,
        max_size=1,
        wait=timeout,
        statement_timeout=timeout,
        connect_timeout=connect_timeout,
        pooler=pooler,
        name="aurora-probe",
    ) as pool:
        yield AuroraProbe(pool)
