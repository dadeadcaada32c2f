"""Backfills and how far they have come, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from duostore_server.domain.admin_ports import Backfills
    from duostore_server.domain.backfills import (
        Advanced,
        Backfill,
        BackfillPart,
        BackfillState,
        Batch,
    )
    from duostore_server.domain.deadline import Deadline
    from duostore_server.telemetry.metrics import Metrics


class ObservedBackfills:
    """Measures ``Backfills`` and changes nothing about them.

    What batches come to is counted by whoever does them.
    """

    def __init__(self, delegate: Backfills, metrics: Metrics) -> None:
        self._delegate = delegate
        self._start = StoreCalls(metrics, Store.AURORA, "backfill_start")
        self._move = StoreCalls(metrics, Store.AURORA, "backfill_move")
        self._find = StoreCalls(metrics, Store.AURORA, "backfill_find")
        self._unfinished = StoreCalls(metrics, Store.AURORA, "backfill_unfinished")
        self._claim = StoreCalls(metrics, Store.AURORA, "backfill_claim")
        self._hold = StoreCalls(metrics, Store.AURORA, "backfill_hold")
        self._advance = StoreCalls(metrics, Store.AURORA, "backfill_advance")

    def start(
        self, kind: str, *, rate: int, parts: int, caller: str, deadline: Deadline
    ) -> Backfill:
        with self._start():
            return self._delegate.start(
                kind, rate=rate, parts=parts, caller=caller, deadline=deadline
            )

    def move(
        self, kind: str, state: BackfillState, caller: str, deadline: Deadline
    ) -> Backfill | None:
        with self._move() as call:
            backfill = self._delegate.move(kind, state, caller, deadline)
            if backfill is None:
                call.outcome = "miss"
            return backfill

    def find(self, kind: str, deadline: Deadline) -> Backfill | None:
        with self._find() as call:
            backfill = self._delegate.find(kind, deadline)
            if backfill is None:
                call.outcome = "miss"
            return backfill

    def unfinished(self, deadline: Deadline) -> Sequence[Backfill]:
        with self._unfinished() as call:
            backfills = self._delegate.unfinished(deadline)
            if not backfills:
                call.outcome = "miss"
            return backfills

    def claim(
        self, kinds: Collection[str], limit: int, deadline: Deadline
    ) -> Sequence[BackfillPart]:
        with self._claim() as call:
            parts = self._delegate.claim(kinds, limit, deadline)
            if not parts:
                call.outcome = "miss"
            return parts

    def hold(self, part: BackfillPart, deadline: Deadline) -> BackfillPart | None:
        with self._hold() as call:
            held = self._delegate.hold(part, deadline)
            if held is None:
                call.outcome = "miss"
            return held

    def advance(self, part: BackfillPart, batch: Batch, deadline: Deadline) -> Advanced:
        with self._advance():
            return self._delegate.advance(part, batch, deadline)
