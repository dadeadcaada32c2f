"""A Save, against the one statement and the one put that it cannot do without."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, contextmanager
from itertools import count
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

import psycopg

from bench.callers import call_for
from bench.contest import Contest, Side
from bench.deployment import KIND, document, item
from bench.figures import BenchError
from duostore.v1 import entity_pb2
from duostore_server.domain.documents import compact_json
from duostore_server.domain.keys import EntityKey
from tests.support.service import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from psycopg.rows import TupleRow

    from bench.deployment import Deployment
    from bench.figures import Figures

    Call = Callable[[int], object]

_CALLERS: Final = 8
_TABLE: Final = "CREATE TABLE bench_document (id text PRIMARY KEY, data jsonb NOT NULL)"
_INSERT: Final = "INSERT INTO bench_document (id, data) VALUES (%s, %s::jsonb)"


@contextmanager
def save(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest; every call makes an entity that was not there."""
    with (
        _saves(deployment) as by_save,
        _inserts(deployment) as by_insert,
        _puts(deployment) as by_put,
    ):
        yield Contest(
            "save",
            f"new entities of 1 KB; PostgreSQL with fsync; {_CALLERS} threads of one process call",
            Side("Save", _each_new(by_save)),
            [Side("INSERT", _each_new(by_insert)), Side("boto3 put_item", _each_new(by_put))],
        )


def _each_new(call: Call) -> Callable[[float], Figures]:
    numbers = count()
    return lambda seconds: call_for(seconds, _CALLERS, call, numbers)


@contextmanager
def _saves(deployment: Deployment) -> Iterator[Call]:
    run, data = secrets.token_hex(4), document(0)
    with deployment.service.channel() as channel:
        caller = Caller(channel, kind=KIND)

        def call(number: int) -> None:
            answer = caller.save(f"{run}-{number}", data)
            if answer.projection != entity_pb2.PROJECTION_DONE:
                raise BenchError("a Save was not projected")

        yield call


@contextmanager
def _inserts(deployment: Deployment) -> Iterator[Call]:
    run, data = secrets.token_hex(4), compact_json(document(0))
    with ExitStack() as stack:
        idle: SimpleQueue[psycopg.Connection[TupleRow]] = SimpleQueue()
        for _ in range(_CALLERS):
            connection = psycopg.connect(deployment.dsn, autocommit=True)
            idle.put(stack.enter_context(connection))
        connection.execute(_TABLE)

        def call(number: int) -> None:
            connection = idle.get()
            connection.execute(_INSERT, (f"{run}-{number}", data))
            idle.put(connection)

        yield call


@contextmanager
def _puts(deployment: Deployment) -> Iterator[Call]:
    made = item(EntityKey("", KIND, secrets.token_hex(4)), 0)
    name = made["pk"]["S"]
    with deployment.plain_client(_CALLERS) as client:

        def call(number: int) -> None:
            client.put_item(
                TableName=deployment.table, Item={**made, "pk": {"S": f"{name}-{number}"}}
            )

        yield call
