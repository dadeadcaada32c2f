"""Measures a call of a store: how long it took and how it ended; and traces it, if that is on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from duostore_server.domain.errors import (
    ConstraintViolatedError,
    DeadlineExceededError,
    DuplicateInProgressError,
    EntityExistsError,
    EntityNotFoundError,
    IdempotencyKeyReusedError,
    QueryTimeoutError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
    VersionMismatchError,
    WriteOutcomeUnknownError,
)
from duostore_server.telemetry.tracing import process

if TYPE_CHECKING:
    from types import TracebackType

    from duostore_server.domain.errors import Store
    from duostore_server.telemetry.metrics import Metrics
    from duostore_server.telemetry.spans import Spans

# The first that fits; a timeout is told apart from a store that cannot be reached.
_OUTCOMES: Final = (
    (StoreTimeoutError, "timeout"),
    (QueryTimeoutError, "timeout"),
    (StoreUnavailableError, "unavailable"),
    (StoreOverloadedError, "overloaded"),
    (WriteOutcomeUnknownError, "unknown"),
    (DeadlineExceededError, "deadline"),
    (VersionMismatchError, "conflict"),
    (ConstraintViolatedError, "conflict"),
    (EntityExistsError, "conflict"),
    (DuplicateInProgressError, "conflict"),
    (IdempotencyKeyReusedError, "conflict"),
    (EntityNotFoundError, "miss"),
)


def _outcome_of(error: BaseException) -> str:
    return next((name for kind, name in _OUTCOMES if isinstance(error, kind)), "error")


class StoreCalls:
    """Measures one operation of one store; use as a context manager, once per call."""

    def __init__(self, metrics: Metrics, store: Store, op: str) -> None:
        seconds = metrics.store_call_seconds.labels(store.value, op)
        self._observe = seconds.observe
        self._counter = metrics.store_calls
        self.tier, self.op = store.value, op
        self._children = {
            outcome: self._counter.labels(store.value, op, outcome) for outcome in ("ok", "miss")
        }

    def __call__(self) -> StoreCall:
        """Return the measurement of the call that begins now."""
        spans = process.spans
        return StoreCall(self) if spans is None else _TracedCall(self, spans)

    def record(self, outcome: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._observe(seconds)
        child = self._children.get(outcome)
        if child is None:
            child = self._children[outcome] = self._counter.labels(self.tier, self.op, outcome)
        child.inc()


class StoreCall:
    """One call. Set ``outcome`` if it is not ``ok``; an exception tells its own."""

    __slots__ = ("_began", "_calls", "outcome")

    def __init__(self, calls: StoreCalls) -> None:
        self._calls = calls
        self._began = time.perf_counter()
        self.outcome = "ok"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.outcome = _outcome_of(exc)
        self._calls.record(self.outcome, time.perf_counter() - self._began)


class _TracedCall(StoreCall):
    """A call that is a span, too: a child of the RPC's that it is made for."""

    __slots__ = ("_span",)

    def __init__(self, calls: StoreCalls, spans: Spans) -> None:
        super().__init__(calls)
        self._span = spans.store(calls.tier, calls.op)

    def __enter__(self) -> Self:
        self._span.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc, traceback)
        self._span.ended(self.outcome)
        self._span.__exit__(exc_type, exc, traceback)
