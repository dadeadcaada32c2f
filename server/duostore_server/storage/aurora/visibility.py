"""What the transactions of a server see, to tell whether a reader sees all that the writer does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# The first statement of a transaction, or one of its own. Its begin is before its snapshot,
# so that what was committed by then is seen. As microseconds that is read in any session.
SIGHT: Final = """
SELECT pg_catalog.current_setting('transaction_read_only'), pg_catalog.pg_is_in_recovery(),
    pg_catalog.pg_current_snapshot()::text,
    (extract(epoch FROM pg_catalog.now()) * 1000000)::bigint
"""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a transaction sees: those below ``xmax``, but for those ``in_progress``.

    None is in progress below ``xmin``. On a reader ``in_progress`` is empty, whatever is: a
    snapshot that is taken in recovery has its list in a place that PostgreSQL does not show.
    ``time``, aware and in UTC, is before the snapshot, by the clock of its server.
    """

    is_writer: bool
    in_recovery: bool
    xmin: int
    xmax: int
    in_progress: frozenset[int]
    time: datetime

    @classmethod
    def of(cls, row: TupleRow) -> Self:
        """Return the answer to ``SIGHT``."""
        read_only, in_recovery, snapshot, microseconds = row
        xmin, xmax, in_progress = snapshot.split(":")
        return cls(
            is_writer=read_only == "off" and not in_recovery,
            in_recovery=in_recovery,
            xmin=int(xmin),
            xmax=int(xmax),
            in_progress=frozenset(map(int, filter(None, in_progress.split(",")))),
            time=_EPOCH + timedelta(microseconds=microseconds),
        )

    def contains(self, other: Sight) -> bool:
        """Tell whether all that the writer saw (``other``) is seen here; False if in doubt."""
        if self.xmax < other.xmax:
            return False
        if not self.in_recovery:
            return all(xid in other.in_progress for xid in self.in_progress if xid < other.xmax)
        doubtful = range(self.xmin, other.xmax)
        return len(doubtful) <= len(other.in_progress) and other.in_progress.issuperset(doubtful)

    def may_come_to_contain(self, other: Sight) -> bool:
        """Tell whether to wait a moment helps: not if the writer waits for the same one too."""
        return self.xmin not in other.in_progress
