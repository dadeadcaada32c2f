"""A Snapshot, against the requests to DynamoDB that it cannot do without, and against a Save."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import psycopg

from bench.callers import measured, of_this_process
from bench.contest import Contest, Side
from bench.deployment import KIND, document
from bench.figures import BenchError, Figures
from bench.machine import cpu_seconds
from duostore_server import bootstrap, codec
from duostore_server.config import load
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import NewSnapshot
from duostore_server.domain.transactions import Idempotency, IdempotencyKey
from duostore_server.storage.dynamodb.snapshots import open_snapshots
from duostore_server.storage.dynamodb.tables import idempotency_table, snapshot_table
from tests.support.service import CALL_SECONDS, Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psutil
    from types_boto3_dynamodb import DynamoDBClient

    from bench.deployment import Deployment

    Call = Callable[[int], object]
    Run = Callable[[float], Figures]

_CALLERS: Final = 8
# Enough that callers do not meet at one.
_DRAFTS: Final = 50
_CONSOLIDATE_AFTER: Final = timedelta(seconds=30)
_KEEP: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Form:
    """How snapshots are appended."""

    name: str
    condition: str
    in_history: bool = True
    keyed: bool = False


_APPEND: Final = Form("append", "kept in the history")
_APPEND_HEAD: Final = Form("append-head", "with no history", in_history=False)
_APPEND_ONCE: Final = Form(
    "append-once", "kept in the history, an idempotency key each", keyed=True
)


@contextmanager
def append(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of a snapshot that is kept, with no service around it."""
    with _contest(deployment, _APPEND, "boto3 update_item, put_item", _update_and_put) as contest:
        yield contest


