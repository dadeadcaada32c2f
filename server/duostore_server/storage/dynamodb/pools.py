"""Threads that call DynamoDB, each pool of them with a queue of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from duostore_server.domain.errors import Store
from duostore_server.storage.dynamodb.coalescer import Coalescer

if TYPE_CHECKING:
    from contextlib import ExitStack

    from duostore_server.storage.dynamodb.coalescer import Send

K = TypeVar("K")
V = TypeVar("V")


def pool(
    stack: ExitStack, name: str, send: Send[K, V], *, batch: int, threads: int, waiting: int
) -> Coalescer[K, V]:
    """Run a pool until the stack is closed.

    Up to ``batch`` requests travel together; so many ``waiting`` may there be for a thread.
    """
    return stack.enter_context(
        Coalescer(
            name,
            send,
            store=Store.DYNAMODB,
            max_batch=batch,
            max_in_flight=threads,
            max_waiting=waiting,
        )
    )
