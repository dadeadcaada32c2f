"""How the service is, as GetStatus tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from duostore_server.domain.backfills import Backfill
    from duostore_server.domain.controls import ReadOnly
    from duostore_server.domain.entities import Backlog
    from duostore_server.domain.errors import Store


@dataclass(frozen=True, slots=True)
class StoreCalls:
    """Calls of one store in the last five minutes.

    ``error_ratio`` is the share of them that failed by the store's fault. ``p95`` is how long 95
    of 100 took at most, about, in seconds; None if there were none.
    """

    store: Store
    calls: int
    error_ratio: float
    p95: float | None


@dataclass(frozen=True, slots=True)
class SloStanding:
    """One objective and whether it holds: ``duostore.v1.SloStatus``.

    ``target`` and the ratios are shares that are good; ``ratio`` that of the last five minutes,
    ``ratio_hour`` that of the last hour, None if nothing was counted.
    """

    name: str
    objective: str
    target: float
    ratio: float | None
    ratio_hour: float | None
    burn_rate: float
    holds: bool


@dataclass(frozen=True, slots=True)
class Consistency:
    """What the verifier found in the last hour, so long after each save; zero of random rows."""

    age: timedelta
    verified: int
    inconsistent: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What all processes of the machine have counted. Stores that nobody called are left out."""

    stores: tuple[StoreCalls, ...] = ()
    slos: tuple[SloStanding, ...] = ()
    consistency: tuple[Consistency, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreStanding:
    """One store: whether it answered when it was last asked, and how calls of it went."""

    store: Store
    up: bool
    calls: StoreCalls | None


@dataclass(frozen=True, slots=True)
class Status:
    """The whole service, as one process sees it.

    ``start_time`` is that of the process. If Aurora cannot be asked ``backlog`` is None, there are
    no ``backfills``, and ``read_only`` is what is in force in that process.
    """

    release: str
    start_time: datetime
    stores: tuple[StoreStanding, ...]
    backlog: Backlog | None
    read_only: tuple[ReadOnly, ...]
    backfills: tuple[tuple[Backfill, timedelta | None], ...]
    figures: Figures
