"""Tells whether the writer of Aurora answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import Store, StoreUnavailableError

if TYPE_CHECKING:
    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.pool import AuroraPool

_PING: Final = "SELECT current_setting('transaction_read_only')"


class AuroraProbe:
    """``ports.Probe`` of the writer: a server that only reads is as good as none."""

    store = Store.AURORA

    def __init__(self, pool: AuroraPool) -> None:
        self._pool = pool

    def ping(self, deadline: Deadline) -> None:
        ((read_only,),) = self._pool.execute(_PING, (), deadline)
        if read_only != "off":
            self._pool.renew()
            raise StoreUnavailableError(Store.AURORA)
