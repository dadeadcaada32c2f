"""Many callers, few calls: concurrent requests travel to a store in batches."""

from __future__ import annotations

import threading
import time
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, Protocol, Self, TypeAlias, TypeVar

from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.errors import Store

K = TypeVar("K")
V = TypeVar("V")

# A caller in a hurry says nothing of the store; one that waited so long does.
_BLAMED_AFTER_SECONDS: Final = 0.1

# Makes one call to the store. Leaves out the requests that the call did not get to.
Send: TypeAlias = "Callable[[Sequence[K]], Mapping[K, V]]"


class Batching(Protocol[K, V]):
    """Brings requests to a store and their answers back."""

    def ask(self, requests: Collection[K], deadline: Deadline, timeout: float) -> dict[K, V]:
        """Return the answers to these requests; each call to the store begins after this one.

        A request that the store did not get to is left out: ask again. Waits at most
        ``timeout`` seconds and not past the deadline; then raises ``StoreTimeoutError``,
        or ``DeadlineExceededError`` if there was hardly time to wait at all. Raises what
        the call to the store raised, ``StoreOverloadedError`` if there is no room,
        ``StoreUnavailableError`` when stopped. After an error requests may or may not
        have been carried out.
        """
        ...


class Direct(Generic[K, V]):
    """Sends from the caller's own thread, at once; only the store bounds the time it takes."""

    def __init__(self, send: Send[K, V], *, max_batch: int) -> None:
        self._send = send
        self._max_batch = max_batch

    def ask(self, requests: Collection[K], deadline: Deadline, timeout: float) -> dict[K, V]:
        answers: dict[K, V] = {}
        rest = iter(dict.fromkeys(requests))
        while batch := list(islice(rest, self._max_batch)):
            deadline.bound(timeout)
            answers |= self._send(batch)
        return answers


@dataclass(slots=True, eq=False)
class _Call(Generic[K, V]):
    """One caller and what it still waits for."""

    missing: set[K]
    answers: dict[K, V] = field(default_factory=dict)
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)
    # What the log and traces know of the caller.
    context: Context = field(default_factory=copy_context)

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()


_Batch: TypeAlias = "dict[K, list[_Call[K, V]]]"


class Coalescer(Generic[K, V]):
    """Sends requests in batches of what gathered while the previous batches were under way.

    ``max_in_flight`` threads send; a thread that is free takes what waits at once, so
    that batches grow under load and nobody waits for one to fill. A batch that hangs
    holds its own thread and no other. Equal requests that wait are sent once.

    A request never joins a batch that was already sent: that call may have read the
    store before a write which the newcomer knows to be acknowledged, and its answer
    would be stale.

    A caller that leaves takes its requests out of the queue; those that were sent are
    finished, for nobody.
    """

    def __init__(
        self,
        name: str,
        send: Send[K, V],
        *,
        store: Store,
        max_batch: int,
        max_in_flight: int,
        max_waiting: int,
    ) -> None:
        """``max_waiting`` bounds the requests that were not sent yet; ``name`` names threads."""
        self._name = name
        self._send = send
        self._store = store
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._running = False
        self._waiting: _Batch[K, V] = {}
        self._sent: dict[int, _Batch[K, V]] = {}
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the sending threads."""
        self._running = True
        self._threads = [
            threading.Thread(target=self._run, name=f"{self._name}-{number}", daemon=True)
            for number in range(self._max_in_flight)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, grace: float = 3.0) -> bool:
        """Refuse and fail what was not sent; wait ``grace`` seconds for what was.

        Returns False if a batch is still under way then: its callers are failed, and
        its thread ends with the call that it hangs in.
        """
        with self._lock:
            self._running = False
            self._fail(self._waiting)
            self._waiting = {}
            self._ready.notify_all()
        ends = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        with self._lock:
            for batch in self._sent.values():
                self._fail(batch)
        return not any(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def ask(self, requests: Collection[K], deadline: Deadline, timeout: float) -> dict[K, V]:
        call: _Call[K, V] = _Call(set(requests))
        if not call.missing:
            return {}
        wait = deadline.bound(timeout)
        self._enqueue(call, requests)
        try:
            call.done.wait(wait)
        finally:
            answered = self._leave(call)
        if not answered:
            if wait < min(timeout, _BLAMED_AFTER_SECONDS):
                raise DeadlineExceededError
            raise StoreTimeoutError(self._store)
        if call.error is not None:
            raise _own(call.error) from call.error
        return call.answers

    def _enqueue(self, call: _Call[K, V], requests: Collection[K]) -> None:
        with self._lock:
            if not self._running:
                raise StoreUnavailableError(self._store)
            joined = {request: self._joinable(request) for request in requests}
            fresh = sum(calls is None for calls in joined.values())
            if len(self._waiting) + fresh > self._max_waiting:
                raise StoreOverloadedError(self._store)
            for request, calls in joined.items():
                if calls is None:
                    self._waiting[request] = [call]
                else:
                    calls.append(call)
            self._ready.notify()

    def _joinable(self, request: K) -> list[_Call[K, V]] | None:
        """Return the callers of an equal request that was not sent yet."""
        return self._waiting.get(request)

    def _leave(self, call: _Call[K, V]) -> bool:
        """Take what ``call`` still waits for out of the queue; return whether it was answered."""
        with self._lock:
            for request in call.missing:
                calls = self._waiting.get(request)
                if calls is not None and call in calls:
                    calls.remove(call)
                    if not calls:
                        del self._waiting[request]
            return call.done.is_set()

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            # On behalf of the first of its callers, who may have another batch under way.
            context = next(iter(batch.values()))[0].context.copy()
            try:
                answers = context.run(self._send, list(batch))
            except Exception as error:  # noqa: BLE001 - it is raised to each caller
                self._settle(batch, {}, error)
            else:
                self._settle(batch, answers, None)

    def _take(self) -> _Batch[K, V] | None:
        with self._lock:
            while self._running and not self._waiting:
                self._ready.wait()
            if not self._running:
                return None
            requests = list(islice(self._waiting, self._max_batch))
            batch = {request: self._waiting.pop(request) for request in requests}
            self._sent[id(batch)] = batch
            if self._waiting:
                self._ready.notify()
            return batch

    def _settle(self, batch: _Batch[K, V], answers: Mapping[K, V], error: Exception | None) -> None:
        with self._lock:
            del self._sent[id(batch)]
            for request, calls in batch.items():
                for call in calls:
                    call.missing.discard(request)
                    if error is not None:
                        call.fail(error)
                        continue
                    if request in answers:
                        call.answers[request] = answers[request]
                    if not call.missing:
                        call.done.set()

    def _fail(self, batch: _Batch[K, V]) -> None:
        for calls in batch.values():
            for call in calls:
                call.fail(StoreUnavailableError(self._store))


def _own(error: Exception) -> Exception:
    """Return an exception equal to ``error``: each caller that raises adds its own traceback."""
    own = type(error).__new__(type(error), *error.args)
    own.__dict__.update(error.__dict__)
    return own
