"""A backfill: how fast it is, and what it does to Gets beside it."""

from __future__ import annotations

import random
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import psycopg

from bench.bulk import Bulk, Round
from bench.callers import call_for
from bench.contest import Contest, Side
from bench.deployment import SEEDED, key_message, seeded_key
from bench.fan_out import puts
from bench.figures import BenchError
from duostore.v1 import admin_pb2_grpc, data_access_pb2, data_access_pb2_grpc
from duostore.v1.admin_pb2 import BackfillRequest, BackfillResponse
from tests.support.service import CALL_SECONDS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.deployment import Deployment
    from bench.figures import Figures
    from tests.support.service import Service

_ENTITIES: Final = 10_000
_MOST_ROUNDS: Final = 3
_GETTERS: Final = 4
_SECONDS: Final = 300.0
# More than is done in a second, so that the backfill outlasts the Gets beside it.
_MOST_PER_SECOND: Final = 6_000
_RATE: Final = 500

_KIND: Final = "filled"
_TABLES: Final = f"[admin]\nopen = true\n[kinds.{_KIND}]\n"
# Documents of about the size of those that are seeded.
_INSERT: Final = """
INSERT INTO duostore.entity (tenant, kind, id, version, data, deleted, create_time, update_time)
SELECT '', %s, %s || n, 1,
    jsonb_build_object(
        'title', 'Proposal ' || n, 'status', 'draft', 'amount', n, 'body',
        (SELECT string_agg(md5(n || '-' || part), '') FROM generate_series(1, 26) AS part)
    ),
    false, now(), now()
FROM generate_series(1, %s) AS n
"""


def backfill(deployment: Deployment, rounds: int) -> list[Bulk]:
    """Measure backfills of entities that DynamoDB has nothing of, and of such that it has."""
    missing, held = [], []
    with deployment.another_service(workers=1, tables=_TABLES) as service:
        for _ in range(min(rounds, _MOST_ROUNDS)):
            _fill(service, _ENTITIES)
            first = _per_second(service, projected=_ENTITIES)
            missing.append(Round(first, puts(deployment)))
            held.append(Round(_per_second(service, projected=0), first))
    condition = f"{_ENTITIES:,} entities of 1 KB, in the default four parts, two at a time"
    return [
        Bulk(
            "backfill",
            "entities",
            "boto3 put_item",
            f"{condition}; DynamoDB has none of them",
            missing,
        ),
        Bulk("backfill-idle", "entities", "backfill", f"{condition}; DynamoDB has them all", held),
    ]


@contextmanager
def get_beside(deployment: Deployment, rate: int = 0) -> Iterator[Contest]:
    """Yield the contest of Gets beside a backfill against the same without."""
    keys = [seeded_key(number) for number in range(SEEDED)]
    random.Random(6).shuffle(keys)  # noqa: S311 - spreads load, guards nothing
    requests = [data_access_pb2.GetRequest(key=key_message(key)) for key in keys]
    with (
        deployment.another_service(workers=1, tables=_TABLES) as service,
        service.channel() as channel,
    ):
        stub = data_access_pb2_grpc.DataAccessStub(channel)

        def get(request: data_access_pb2.GetRequest) -> None:
            stub.Get(request, timeout=CALL_SECONDS)

        def gets(seconds: float) -> Figures:
            deployment.memcached.flush()
            return call_for(seconds, _GETTERS, get, iter(requests))

        def beside(seconds: float) -> Figures:
            with _backfilling(service, rate, round(_MOST_PER_SECOND * (seconds + 1))):
                return gets(seconds)

        speed = f"of {rate} entities a second" if rate else "as fast as it goes"
        yield Contest(
            "get-beside-slow" if rate else "get-beside",
            f"Gets as in get-miss, {_GETTERS} threads, beside a backfill {speed}",
            Side("Get", beside),
            [Side("Get alone", gets)],
        )


@contextmanager
def get_beside_slow(deployment: Deployment) -> Iterator[Contest]:
    """Yield the same contest beside a backfill with a rate."""
    with get_beside(deployment, _RATE) as contest:
        yield contest


def _fill(service: Service, count: int) -> None:
    """Leave so many entities in Aurora that DynamoDB has never heard of."""
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM duostore.entity WHERE kind = %s", (_KIND,))
        connection.execute(_INSERT, (_KIND, secrets.token_hex(4), count))
        connection.execute("VACUUM ANALYZE duostore.entity")


def _per_second(service: Service, projected: int) -> float:
    """Return how many entities a backfill does in a second, once it has begun to."""
    with service.channel() as channel:
        stub = admin_pb2_grpc.AdminStub(channel)
        told = stub.Backfill(BackfillRequest(kind=_KIND), timeout=_SECONDS)
        looks = [(time.perf_counter(), look) for look in told]
    last = looks[-1][1]
    if (last.state, last.projected_count) != (BackfillResponse.STATE_DONE, projected):
        raise BenchError(f"{last.projected_count} entities were projected, not {projected}")
    began = next(((at, look.done_count) for at, look in looks if look.done_count), None)
    if began is None or began[1] == last.done_count:
        raise BenchError("the backfill was over before it could be measured")
    return (last.done_count - began[1]) / (looks[-1][0] - began[0])


@contextmanager
def _backfilling(service: Service, rate: int, count: int) -> Iterator[None]:
    """Have a backfill under way while the block runs."""
    _fill(service, count)
    with service.channel() as channel:
        stub = admin_pb2_grpc.AdminStub(channel)

        def ask(action: BackfillRequest.Action.ValueType) -> BackfillResponse:
            request = BackfillRequest(kind=_KIND, action=action, rate=rate)
            (answer,) = stub.Backfill(request, timeout=CALL_SECONDS)
            assert isinstance(answer, BackfillResponse)  # noqa: S101 - for mypy: no types of calls
            return answer

        ask(BackfillRequest.ACTION_START)
        before = eventually(
            lambda: ask(BackfillRequest.ACTION_SHOW).done_count,
            within=_SECONDS,
            what="the backfill is under way",
        )
        yield
        after = ask(BackfillRequest.ACTION_SHOW)
        if after.state != BackfillResponse.STATE_RUNNING or after.done_count == before:
            raise BenchError("the backfill did not go on beside the Gets")
        ask(BackfillRequest.ACTION_CANCEL)
