"""What is done off the request path, in batches: it may be lost, to no harm."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DuostoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

T = TypeVar("T")

_BUDGET_SECONDS: Final = 2.0
_FINISH_SECONDS: Final = 5.0
# A worker that cannot reach a store for long forgets the oldest notes rather than grow.
_MAX_NOTES: Final = 100_000


class Deferred(Generic[T]):
    """Collects notes; ``run_once`` sends a batch of them.

    Those of completed outbox rows: if they are lost the projector repeats the work of the
    rows, which changes nothing, and removes them itself. Those of answered writes: if
    they are lost a repetition is answered by the authority.
    """

    def __init__(self, send: Callable[[Sequence[T], Deadline], object], *, batch: int) -> None:
        self._send = send
        self._batch = batch
        self._notes: deque[T] = deque(maxlen=_MAX_NOTES)

    def add(self, notes: Iterable[T]) -> None:
        self._notes.extend(notes)

    def run_once(self) -> bool:
        """Send one batch; return True if more is noted. What fails is forgotten."""
        notes = [self._notes.popleft() for _ in range(min(self._batch, len(self._notes)))]
        if notes:
            self._send(notes, Deadline.after(_BUDGET_SECONDS))
        return bool(self._notes)

    def finish(self) -> None:
        """Send what is still noted, for a few seconds, unless the store cannot be reached."""
        deadline = Deadline.after(_FINISH_SECONDS)
        with suppress(DuostoreError):
            while self.run_once() and not deadline.is_over():
                pass
