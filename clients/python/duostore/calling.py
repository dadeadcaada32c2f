"""What all calls of a client have in common."""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING

from duostore.status import Call, Repeat

if TYPE_CHECKING:
    from duostore.connection import Connection


class Calling:
    """A connection, the timeout of calls that bring none, and whether writes are given keys."""

    def __init__(self, connection: Connection, *, timeout: float, makes_keys: bool) -> None:
        self._timeout = _finite(timeout)
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout} s; it must be more than 0")
        self._connection = connection
        self._makes_keys = makes_keys

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else _finite(timeout)

    def _key(self, idempotency_key: str | None) -> str:
        """Return the key of a write, a new one if it brings none."""
        if idempotency_key is not None:
            return idempotency_key
        return uuid.uuid4().hex if self._makes_keys else ""

    def _writing(self, text: str, idempotency_key: str | None) -> Call:
        key = self._key(idempotency_key)
        return Call(text, uuid.uuid4().hex, Repeat.KEYED if key else Repeat.NEVER, key)


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError(f"timeout is {seconds}; every call needs a finite number of seconds")
    return seconds
