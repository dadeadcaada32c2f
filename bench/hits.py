"""A Get of a cached entity, against servers that answer as many bytes and do next to nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from bench.contest import Contest, Side
from bench.deployment import KIND, key_message, seeded_key
from bench.drivers import best_driver
from bench.echo import running_echo
from bench.figures import BenchError, Figures
from bench.machine import apart, cpu_seconds
from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from duostore_server.config import load
from duostore_server.domain.errors import Store
from tests.support.service import CALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from bench.deployment import Deployment
    from bench.echo import Echo
    from tests.support.service import Service

_REQUEST: Final = data_access_pb2.GetRequest(key=key_message(seeded_key(0)))
# Enough to keep the faster of two servers busy, and more than either has threads.
_MANY: Final = 64
_SERIALIZED: Final = _REQUEST.SerializeToString()


@contextmanager
def get_hit(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of capacity: more calls at a time than either server can answer."""
    with _contest(deployment, "get-hit", _MANY) as contest:
        yield contest


@contextmanager
def get_alone(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of latency: one call at a time."""
    with _contest(deployment, "get-alone", 1) as contest:
        yield contest


@contextmanager
def _contest(deployment: Deployment, name: str, at_a_time: int) -> Iterator[Contest]:
    service = deployment.service
    threads = load(service.config, {}, serving=True).server.threads
    (worker,) = service.workers()
    with service.channel() as channel, best_driver() as driver:
        stub = data_access_pb2_grpc.DataAccessStub(channel)

        def drive(server: psutil.Process, target: str, size: int, seconds: float) -> Figures:
            before = cpu_seconds(server)
            figures = driver.drive(target, _SERIALIZED, size, at_a_time=at_a_time, seconds=seconds)
            spent = cpu_seconds(server) - before
            return replace(figures, cpu=spent / (figures.per_second * seconds))

        def hits(seconds: float) -> Figures:
            size = _cache_anew(deployment, stub)
            before = _read_elsewhere(service)
            figures = drive(worker, service.target, size, seconds)
            if missed := _read_elsewhere(service) - before:
                raise BenchError(f"{missed:.0f} Gets did not hit the cache")
            return figures

        size = _cache_anew(deployment, stub)

        def echoes(server: Echo, seconds: float) -> Figures:
            return drive(server.process, server.target, size, seconds)

        with (
            running_echo(threads=threads, answer_bytes=size) as echo,
            running_echo(
                threads=threads, answer_bytes=size, memcached=deployment.memcached.address
            ) as reading_echo,
            apart([worker, echo.process, reading_echo.process]) as on_its_own,
        ):
            where = "on a core without callers" if on_its_own else "on any core"
            yield Contest(
                name,
                f"one cached entity, {size} bytes an answer; a server of {threads} threads"
                f" {where}; calls at a time: {at_a_time}, by {driver.name}",
                Side("Get", hits),
                [
                    Side("bare grpc.server", partial(echoes, echo)),
                    Side("grpc.server, one memcached get", partial(echoes, reading_echo)),
                ],
            )


def _cache_anew(deployment: Deployment, stub: data_access_pb2_grpc.DataAccessStub) -> int:
    """Let the entity be cached from now on, for its full time; return the size of an answer."""
    deployment.memcached.flush()
    for _ in range(2):
        answer = stub.Get(_REQUEST, timeout=CALL_SECONDS)
    if answer.receipt.served_from != entity_pb2.STORE_CACHE:
        raise BenchError("an entity that was just read is not cached")
    return answer.ByteSize()


def _read_elsewhere(service: Service) -> float:
    """Return how many Gets were answered by another store than the cache."""
    return sum(
        service.metric("duostore_reads_total", kind=KIND, served_from=store.value)
        for store in (Store.DYNAMODB, Store.AURORA)
    )
