"""What may become of a line that was sent to the service, and of the whole load."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.domain.documents import JsonObject


@dataclass(frozen=True, slots=True)
class Saved:
    """It is saved; ``pending`` if not every reader sees it yet."""

    pending: bool


@dataclass(frozen=True, slots=True)
class Existed:
    """Its entity exists already, and was to be left as it is."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The service will never accept it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Delayed:
    """It may be accepted later, or has been: to try again is safe.

    ``after`` is how many seconds the service wants to be left alone.
    """

    reason: str
    after: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Something is wrong that concerns the whole load, which has to stop with ``exit_code``.

    ``maybe_applied`` tells whether the line may have been saved all the same.
    """

    reason: str
    exit_code: int
    maybe_applied: bool


Outcome: TypeAlias = Saved | Existed | Refused | Delayed | Failed


class Ending(Enum):
    """How a run of a load ended; the value stands in its summary."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    UNAVAILABLE = "unavailable"
    FAILED = "failed"
    INPUT_CHANGED = "input changed"


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended, and why, if not by itself; ``exit_code`` is that of a failure."""

    ending: Ending
    why: str = ""
    exit_code: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """``timeout`` bounds a call, ``retry_for`` the tries of a line; both in seconds."""

    in_flight: int
    timeout: float
    retry_for: float


class Saver(Protocol):
    """Saves documents."""

    def save(
        self,
        line: int,
        id: str,  # noqa: A002 - as the key's
        document: JsonObject,
        tell: Callable[[Outcome], None],
    ) -> None:
        """Begin to save the document of a line under an id.

        However often it is begun for a line, it is applied once. ``tell`` is called once, on
        any thread, within a bounded time, also if nobody answers.
        """
        ...
