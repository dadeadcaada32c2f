"""Says how the service is: its stores, what waits, what is set, and which objectives hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import DeadlineExceededError, Store, StoreError
from duostore_server.domain.status import Status, StoreStanding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from duostore_server.domain.backfills import Backfill
    from duostore_server.domain.controls import ReadOnly
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.entities import Backlog
    from duostore_server.domain.ports import Outbox
    from duostore_server.domain.status import Figures

# Whoever asks while Aurora is down wants to know that, and soon.
_AURORA_SECONDS: Final = 2.0


class Reporting:
    """Says how the service is, as one process sees it; answers whatever is down."""

    def __init__(
        self,
        *,
        release: str,
        start_time: datetime,
        outbox: Outbox,
        read_only: Callable[[Deadline], Sequence[ReadOnly]],
        in_force: Callable[[], Mapping[str, ReadOnly]],
        backfills: Callable[[Deadline], Iterable[tuple[Backfill, timedelta | None]]],
        figures: Callable[[], Figures],
    ) -> None:
        """``read_only`` asks Aurora, and so says the same in every process.

        ``in_force`` asks nobody, and says what this process goes by.
        ``backfills`` are those that are running or paused, and how long each still takes, if
        that can be told. ``figures`` are what the processes of the machine have counted.
        """
        self._release = release
        self._start_time = start_time
        self._outbox = outbox
        self._read_only = read_only
        self._in_force = in_force
        self._backfills = backfills
        self._figures = figures
        self._up: dict[Store, bool] = {}

    def noted(self, store: Store, *, up: bool) -> None:
        """Take note of whether a store answered. One that was never asked counts as down."""
        self._up[store] = up

    def status(self, deadline: Deadline) -> Status:
        """Return how the service is now."""
        backlog, read_only, backfills = self._of_aurora(deadline.within(_AURORA_SECONDS))
        figures = self._figures()
        calls = {counted.store: counted for counted in figures.stores}
        if read_only is None:
            in_force = self._in_force()
            read_only = tuple(in_force[kind] for kind in sorted(in_force))
        return Status(
            release=self._release,
            start_time=self._start_time,
            stores=tuple(
                StoreStanding(store, self._up.get(store, False), calls.get(store))
                for store in (Store.AURORA, Store.DYNAMODB, Store.CACHE)
            ),
            backlog=backlog,
            read_only=read_only,
            backfills=backfills,
            figures=figures,
        )

    def _of_aurora(
        self, deadline: Deadline
    ) -> tuple[
        Backlog | None,
        tuple[ReadOnly, ...] | None,
        tuple[tuple[Backfill, timedelta | None], ...],
    ]:
        """Return what Aurora knows, as far as it can be asked; None is not known."""
        backlog = read_only = None
        try:
            backlog = self._outbox.backlog(deadline)
            read_only = tuple(self._read_only(deadline))
            return backlog, read_only, tuple(self._backfills(deadline))
        except (StoreError, DeadlineExceededError):
            return backlog, read_only, ()
