"""What goes wrong between a service and DynamoDB, for a gate between the two."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

_OPERATION = re.compile(rb"\r\nx-amz-target: *DynamoDB_\d+\.(\w+)\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
# The body of one, which botocore sends apart from its head.
_TRANSACTION = b'{"TransactItems": '
_WRITES = frozenset(
    {
        "BatchExecuteStatement",
        "BatchWriteItem",
        "DeleteItem",
        "PutItem",
        "TransactWriteItems",
        "UpdateItem",
    }
)


class Trouble:
    """Counts requests, loses answers to writes and throttles them, at random and by shares.

    ``sent`` counts what is sent to DynamoDB, by operation; ``throttled`` are writes of these
    that were refused for want of capacity. Both shares are 0 until they are set.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.lost_share = 0.0
        self.throttled_share = 0.0
        self.sent: Counter[str] = Counter()
        self.throttled = 0

    @property
    def writes(self) -> int:
        """Return how many writes were sent."""
        return sum(count for operation, count in self.sent.items() if operation in _WRITES)

    def loses(self, asked: bytes, _answered: bytes) -> bool:
        """Return whether the answer to a request is lost: ``loses`` of a gate."""
        return _ends_write(asked) and self._chance.random() < self.lost_share

    def answers(self, asked: bytes) -> bytes:
        """Return a refusal, or nothing to let a request pass: ``answers`` of a gate."""
        if operation := _operation(asked):
            self.sent[operation] += 1
        if _ends_write(asked) and self._chance.random() < self.throttled_share:
            self.throttled += 1
            return _throttled()
        return b""


def _operation(asked: bytes) -> str:
    """Return what a request asks for; empty if these bytes are not the beginning of one."""
    found = _OPERATION.search(asked) if asked.startswith(b"POST ") else None
    return found[1].decode() if found else ""


def _ends_write(asked: bytes) -> bool:
    """Return whether a write ends with these bytes: all of it, or a transaction's body."""
    if asked.startswith(_TRANSACTION):
        return True
    head, blank, body = asked.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + blank)
    return _operation(asked) in _WRITES and length is not None and int(length[1]) == len(body)


def _throttled() -> bytes:
    code = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"
    body = json.dumps({"__type": code, "message": "as the test wants"}).encode()
    head = (
        "HTTP/1.1 400 Bad Request\r\n"
        "Content-Type: application/x-amz-json-1.0\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
