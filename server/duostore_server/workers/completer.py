"""Removes outbox rows whose work is done, in batches and off the request path."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DuostoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duostore_server.domain.ports import Outbox

_BATCH: Final = 500
_BUDGET_SECONDS: Final = 2.0
# A worker that cannot reach Aurora for long forgets the oldest notes rather than
# grow; the projector finds their rows and does their work again, to no effect.
_MAX_NOTES: Final = 100_000


class Completer:
    """Collects notes of completed rows; ``run_once`` removes the rows.

    Notes are lost with the process. The projector then repeats the work of those
    rows, which changes nothing, and removes them itself.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._notes: deque[int] = deque(maxlen=_MAX_NOTES)

    def add(self, outbox_ids: Iterable[int]) -> None:
        self._notes.extend(outbox_ids)

    def run_once(self) -> bool:
        """Remove one batch of rows; return True if more are noted."""
        ids = [self._notes.popleft() for _ in range(min(_BATCH, len(self._notes)))]
        if ids:
            self._outbox.complete(ids, Deadline.after(_BUDGET_SECONDS))
        return bool(self._notes)

    def finish(self) -> None:
        """Remove the rows that are still noted, unless Aurora cannot be reached."""
        with suppress(DuostoreError):
            while self.run_once():
                pass
