"""Where the answers of a load arrive."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from duostore_server.cli.load_items import Item
    from duostore_server.cli.load_outcome import Outcome

    Answer: TypeAlias = tuple[Item, Outcome]


class Inbox(Protocol):
    """Where answers arrive, and a wake-up now and then."""

    def put(self, answer: Answer | None) -> None:
        """Add an answer, or None to wake the reader. From any thread or signal handler."""
        ...

    def take(self, timeout: float) -> Answer | None:
        """Return the next answer; None for a wake-up, or if there is none in ``timeout`` s."""
        ...


class AnswerQueue:
    """The inbox of a running load."""

    def __init__(self) -> None:
        # Its put may interrupt itself: a signal handler may call it at any point.
        self._queue: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()

    def put(self, answer: Answer | None) -> None:
        self._queue.put(answer)

    def take(self, timeout: float) -> Answer | None:
        try:
            return self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None