@contextmanager
def append_head(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of a snapshot that the next one replaces."""
    with _contest(deployment, _APPEND_HEAD, "boto3 update_item", _update) as contest:
        yield contest


@contextmanager
def append_once(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of a snapshot with an idempotency key."""
    floor = "boto3 transact_write_items"
    with _contest(deployment, _APPEND_ONCE, floor, _transact) as contest:
        yield contest


@contextmanager
def snapshot(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of the RPCs: what an autosave costs as a Snapshot, and as a Save."""
    (worker,) = deployment.service.workers()
    run, data = secrets.token_hex(4), document(0)
    with deployment.service.channel() as channel:
        caller = Caller(channel, kind=KIND)

        def by(call: Callable[[str, dict[str, Any]], object]) -> Run:
            numbers = count()
            return partial(
                _of_server,
                worker,
                deployment.dsn,
                lambda number: call(f"{run}-{number % _DRAFTS}", data),
                numbers,
            )

        yield Contest(
            "snapshot",
            f"1 KB for one of {_DRAFTS} entities; PostgreSQL with fsync; {_CALLERS} threads of one"
            " process call; the CPU is that of the server, its background work apart; the log is"
            " PostgreSQL's, background work included",
            Side("Snapshot", by(caller.snapshot)),
            [Side("Save", by(caller.save))],
        )


@contextmanager
def _contest(
    deployment: Deployment,
    form: Form,
    floor: str,
    plain: Callable[[DynamoDBClient, str, _Item], Call],
) -> Iterator[Contest]:
    settings = load(deployment.service.config, {}, serving=True)
    made = _Item(secrets.token_hex(4))

    def unreadable(key: EntityKey, version: int, why: str) -> None:
        raise BenchError(f"{key} at sequence {version}: {why}")

    with ExitStack() as stack:
        client = bootstrap.dynamodb_client(settings)
        stack.callback(client.close)
        snapshots = stack.enter_context(
            open_snapshots(
                client, prefix=deployment.prefix, unreadable=unreadable, timeout=CALL_SECONDS
            )
        )
        bare = stack.enter_context(deployment.plain_client(_CALLERS))

        def call(number: int) -> None:
            snapshots.append(made.snapshot(number, form), Deadline.after(CALL_SECONDS))

        # A first snapshot finds out that it is the first: with an idempotency key that is a
        # request more.
        for number in range(_DRAFTS):
            call(-1 - number)
        yield Contest(
            form.name,
            f"a snapshot of 1 KB of one of {_DRAFTS} entities, {form.condition}; {_CALLERS} threads"
            " of one process call; the CPU is that of this process",
            Side("Snapshots.append", partial(of_this_process, client, _CALLERS, call, count())),
            [
                Side(
                    floor,
                    partial(
                        of_this_process,
                        bare,
                        _CALLERS,
                        plain(bare, deployment.prefix, made),
                        count(),
                    ),
                )
            ],
        )


def _of_server(
    server: psutil.Process, dsn: str, call: Call, numbers: Iterator[int], seconds: float
) -> Figures:
    """Call, and tell what that took of the server's process and of PostgreSQL's log."""
    began, logged = cpu_seconds(server), _wal(dsn)
    latencies, elapsed = measured(seconds, _CALLERS, call, numbers)
    spent, written = cpu_seconds(server) - began, _wal(dsn) - logged
    calls = len(latencies)
    return replace(Figures.of(latencies, elapsed), cpu=spent / calls, wal=written / calls)


def _wal(dsn: str) -> float:
    """Return how much PostgreSQL has written to its log, in bytes."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        [(written,)] = connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"
        ).fetchall()
    return float(written)


class _Item:
    """What both sides store: the same bytes, under keys of their own."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._document = document(0)
        self.payload = codec.encode_snapshot(
            EntityKey("", KIND, run), self._document, datetime.now(UTC)
        )

    def snapshot(self, number: int, form: Form) -> NewSnapshot:
        """Return what Duostore is asked to append."""
        text = f"{self._run}-{form.name}-{number}"
        hashed = hashlib.sha256(text.encode()).digest()
        key = IdempotencyKey("", text)
        return NewSnapshot(
            key=EntityKey("", KIND, f"{self._run}-{number % _DRAFTS}"),
            payload=self.payload,
            time=datetime.now(UTC),
            in_history=form.in_history,
            consolidate_after=_CONSOLIDATE_AFTER,
            idempotency=Idempotency(key, hashed, _KEEP) if form.keyed else None,
        )

    def plain_key(self, number: int, sk: str = "HEAD") -> Any:  # noqa: ANN401 - a Key of boto3
        """Return the key that the floor writes to."""
        return {"pk": {"S": f"{self._run}-plain-{number % _DRAFTS}"}, "sk": {"S": sk}}

    def plain_record(self, number: int) -> Any:  # noqa: ANN401 - an Item of boto3
        """Return what the floor remembers a request by."""
        return {"pk": {"S": f"{self._run}-plain-{number}"}, "answer": {"N": str(number)}}


def _update(client: DynamoDBClient, prefix: str, made: _Item) -> Call:
    def call(number: int) -> str:
        answer = client.update_item(
            TableName=snapshot_table(prefix),
            Key=made.plain_key(number),
            UpdateExpression="SET payload = :payload ADD revision :one",
            ExpressionAttributeValues={":payload": {"B": made.payload}, ":one": {"N": "1"}},
            ReturnValues="UPDATED_NEW",
        )
        return answer["Attributes"]["revision"]["N"]

    return call


def _update_and_put(client: DynamoDBClient, prefix: str, made: _Item) -> Call:
    update = _update(client, prefix, made)

    def call(number: int) -> None:
        sequence = str(update(number))
        item = {**made.plain_key(number, sequence), "payload": {"B": made.payload}}
        client.put_item(TableName=snapshot_table(prefix), Item=item)

    return call


def _transact(client: DynamoDBClient, prefix: str, made: _Item) -> Call:
    table, records = snapshot_table(prefix), idempotency_table(prefix)

    def call(number: int) -> None:
        payload = {"payload": {"B": made.payload}}
        client.transact_write_items(
            TransactItems=[
                {"Put": {"TableName": table, "Item": {**made.plain_key(number), **payload}}},
                {
                    "Put": {
                        "TableName": table,
                        "Item": {**made.plain_key(number, str(number)), **payload},
                    }
                },
                {"Put": {"TableName": records, "Item": made.plain_record(number)}},
            ]
        )

    return call
