"""The fan-out of one large change, against as many puts by boto3."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import psycopg

from bench.bulk import Bulk, Round
from bench.deployment import item
from bench.figures import BenchError
from duostore_server.domain.keys import EntityKey
from tests.support.wait import eventually

if TYPE_CHECKING:
    from bench.deployment import Deployment
    from tests.support.service import Service

_DOCUMENTS: Final = 5_000
_PUTS: Final = 2_000
# As the background process projects side by side.
_THREADS: Final = 2
_MOST_ROUNDS: Final = 3
_SECONDS: Final = 300.0

_SOURCES: Final = """
CREATE TABLE public.rate (id text PRIMARY KEY, percent integer NOT NULL);
CREATE TABLE public.item (id text COLLATE "C" PRIMARY KEY, rate text NOT NULL, price integer);
CREATE INDEX item_rate ON public.item (rate, id);
"""
_TABLES: Final = """
[kinds.price]
read_model = "price.sql"
depends_on = [{ table = "public.rate", fields = ["id"], ids = "ids_of_rate.sql" }]
"""
_SQL: Final = {
    "price.sql": """
        SELECT price, percent, price * percent / 100 AS total
        FROM public.item JOIN public.rate ON rate.id = item.rate
        WHERE item.id = :id
    """,
    "ids_of_rate.sql": "SELECT id FROM public.item WHERE rate = :id",
}


def fan_out(deployment: Deployment, rounds: int) -> list[Bulk]:
    """Measure a change that changes all documents that it touches, and one that changes none."""
    changed, unchanged = [], []
    with psycopg.connect(deployment.dsn, autocommit=True) as connection:
        connection.execute(_SOURCES)
        connection.execute(
            "INSERT INTO public.item SELECT format('i%%s', n), 'r', n"
            " FROM generate_series(1, %s) AS n",
            (_DOCUMENTS,),
        )
        connection.execute("INSERT INTO public.rate VALUES ('r', 100)")
        with deployment.another_service(workers=1, tables=_TABLES, sql=_SQL) as service:
            _worked_off(service)
            for n in range(min(rounds, _MOST_ROUNDS)):
                began = time.perf_counter()
                connection.execute("UPDATE public.rate SET percent = %s", (200 + n,))
                took = _worked_off(service)
                changed.append(Round(_DOCUMENTS / (took - began), puts(deployment)))
                began = time.perf_counter()
                connection.execute("UPDATE public.rate SET percent = percent")
                took = _worked_off(service)
                unchanged.append(Round(_DOCUMENTS / (took - began), changed[-1].per_second))
            ((held,),) = service.fetch(
                "SELECT count(*) FROM duostore.entity WHERE kind = 'price' AND version > 1"
            )
    if held != _DOCUMENTS:
        raise BenchError(f"{held} documents were recomputed, not {_DOCUMENTS}")
    condition = f"one UPDATE of a row that {_DOCUMENTS:,} small documents are computed from"
    return [
        Bulk(
            "fan-out",
            "documents",
            "boto3 put_item",
            f"{condition}; all change, and are in DynamoDB and out of the cache at the end;"
            f" {_THREADS} threads put",
            changed,
        ),
        Bulk(
            "fan-out-idle",
            "documents",
            "fan-out",
            f"{condition}; none changes",
            unchanged,
        ),
    ]


def _worked_off(service: Service) -> float:
    """Return when nothing is left to be done."""
    eventually(service.is_at_rest, within=_SECONDS, what="the change is worked off")
    return time.perf_counter()


def puts(deployment: Deployment) -> float:
    """Return how many such items boto3 puts in a second."""
    with deployment.plain_client(_THREADS) as client, ThreadPoolExecutor(_THREADS) as pool:

        def put(number: int) -> None:
            made = item(EntityKey("", "plain", f"i{number}"), number)
            client.put_item(TableName=deployment.table, Item=made)

        began = time.perf_counter()
        for _ in pool.map(put, range(_PUTS)):
            pass
        return _PUTS / (time.perf_counter() - began)
