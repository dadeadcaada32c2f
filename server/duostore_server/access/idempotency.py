"""What makes two requests the same, and what the later one is answered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from duostore_server.domain.transactions import (
    Check,
    Delete,
    FromSnapshot,
    Idempotency,
    IdempotencyKey,
    IfAbsent,
    IfVersion,
    Outcome,
    Save,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.transactions import Precondition, Recorded, Request


def idempotency_of(
    text: str, operation: str, requests: Sequence[Request], keep: timedelta
) -> Idempotency | None:
    """Return what makes a call safe to repeat; None if it came with no idempotency key.

    ``requests`` are of one tenant, their documents normalized.
    """
    if not text:
        return None
    described = json.dumps(
        [operation, *map(_described, requests)],
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )
    key = IdempotencyKey(requests[0].key.tenant, text)
    return Idempotency(key, hashlib.sha256(described.encode()).digest(), keep)


def earlier_outcome(
    idempotency: Idempotency | None,
    recall: Callable[[IdempotencyKey, Deadline], Recorded | None],
    deadline: Deadline,
) -> Outcome | None:
    """Return what the same request was answered before; None if it was not applied.

    ``recall`` asks the store that decides. Raises ``IdempotencyKeyReusedError``, and what
    ``recall`` does.
    """
    if idempotency is None:
        return None
    recorded = recall(idempotency.key, deadline)
    if recorded is None:
        return None
    return Outcome(idempotency.answer_of(recorded).answer, projected=False, replayed=True)


def _described(request: Request) -> list[Any]:
    """Return a request as JSON; requests that differ are described differently."""
    match request:
        case Save(key, FromSnapshot(sequence), precondition):
            return ["save", _names(key), {"from_snapshot": sequence}, _condition(precondition)]
        case Save(key, content, precondition):
            return ["save", _names(key), {"data": content}, _condition(precondition)]
        case Delete(key, precondition):
            return ["delete", _names(key), _condition(precondition)]
        case Check(key, version):
            return ["check", _names(key), version]


def _names(key: EntityKey) -> list[str]:
    return list(astuple(key))


def _condition(precondition: Precondition) -> int | bool | None:
    match precondition:
        case IfVersion(version):
            return version
        case IfAbsent():
            return True
        case None:
            return None
