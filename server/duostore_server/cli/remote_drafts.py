"""`duostore snapshot`, `get-snapshot`, `snapshots` and `publish`: the life of a draft."""

from __future__ import annotations

import json
import shutil
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import typer

from duostore.v1 import data_access_pb2
from duostore_server.cli.answers import document_shown, key_shown, snapshot_shown
from duostore_server.cli.json_document import DocumentError, parse_document
from duostore_server.cli.one_call import (
    complain,
    if_in_doubt,
    key_message,
    made_if_none,
    print_json,
    refused,
    run,
)
from duostore_server.cli.remote import send_save
from duostore_server.domain.documents import compact_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore.v1 import entity_pb2
    from duostore.v1.data_access_pb2_grpc import DataAccessStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target
    from duostore_server.domain.keys import EntityKey

# What the service gives at a time, at most.
_MAX_PAGE: Final = 100
_HARMLESS: Final = "repeat the command; to be stored twice does no harm."
# Of a table that is not written to a terminal.
_COLUMNS: Final = 120
_LEAST_DATA_COLUMNS: Final = 20


def snapshot(
    target: Target, key: EntityKey, document: bytes, *, idempotency_key: str, timeout: float
) -> int:
    """Append a snapshot, given as JSON, and print its sequence; return the exit code."""
    try:
        data = parse_document(document)
    except DocumentError as error:
        return refused("the document", error.violations)
    request = data_access_pb2.SnapshotRequest(key=key_message(key), idempotency_key=idempotency_key)
    request.data.SetInParent()
    request.data.update(data)

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        answer = stub.Snapshot(request, timeout=timeout, metadata=metadata)
        print_json(
            {
                "key": key_shown(request.key),
                "sequence": answer.sequence,
                "snapshot_time": answer.snapshot_time.ToJsonString(),
                "replayed": answer.replayed,
            }
        )

    in_doubt = if_in_doubt(idempotency_key) if idempotency_key else _HARMLESS
    return run(target, work, in_doubt=in_doubt)


def get_snapshot(target: Target, key: EntityKey, *, sequence: int, timeout: float) -> int:
    """Print a snapshot as JSON, the newest if ``sequence`` is 0; return the exit code."""
    request = data_access_pb2.GetSnapshotRequest(key=key_message(key), sequence=sequence)

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        answer = stub.GetSnapshot(request, timeout=timeout, metadata=metadata)
        print_json(snapshot_shown(answer.snapshot))

    return run(target, work)


def snapshots(target: Target, key: EntityKey, *, limit: int, as_json: bool, timeout: float) -> int:
    """Print up to ``limit`` snapshots, newest first, a line each; return the exit code.

    ``timeout`` bounds each page that is asked for.
    """

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        # One more than is printed tells whether there are more.
        found = _listed(stub, key, min(limit + 1, _MAX_PAGE), timeout, metadata)
        shown = islice(found, limit)
        for line in map(_json_line, shown) if as_json else _table(shown):
            typer.echo(line.encode())
        if next(found, None) is not None:
            complain(f"There are older ones: --limit {limit * 10} shows more.")

    return run(target, work)


def publish(
    target: Target,
    key: EntityKey,
    *,
    sequence: int,
    if_version: int | None,
    if_absent: bool,
    idempotency_key: str,
    timeout: float,
) -> int:
    """Save what a snapshot holds, and print what became of it; return the exit code."""
    request = data_access_pb2.SaveRequest(
        key=key_message(key),
        from_snapshot=sequence,
        idempotency_key=made_if_none(idempotency_key),
    )
    return send_save(target, request, if_version=if_version, if_absent=if_absent, timeout=timeout)


def _listed(
    stub: DataAccessStub, key: EntityKey, page_size: int, timeout: float, metadata: Metadata
) -> Iterator[entity_pb2.EntitySnapshot]:
    request = data_access_pb2.ListSnapshotsRequest(key=key_message(key), page_size=page_size)
    while True:
        page = stub.ListSnapshots(request, timeout=timeout, metadata=metadata)
        yield from page.snapshots
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _json_line(found: entity_pb2.EntitySnapshot) -> str:
    return json.dumps(snapshot_shown(found), ensure_ascii=False, allow_nan=False)


def _table(found: Iterator[entity_pb2.EntitySnapshot]) -> Iterator[str]:
    newest = next(found, None)
    if newest is None:
        complain("There are no snapshots of it, or they have expired.")
        return
    # The newest has the largest sequence.
    width = max(len("SEQUENCE"), len(str(newest.sequence)))
    time_width = len(_time(newest))
    columns = shutil.get_terminal_size((_COLUMNS, 0)).columns
    room = max(_LEAST_DATA_COLUMNS, columns - width - time_width - 4)
    yield f"{'SEQUENCE':>{width}}  {'TIME':{time_width}}  DATA"
    for each in chain([newest], found):
        yield f"{each.sequence:>{width}}  {_time(each)}  {_preview(each, room)}"


def _time(found: entity_pb2.EntitySnapshot) -> str:
    return found.snapshot_time.ToDatetime().isoformat(timespec="milliseconds") + "Z"


def _preview(found: entity_pb2.EntitySnapshot, room: int) -> str:
    text = compact_json(document_shown(found.data))
    text = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in text[: room + 1]
    )
    return text if len(text) <= room else text[: room - 1] + "…"
