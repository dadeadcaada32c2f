"""The idempotency keys that were taken, each by the transaction that applied its request."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.types.numeric import Int8

from duostore_server.domain.errors import DuplicateInProgressError, StoreOverloadedError
from duostore_server.domain.transactions import Applied, Recorded
from duostore_server.storage.aurora.statements import PURGE, READ_REMEMBERED, REMEMBER
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.transactions import Answer, Idempotency, IdempotencyKey
    from duostore_server.storage.aurora.pool import AuroraPool

_PRIMARY_KEY: Final = "idempotency_pkey"


class KeyTakenError(Exception):
    """Nothing was written: the idempotency key was taken by a transaction that has committed."""


class AuroraIdempotency:
    """``ports.IdempotencyRows`` on PostgreSQL, and how they are read."""

    def __init__(self, pool: AuroraPool) -> None:
        self._pool = pool

    def recall(self, key: IdempotencyKey, deadline: Deadline) -> Recorded | None:
        rows = self._pool.ask_writer(READ_REMEMBERED, (key.tenant, key.text), deadline)
        ((_, request_hash, answer),) = rows
        return None if request_hash is None else Recorded(request_hash, _decoded(answer))

    def purge(self, limit: int, deadline: Deadline) -> int:
        ((purged,),) = self._pool.execute(PURGE, (Int8(limit),), deadline)
        return int(purged)


def taking(idempotency: Idempotency) -> dict[str, object]:
    """Return the parameters of a statement that takes an idempotency key."""
    return {
        "key_tenant": idempotency.key.tenant,
        "key_text": idempotency.key.text,
        "request_hash": idempotency.request_hash,
        "keep": idempotency.keep,
    }


def remembering(idempotency: Idempotency, answer: Answer) -> Statement:
    """Return the statement that takes a key for what a transaction has come to."""
    return Statement(REMEMBER, {**taking(idempotency), "answer": _encoded(answer)})


@contextmanager
def contending_for_key() -> Iterator[None]:
    """Tell how a statement that takes an idempotency key, or its transaction, failed.

    Raises ``KeyTakenError``; ``DuplicateInProgressError`` if it gave up waiting for a lock.
    All else passes through.
    """
    try:
        yield
    except psycopg.errors.UniqueViolation as error:
        if error.diag.constraint_name != _PRIMARY_KEY:
            raise
        raise KeyTakenError from error
    except StoreOverloadedError as error:
        if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
            raise
        raise DuplicateInProgressError from error


def _encoded(answer: Answer) -> str:
    return json.dumps(
        [
            {"version": applied.version, "update_time": applied.update_time.isoformat()}
            for applied in answer
        ]
    )


def _decoded(answer: list[dict[str, Any]]) -> Answer:
    return tuple(
        Applied(applied["version"], datetime.fromisoformat(applied["update_time"]).astimezone(UTC))
        for applied in answer
    )
