"""Calls that must not be made twice, each by a thread that its caller may leave behind."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreError,
    WriteOutcomeUnknownError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.dynamodb.coalescer import Batching

    # Makes the calls of each batch by ``make_all``.
    CallBatching: TypeAlias = Batching["Call", Any]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


@dataclass(slots=True, eq=False)
class Call:
    """A call that is made, or left by its caller, whichever comes first."""

    run: Callable[[], Any]
    _free: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Return whether nobody has taken the call before: to make it, or to leave it."""
        with self._lock:
            free, self._free = self._free, False
            return free


def make_all(calls: Sequence[Call]) -> dict[Call, Any]:
    """Make those calls that their callers still wait for; return what each came to."""
    return {call: _made(call) for call in calls}


def _made(call: Call) -> Any:  # noqa: ANN401 - what the call returns
    if not call.take():
        return None  # for nobody
    try:
        return call.run()
    except Exception as error:  # noqa: BLE001 - it is raised to the caller
        return _Raised(error)


class Calls:
    """Makes calls by ``batching``, and knows of each that fails whether it was begun."""

    def __init__(self, batching: CallBatching) -> None:
        self._batching = batching

    def make(self, run: Callable[[], T], deadline: Deadline, timeout: float) -> T:
        """Return what ``run`` returns, or raise what it raises, within ``timeout`` seconds.

        Raises as ``Batching.ask`` does if the call was not begun, and never will be;
        ``WriteOutcomeUnknownError`` if it was and its end was not waited for.
        """
        call = Call(run)
        try:
            made = self._batching.ask((call,), deadline, timeout)[call]
        except (StoreError, DeadlineExceededError) as error:
            if call.take():
                raise
            raise WriteOutcomeUnknownError(Store.DYNAMODB) from error
        if isinstance(made, _Raised):
            raise made.error
        return cast("T", made)
