"""Builds the service out of its parts; the order in which they wrap stands here alone."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import structlog

from duostore_server import codec
from duostore_server.access.checks import Checks
from duostore_server.access.flights import Flights
from duostore_server.access.propagation import Propagation
from duostore_server.access.reading import Reader, lease_pauses
from duostore_server.access.writing import Writer
from duostore_server.config import policies as policies_of
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store
from duostore_server.rpc.chain import CallChain
from duostore_server.rpc.data_access import DataAccess
from duostore_server.rpc.health import HealthMonitor
from duostore_server.rpc.server import SERVICES, Tls, listening
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.probe import open_probe as open_aurora_probe
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.memory import MemoryCache
from duostore_server.storage.cache.probes import MemcachedProbe, MemoryProbe
from duostore_server.storage.dynamodb.client import make_client
from duostore_server.storage.dynamodb.guarded import GuardedProjections
from duostore_server.storage.dynamodb.probe import open_probe as open_dynamodb_probe
from duostore_server.storage.dynamodb.projections import open_projections
from duostore_server.telemetry.observed_authority import ObservedAuthority
from duostore_server.telemetry.observed_cache import ObservedCache
from duostore_server.telemetry.observed_outbox import ObservedOutbox
from duostore_server.telemetry.observed_projections import ObservedProjections
from duostore_server.workers.completer import Completer
from duostore_server.workers.loop import Loop
from duostore_server.workers.projector import Projector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.config import Settings
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import Authority, Cache, Outbox, Probe, Projections
    from duostore_server.rpc.server import Listening
    from duostore_server.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_PROBE_EVERY_SECONDS: Final = 1.0
_COMPLETE_EVERY_SECONDS: Final = 0.05
_BACKLOG_EVERY_SECONDS: Final = 1.0
# One slow answer is not an outage; these many in a row, with none in between, are.
_DYNAMODB_TOLERANCE: Final = 3
_DYNAMODB_PAUSE_SECONDS: Final = (0.25, 0.5)
# Of the time that a claim lasts; the rest is for what was begun, and to complete it.
_BUDGET_SHARE: Final = 0.7
# Rows of one batch that are projected side by side.
_PROJECTIONS_AT_A_TIME: Final = 4
# TTLs and backoffs are shortened by up to a tenth, so that what began together does
# not end together.
_LEAST_JITTER: Final = 0.9


def _dynamodb_backoff() -> Backoff:
    return Backoff(
        lambda: random.uniform(*_DYNAMODB_PAUSE_SECONDS),  # noqa: S311 - as _jitter
        time.monotonic,
        tolerance=_DYNAMODB_TOLERANCE,
    )


def _jitter() -> float:
    return random.uniform(_LEAST_JITTER, 1.0)  # noqa: S311 - spreads load, guards nothing


@dataclass(frozen=True, slots=True)
class Stores:
    """The three stores of a deployment, ready to be used by one process."""

    authority: Authority
    outbox: Outbox
    projections: Projections
    cache: Cache
    probes: tuple[Probe, ...]


@contextmanager
def open_stores(settings: Settings, metrics: Metrics) -> Iterator[Stores]:
    """Open the stores; each port is wrapped once, by what measures it.

    Does not wait for a store that is down: what needs it fails until it is back.
    """
    dynamodb = settings.dynamodb

    def unreadable(key: EntityKey, version: int, why: str) -> None:
        metrics.unreadable_entry(Store.DYNAMODB)
        _log.error("projection cannot be read", kind=key.kind, version=version, why=why)

    with ExitStack() as stack:
        pool = stack.enter_context(aurora_pool(settings))
        aurora_probe = stack.enter_context(
            open_aurora_probe(
                dsn_of(settings),
                connect_timeout=settings.aurora.connect_timeout,
                pooler=settings.aurora.pooler,
            )
        )
        client = dynamodb_client(settings)
        stack.callback(client.close)
        projections = stack.enter_context(
            open_projections(
                client,
                prefix=dynamodb.table_prefix,
                unreadable=unreadable,
                compress_above=dynamodb.compress_above,
                timeout=dynamodb.read_timeout,
                reads_in_flight=dynamodb.read_in_flight,
                writes_in_flight=dynamodb.write_in_flight,
                statements=dynamodb.statements,
            )
        )
        cache, cache_probe = _open_cache(settings, metrics, stack)
        dynamodb_probe = stack.enter_context(
            open_dynamodb_probe(client, prefix=dynamodb.table_prefix, timeout=dynamodb.read_timeout)
        )
        yield Stores(
            authority=ObservedAuthority(AuroraAuthority(pool), metrics),
            outbox=ObservedOutbox(AuroraOutbox(pool, claim=settings.projector.claim), metrics),
            projections=ObservedProjections(
                GuardedProjections(projections, _dynamodb_backoff()), metrics
            ),
            cache=ObservedCache(cache, metrics),
            probes=(aurora_probe, dynamodb_probe, cache_probe),
        )


@contextmanager
def serving(settings: Settings, stores: Stores, metrics: Metrics) -> Iterator[Listening]:
    """Answer calls while the block runs; drain at its end, and note what was completed."""
    server = settings.server
    policies = policies_of(settings)
    checks = Checks(policies)
    completer = Completer(stores.outbox)
    reader = Reader(
        authority=stores.authority,
        projections=stores.projections,
        cache=stores.cache,
        policies=policies,
        checks=checks,
        flights=Flights(),
        encode=codec.encode,
        pauses=lease_pauses(settings.cache.lease_wait),
        pause=time.sleep,
        jitter=_jitter,
        now=lambda: datetime.now(UTC),
        served=metrics.served,
    )
    writer = Writer(
        authority=stores.authority,
        propagation=Propagation(stores.projections, stores.cache, codec.encode),
        completions=completer,
        policies=policies,
        checks=checks,
    )
    chain = CallChain(
        metrics, default_deadline=server.default_deadline, max_deadline=server.max_deadline
    )
    with ExitStack() as stack:
        stack.callback(completer.finish)
        stack.enter_context(
            _loop("completer", completer.run_once, _COMPLETE_EVERY_SECONDS, metrics)
        )
        answering = stack.enter_context(
            listening(
                address=str(server.address),
                threads=server.threads,
                max_concurrent_rpcs=server.max_concurrent_rpcs,
                max_message_bytes=server.max_message_bytes,
                max_connection_age=server.max_connection_age,
                connection_age_grace=server.connection_age_grace,
                drain_timeout=server.drain_timeout,
                tls=_tls(settings),
                reflect=server.reflection,
                chain=chain,
                data_access=DataAccess(
                    reader, writer, policies, max_answer_bytes=server.max_answer_bytes
                ),
            )
        )
        monitor = HealthMonitor(answering.health, stores.probes, SERVICES)
        stack.enter_context(_loop("health", monitor.run_once, _PROBE_EVERY_SECONDS, metrics))
        yield answering


@contextmanager
def background(settings: Settings, stores: Stores, metrics: Metrics) -> Iterator[None]:
    """Project what the requests did not, while the block runs."""
    with ExitStack() as stack:
        pool = stack.enter_context(
            ThreadPoolExecutor(_PROJECTIONS_AT_A_TIME, thread_name_prefix="project")
        )
        projector = Projector(
            outbox=stores.outbox,
            authority=stores.authority,
            propagation=Propagation(stores.projections, stores.cache, codec.encode),
            batch=settings.projector.batch,
            budget=settings.projector.claim * _BUDGET_SHARE,
            each=pool.map,
        )

        def show_backlog() -> bool:
            metrics.backlog(stores.outbox.backlog(Deadline.after(_BACKLOG_EVERY_SECONDS)))
            return False

        poll = settings.projector.poll
        stack.enter_context(_loop("projector", projector.run_once, poll, metrics))
        stack.enter_context(_loop("backlog", show_backlog, _BACKLOG_EVERY_SECONDS, metrics))
        yield


def _loop(name: str, work: Callable[[], bool], rest: float, metrics: Metrics) -> Loop:
    return Loop(name, work, rest=rest, jitter=_jitter, observer=metrics)


def dsn_of(settings: Settings) -> str:
    """Return how to reach the writer of Aurora. Secret: it may hold a password."""
    if settings.aurora.dsn is None:
        raise ValueError("aurora.dsn is not set")
    return settings.aurora.dsn.get_secret_value()


def aurora_pool(settings: Settings) -> AuroraPool:
    """Return the pool of connections to Aurora, still closed."""
    aurora = settings.aurora
    return AuroraPool(
        dsn_of(settings),
        min_size=aurora.pool_min,
        max_size=aurora.pool_max,
        wait=aurora.pool_wait,
        max_waiting=aurora.max_waiting,
        statement_timeout=aurora.statement_timeout,
        lock_timeout=aurora.lock_timeout,
        connect_timeout=aurora.connect_timeout,
        pooler=aurora.pooler,
    )


def dynamodb_client(settings: Settings) -> DynamoDBClient:
    """Return a client of DynamoDB; make it once in a process, before its threads."""
    dynamodb = settings.dynamodb
    return make_client(
        region=dynamodb.region or "local",
        endpoint_url=dynamodb.endpoint_url,
        connect_timeout=dynamodb.connect_timeout,
        read_timeout=dynamodb.read_timeout,
        max_pool_connections=dynamodb.read_in_flight + 2 * dynamodb.write_in_flight + 4,
    )


def _open_cache(settings: Settings, metrics: Metrics, stack: ExitStack) -> tuple[Cache, Probe]:
    cache = settings.cache
    if cache.backend == "memory":
        return MemoryCache(max_bytes=cache.memory_max_bytes), MemoryProbe()
    nodes = [str(node) for node in cache.nodes]
    memcached = MemcachedCache(
        nodes,
        namespace=cache.namespace,
        connect_timeout=cache.connect_timeout,
        timeout=cache.timeout,
        compress_above=cache.compress_above,
        most_idle=settings.server.threads,
        on_bypass=metrics.bypassed,
        on_unreadable=lambda: metrics.unreadable_entry(Store.CACHE),
    )
    stack.callback(memcached.close)
    return memcached, MemcachedProbe(nodes, timeout=2 * cache.timeout)


def _tls(settings: Settings) -> Tls | None:
    tls = settings.server.tls
    if tls.certificate is None or tls.key is None:
        return None
    return Tls(
        tls.certificate.read_bytes(),
        tls.key.read_bytes(),
        None if tls.client_ca is None else tls.client_ca.read_bytes(),
    )
