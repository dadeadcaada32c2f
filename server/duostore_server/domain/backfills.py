"""Backfills: all entities of a kind, projected anew beside live traffic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from duostore_server.domain.keys import EntityKey

DEFAULT_PARTS: Final = 4
MAX_PARTS: Final = 64
MAX_RATE: Final = 1_000_000
# How long a part is held on to without a word from who has claimed it: for so long what a process
# was at rests when it dies.
CLAIM_SECONDS: Final = 15.0


class BackfillState(Enum):
    """How a backfill stands; the value is its name in Aurora and on the command line."""

    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Backfill:
    """The newest backfill of a kind.

    Of ``done`` entities that were looked at, ``projected`` were not held as they are, and
    ``failed`` cannot be projected. ``estimated_total`` is about how many there are. ``rate`` is
    the most entities a second over all parts, 0 if it is not bounded. ``update_time`` is when it
    last went on.
    """

    id: int
    kind: str
    state: BackfillState
    done: int
    projected: int
    failed: int
    estimated_total: int
    parts: int
    parts_done: int
    rate: int
    caller: str
    start_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class BackfillPart:
    """A part of a backfill that is claimed: the keys after ``after``, up to ``until``.

    ``after`` None is the beginning and ``until`` None the end of the kind. ``rate`` is what this
    part may do in a second, as long as so many parts are claimed, 0 if that is not bounded.
    ``claim`` is new with each claim: whoever has lost it can advance nothing.
    """

    backfill: int
    kind: str
    number: int
    claim: int
    after: EntityKey | None
    until: EntityKey | None
    rate: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What was done of a part: the last key of it, None if the part has come to its end."""

    last: EntityKey | None
    done: int
    projected: int
    failed: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """What became of a batch: whether it counts, and the part as it is now, if it goes on."""

    is_counted: bool
    part: BackfillPart | None
