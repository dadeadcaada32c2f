"""Backfills as those see them who run the service: started, joined, watched and ended."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from duostore_server.access.checks import refuse
from duostore_server.domain.backfills import (
    DEFAULT_PARTS,
    MAX_PARTS,
    MAX_RATE,
    Backfill,
    BackfillState,
)
from duostore_server.domain.errors import (
    BackfillNotFoundError,
    DeadlineExceededError,
    FieldViolation,
    StoreError,
)
from duostore_server.domain.keys import listed
from duostore_server.domain.policies import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from duostore_server.domain.admin_ports import Backfills
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.policies import Policies

# How far a backfill is, and about how long it still takes, if that can be told.
Progress: TypeAlias = tuple[Backfill, timedelta | None]

_TELL_EVERY_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 2.0
# A failover of Aurora is over by then, and the backfill goes on meanwhile.
_MOST_SILENT_SECONDS: Final = 60.0
# The pace is that of late: parts end, and the load changes.
_PACE_SECONDS: Final = 10.0
_LEAST_PACE_SECONDS: Final = 2.0


class Backfilling:
    """Starts, shows, pauses and cancels backfills; the background processes do them."""

    def __init__(
        self,
        backfills: Backfills,
        policies: Policies,
        *,
        pause: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        """``pause`` waits for so many seconds of ``clock``, which is monotonic."""
        self._backfills = backfills
        self._policies = policies
        self._pause = pause
        self._clock = clock

    def run(
        self, kind: str, *, rate: int, parallel: int, caller: str, deadline: Deadline
    ) -> Generator[Progress, None, None]:
        """Start a backfill, or join it; yield twice a second until it runs no more.

        The first look comes at once, and the last is that at its end. Whoever stops listening
        stops nothing. Raises ``InvalidRequestError``, and ``StoreError`` if Aurora could not be
        asked for a minute.
        """
        backfill, remaining = self.start(
            kind, rate=rate, parallel=parallel, caller=caller, deadline=deadline
        )
        yield backfill, remaining
        found_at = backfill.done
        looks = [(self._clock(), backfill)]
        while backfill.state is BackfillState.RUNNING:
            if deadline.is_abandoned():
                raise DeadlineExceededError
            self._pause(_TELL_EVERY_SECONDS)
            now = self._clock()
            try:
                found = self._backfills.find(kind, deadline.within(_LOOK_SECONDS))
            except (StoreError, DeadlineExceededError):
                if now - looks[-1][0] > _MOST_SILENT_SECONDS:
                    raise
                continue
            backfill = found or backfill
            # Until the first batch is done nothing can be told by how long that took.
            before = looks if backfill.done != found_at else []
            looks = _recent([*before, (now, backfill)])
            yield backfill, _remaining(backfill, _pace(looks))

    def start(
        self, kind: str, *, rate: int, parallel: int, caller: str, deadline: Deadline
    ) -> Progress:
        """Start a backfill, go on with a paused one, or join the one that runs.

        Raises ``InvalidRequestError``.
        """
        refuse((*self._kind(kind), *_numbers(rate, parallel)))
        parts = parallel or DEFAULT_PARTS
        backfill = self._backfills.start(
            kind, rate=rate, parts=parts, caller=caller, deadline=deadline
        )
        return backfill, _remaining(backfill, None)

    def show(self, kind: str, deadline: Deadline) -> Progress:
        """Return how far the newest backfill of a kind is, or came; of any kind that had one.

        Raises ``BackfillNotFoundError`` if there was none.
        """
        found = self._backfills.find(kind, deadline)
        if found is None:
            refuse(self._kind(kind))
            raise BackfillNotFoundError(kind)
        return found, _remaining(found, None)

    def pause(self, kind: str, *, caller: str, deadline: Deadline) -> Progress:
        """Stop a backfill where it is; ``start`` goes on with it.

        Raises ``BackfillNotFoundError`` if there is none that runs or is paused.
        """
        return self._move(kind, BackfillState.PAUSED, caller, deadline)

    def cancel(self, kind: str, *, caller: str, deadline: Deadline) -> Progress:
        """End a backfill; the next one begins anew. Raises as ``pause`` does."""
        return self._move(kind, BackfillState.CANCELLED, caller, deadline)

    def unfinished(self, deadline: Deadline) -> list[Progress]:
        """Return those that run or are paused, of all kinds."""
        found = self._backfills.unfinished(deadline)
        return [(backfill, _remaining(backfill, None)) for backfill in found]

    def _move(self, kind: str, state: BackfillState, caller: str, deadline: Deadline) -> Progress:
        moved = self._backfills.move(kind, state, caller, deadline)
        if moved is None:
            refuse(self._kind(kind))
            last = self._backfills.find(kind, deadline)
            raise BackfillNotFoundError(kind, "" if last is None else _ended(last))
        return moved, _remaining(moved, None)

    def _kind(self, kind: str) -> Iterator[FieldViolation]:
        policy = self._policies.of_kind(kind)
        if policy is None:
            known = listed(self._policies.names())
            yield FieldViolation("kind", f"{kind!r} is not a configured kind (configured: {known})")
        elif policy.home is not Home.AURORA:
            text = f"{kind!r} is at home in DynamoDB: there is nothing that it is projected from"
            yield FieldViolation("kind", text)


def _numbers(rate: int, parallel: int) -> Iterator[FieldViolation]:
    for field, value, most in (("rate", rate, MAX_RATE), ("parallel", parallel, MAX_PARTS)):
        if not 0 <= value <= most:
            yield FieldViolation(field, f"is {value}; 0 to {most} are allowed")


def _ended(last: Backfill) -> str:
    """Return how a backfill has ended."""
    failed = f", of which {last.failed} could not be projected" if last.failed else ""
    if last.state is BackfillState.CANCELLED:
        count = f"{last.done} of about {max(last.estimated_total, last.done)} entities"
        return f"the last one was cancelled after {count}{failed}"
    at = f"{last.update_time:%Y-%m-%d %H:%M:%S} UTC"
    return f"the last one was done at {at}, with {last.done} entities{failed}"


def _recent(looks: list[tuple[float, Backfill]]) -> list[tuple[float, Backfill]]:
    """Return the looks from which the pace is told: those at what is the same, and not old."""
    now, backfill = looks[-1]
    return [
        (time, look)
        for time, look in looks
        if (look.id, look.rate) == (backfill.id, backfill.rate) and now - time <= _PACE_SECONDS
    ]


def _pace(looks: list[tuple[float, Backfill]]) -> float | None:
    """Return the entities a second between the first and the last look, if that says enough."""
    (began, first), (ended, last) = looks[0], looks[-1]
    if ended - began < _LEAST_PACE_SECONDS:
        return None
    return (last.done - first.done) / (ended - began)


def _remaining(backfill: Backfill, pace: float | None) -> timedelta | None:
    """Return about how long a backfill still takes; without a pace, by that since it began."""
    if backfill.state is not BackfillState.RUNNING:
        return None
    if pace is None:
        lasted = (backfill.update_time - backfill.start_time).total_seconds()
        pace = backfill.done / lasted if lasted >= _LEAST_PACE_SECONDS else 0.0
    if backfill.rate:
        pace = min(pace, float(backfill.rate))
    left = backfill.estimated_total - backfill.done
    if pace <= 0 or left <= 0:
        return None
    return timedelta(seconds=left / pace)
