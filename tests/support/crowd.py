"""Many callers at once, who repeat what was not answered, while processes die under them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.support.service import kill
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import psutil

P = TypeVar("P")
T = TypeVar("T")

# Longer than a process takes to be replaced on a busy machine.
_ANSWER_SECONDS = 60.0
_PROGRESS_SECONDS = 120.0
# Who stays with one connection for ever never comes to a process that was replaced.
_STINT = 50

_PASSING_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)
_PASSING_REASONS = frozenset({"WRITE_OUTCOME_UNKNOWN", "DUPLICATE_IN_PROGRESS"})


@dataclass(frozen=True)
class Failure:
    """What a caller is told of a call that failed; the reason is the code's name if none came."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def is_passing(self) -> bool:
        """Whether the same call may be answered yet."""
        return self.code in _PASSING_CODES or self.reason in _PASSING_REASONS


def failure_of(error: Any) -> Failure:
    """Return what an ``RpcError`` says."""
    status = rpc_status.from_call(error)
    for packed in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return Failure(error.code(), info.reason, dict(info.metadata))
    return Failure(error.code(), error.code().name)


class Persistence:
    """Repeats calls until they are answered; ``unanswered`` counts why they were not."""

    def __init__(self) -> None:
        self.unanswered: Counter[str] = Counter()
        self._lock = threading.Lock()

    def answer(self, call: Callable[[], T], *, what: str) -> T:
        """Return the answer to a call; raises what no repetition would change."""

        def attempt() -> list[T]:
            try:
                return [call()]
            except grpc.RpcError as error:
                failure = failure_of(error)
                if not failure.is_passing:
                    raise
            with self._lock:
                self.unanswered[failure.reason] += 1
            return []

        [answer] = eventually(attempt, within=_ANSWER_SECONDS, what=what)
        return answer


class Crowd(Generic[P]):
    """Threads that share work; each opens a new channel from time to time.

    ``done`` counts the pieces that were worked off.
    """

    def __init__(self, channel: Callable[[], grpc.Channel], *, threads: int) -> None:
        self._channel = channel
        self._threads = threads
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.done = 0

    def work_off(
        self,
        work: Iterable[P],
        do: Callable[[grpc.Channel, P], None],
        *,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Do each piece of the work once, ``meanwhile`` beside it; what any raises is raised.

        If one fails the others end early.
        """
        shared = _Shared(iter(work))
        with ThreadPoolExecutor(self._threads + 1) as pool:
            working = [pool.submit(self._work, shared, do) for _ in range(self._threads)]
            beside = pool.submit(self._unless_over, meanwhile)
            for future in (*working, beside):
                future.result()

    def kill_on_the_way(self, kills: Iterable[tuple[int, Callable[[], psutil.Process]]]) -> None:
        """Kill what each function names when so many pieces are done; ends with the work."""
        for mark, victim in kills:
            eventually(
                lambda mark=mark: self.done >= mark or self._over.is_set(),  # type: ignore[misc]
                within=_PROGRESS_SECONDS,
                what=f"{mark} pieces are done",
            )
            if self._over.is_set():
                return
            kill(victim())

    def _work(self, shared: _Shared[P], do: Callable[[grpc.Channel, P], None]) -> None:
        def work() -> None:
            working = True
            while working and not self._over.is_set():
                working = False
                with self._channel() as channel:
                    for piece in islice(shared, _STINT):
                        do(channel, piece)
                        working = True
                        with self._lock:
                            self.done += 1

        self._unless_over(work)

    def _unless_over(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException:
            self._over.set()
            raise


class _Shared(Generic[P]):
    """An iterator that several threads take from."""

    def __init__(self, iterator: Iterator[P]) -> None:
        self._iterator = iterator
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[P]:
        return self

    def __next__(self) -> P:
        with self._lock:
            return next(self._iterator)
