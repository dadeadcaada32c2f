"""Reads that take several calls: many entities, and all snapshots of one."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final

from duostore import messages
from duostore.errors import AnswerTooLargeError
from duostore.status import Call, Repeat, broken_contract

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duostore.connection import Connection
    from duostore.v1 import data_access_pb2
    from duostore.values import Entity, Key, Snapshot

MAX_BATCH_KEYS: Final = 500


def found_in_batches(
    connection: Connection, keys: Sequence[Key], seconds: float
) -> dict[Key, Entity]:
    """Return the entities of these keys that exist, in their order; keys differ.

    Asks for 500 at a time, and for fewer once an answer is too large, all in so many seconds.
    """
    deadline = time.monotonic() + seconds
    found: dict[Key, Entity] = {}
    start, step = 0, MAX_BATCH_KEYS
    while chunk := keys[start : start + step]:
        call = reading(f"batch_get(keys[{start}:{start + len(chunk)}])")
        try:
            found.update(_batch(connection, chunk, call, deadline - time.monotonic()))
        except AnswerTooLargeError as error:
            if len(chunk) == 1:
                raise
            step = _fewer(len(chunk), error)
        else:
            start += len(chunk)
    return found


def snapshots_by_pages(
    connection: Connection,
    text: str,
    key: Key,
    request: data_access_pb2.ListSnapshotsRequest,
    seconds: float,
) -> Iterator[Snapshot]:
    """Yield the snapshots of a key, from the page that is asked for on; each page in its time."""
    while True:
        call = reading(text)
        response = connection.call(lambda stub: stub.ListSnapshots, request, call, seconds)
        page = [messages.snapshot_of(message) for message in response.snapshots]
        if any(snapshot.key != key for snapshot in page):
            raise broken_contract(call, "it answered with snapshots of another entity")
        yield from page
        if not response.next_page_token:
            return
        if response.next_page_token == request.page_token:
            raise broken_contract(call, "its next page is the same again")
        request.page_token = response.next_page_token


def reading(text: str) -> Call:
    """Return a call that changes nothing."""
    return Call(text, uuid.uuid4().hex, Repeat.READS)


def _batch(
    connection: Connection, keys: Sequence[Key], call: Call, seconds: float
) -> dict[Key, Entity]:
    request = messages.batch_get_request(keys)
    response = connection.call(lambda stub: stub.BatchGet, request, call, seconds)
    entities = {
        entity.key: entity
        for entity in (
            messages.entity_of(message, response.receipt) for message in response.entities
        )
    }
    missing = {messages.key_of(message) for message in response.missing}
    # Absent is only what the server says to be absent.
    if len(entities) + len(missing) != len(keys) or entities.keys() | missing != set(keys):
        raise broken_contract(call, "not every key is answered, or others are")
    return {key: entities[key] for key in keys if key in entities}


def _fewer(count: int, error: AnswerTooLargeError) -> int:
    """Return how many keys to ask for instead of ``count``: less than that, at least 1.

    As many as fit if all entities are of one size, and at most half, so that it ends soon.
    """
    fitting = count * error.limit // max(error.size, 1)
    return max(1, min(fitting, count // 2))
