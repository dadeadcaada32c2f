"""Builds the service out of its parts; the order in which they wrap stands here alone."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog

from duostore_server import codec
from duostore_server.access.limits import LimitsInForce
from duostore_server.access.propagation import Propagation
from duostore_server.config import policies as policies_of
from duostore_server.config import quotas as quotas_of
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store, StoreError
from duostore_server.rpc.chain import CallChain
from duostore_server.rpc.health import HealthMonitor
from duostore_server.rpc.server import SERVICES, Tls, listening
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.drafts import AuroraDrafts
from duostore_server.storage.aurora.idempotency import AuroraIdempotency
from duostore_server.storage.aurora.limits import AuroraLimits
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.probe import open_probe as open_aurora_probe
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.memory import MemoryCache
from duostore_server.storage.cache.probes import MemcachedProbe, MemoryProbe
from duostore_server.storage.dynamodb.client import make_client
from duostore_server.storage.dynamodb.guarded import Guard, GuardedProjections
from duostore_server.storage.dynamodb.guarded_counters import GuardedCounters
from duostore_server.storage.dynamodb.guarded_heads import GuardedHeads
from duostore_server.storage.dynamodb.guarded_records import GuardedRecords
from duostore_server.storage.dynamodb.guarded_snapshots import GuardedSnapshots
from duostore_server.storage.dynamodb.ports import connections, open_ports
from duostore_server.telemetry.causes import cause_of
from duostore_server.telemetry.observed_authority import ObservedAuthority
from duostore_server.telemetry.observed_cache import ObservedCache
from duostore_server.telemetry.observed_counters import ObservedCounters
from duostore_server.telemetry.observed_dirty import ObservedDirtyHeads
from duostore_server.telemetry.observed_drafts import ObservedDrafts
from duostore_server.telemetry.observed_heads import ObservedHeads
from duostore_server.telemetry.observed_idempotency_rows import ObservedIdempotencyRows
from duostore_server.telemetry.observed_limits import ObservedLimits
from duostore_server.telemetry.observed_outbox import ObservedOutbox
from duostore_server.telemetry.observed_projections import ObservedProjections
from duostore_server.telemetry.observed_records import ObservedRecords
from duostore_server.telemetry.observed_snapshots import ObservedSnapshots
from duostore_server.use_cases import Quoting, data_access, jitter, utc_now
from duostore_server.workers.consolidator import Consolidator
from duostore_server.workers.deferred import Deferred
from duostore_server.workers.loop import LONGEST_BACKOFF_SECONDS, Loop
from duostore_server.workers.projector import Projector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.config import Settings
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.ports import (
        Authority,
        Cache,
        Counters,
        DirtyHeads,
        Drafts,
        Heads,
        IdempotencyRecords,
        IdempotencyRows,
        Limits,
        Outbox,
        Probe,
        Projections,
        Snapshots,
    )
    from duostore_server.rpc.server import Listening
    from duostore_server.storage.dynamodb.ports import DynamoDBPorts
    from duostore_server.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_PROBE_EVERY_SECONDS: Final = 1.0
_DEFERRED_EVERY_SECONDS: Final = 0.05
_COMPLETIONS_AT_A_TIME: Final = 500
_ANSWERS_AT_A_TIME: Final = 100
# A history put begins within the head's timeout, and lasts for its own two attempts.
_LEAST_SETTLED: Final = 5.0
# It reads whole documents before it finds that Aurora is down, and nobody waits for it.
_CONSOLIDATOR_BACKOFF_SECONDS: Final = 10.0
_PURGE_EVERY_SECONDS: Final = 10.0
_PURGE_SECONDS: Final = 2.0
_PURGED_AT_A_TIME: Final = 1000
_BACKLOG_EVERY_SECONDS: Final = 1.0
_LIMITS_EVERY_SECONDS: Final = 1.0
# One slow answer is not an outage; these many in a row, with none in between, are.
_DYNAMODB_TOLERANCE: Final = 3
_DYNAMODB_PAUSE_SECONDS: Final = (0.25, 0.5)
# Of the time that a claim lasts; the rest is for what was begun, and to complete it.
_BUDGET_SHARE: Final = 0.7
# Of one batch, what is brought side by side.
_PROJECTIONS_AT_A_TIME: Final = 4
_HEADS_AT_A_TIME: Final = 4


def _dynamodb_backoff() -> Backoff:
    return Backoff(
        lambda: random.uniform(*_DYNAMODB_PAUSE_SECONDS),  # noqa: S311 - spreads load, guards nothing
        time.monotonic,
        tolerance=_DYNAMODB_TOLERANCE,
    )


@dataclass(frozen=True, slots=True)
class Stores:
    """The three stores of a deployment, ready to be used by one process."""

    authority: Authority
    outbox: Outbox
    rows: IdempotencyRows
    drafts: Drafts
    limits: Limits
    projections: Projections
    heads: Heads
    snapshots: Snapshots
    dirty_heads: DirtyHeads
    records: IdempotencyRecords
    counters: Counters
    cache: Cache
    probes: tuple[Probe, ...]


@contextmanager
def open_stores(settings: Settings, metrics: Metrics) -> Iterator[Stores]:
    """Open the stores; each port is wrapped once, by what measures it.

    Does not wait for a store that is down: what needs it fails until it is back.
    """
    with ExitStack() as stack:
        pool = stack.enter_context(aurora_pool(settings))
        aurora_probe = stack.enter_context(
            open_aurora_probe(
                dsn_of(settings),
                connect_timeout=settings.aurora.connect_timeout,
                pooler=settings.aurora.pooler,
            )
        )
        dynamodb = stack.enter_context(_dynamodb(settings, metrics))
        cache, cache_probe = _open_cache(settings, metrics, stack)
        # What one port finds out of DynamoDB holds for the others.
        guard = Guard(_dynamodb_backoff())
        yield Stores(
            authority=ObservedAuthority(AuroraAuthority(pool), metrics),
            outbox=ObservedOutbox(AuroraOutbox(pool, claim=settings.projector.claim), metrics),
            rows=ObservedIdempotencyRows(AuroraIdempotency(pool), metrics),
            drafts=ObservedDrafts(AuroraDrafts(pool), metrics),
            limits=ObservedLimits(AuroraLimits(pool), metrics),
            projections=ObservedProjections(
                GuardedProjections(dynamodb.projections, guard), metrics
            ),
            heads=ObservedHeads(GuardedHeads(dynamodb.heads, guard), metrics),
            snapshots=ObservedSnapshots(GuardedSnapshots(dynamodb.snapshots, guard), metrics),
            records=ObservedRecords(GuardedRecords(dynamodb.records, guard), metrics),
            counters=ObservedCounters(GuardedCounters(dynamodb.counters, guard), metrics),
            # Not guarded: nobody waits for it.
            dirty_heads=ObservedDirtyHeads(dynamodb.dirty_heads, metrics),
            cache=ObservedCache(cache, metrics),
            probes=(aurora_probe, dynamodb.probe, cache_probe),
        )


@contextmanager
def serving(settings: Settings, stores: Stores, metrics: Metrics) -> Iterator[Listening]:
    """Answer calls while the block runs; drain at its end, and note what was completed."""
    server = settings.server
    completer = Deferred(stores.outbox.complete, batch=_COMPLETIONS_AT_A_TIME)
    recorder = Deferred(stores.records.put, batch=_ANSWERS_AT_A_TIME)
    limits = LimitsInForce(quotas_of(settings), stores.limits)
    quoting = Quoting(settings, stores, metrics, limits)
    chain = CallChain(
        metrics, default_deadline=server.default_deadline, max_deadline=server.max_deadline
    )
    with ExitStack() as stack:
        for name, work in (("completer", completer), ("recorder", recorder)):
            stack.callback(work.finish)
            stack.enter_context(_loop(name, work.run_once, _DEFERRED_EVERY_SECONDS, metrics))
        if settings.quotas:
            _refresh_once(limits)
            stack.enter_context(_loop("limits", limits.refresh, _LIMITS_EVERY_SECONDS, metrics))
            # Once nobody is answered any more, and before the stores are closed.
            stack.callback(quoting.return_leases)
            rest = quoting.rest
            stack.enter_context(_loop("leases", quoting.return_unused, rest, metrics, longest=rest))
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
                data_access=data_access(
                    settings, stores, metrics, quoting, completions=completer, answers=recorder
                ),
            )
        )
        monitor = HealthMonitor(answering.health, stores.probes, SERVICES)
        stack.enter_context(_loop("health", monitor.run_once, _PROBE_EVERY_SECONDS, metrics))
        yield answering


@contextmanager
def background(settings: Settings, stores: Stores, metrics: Metrics) -> Iterator[None]:
    """Project what the requests did not and consolidate what they left, while the block runs."""
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

        folding = stack.enter_context(
            ThreadPoolExecutor(_HEADS_AT_A_TIME, thread_name_prefix="consolidate")
        )
        consolidator = Consolidator(
            heads=stores.dirty_heads,
            drafts=stores.drafts,
            data_of=codec.document_of,
            policies=policies_of(settings),
            now=utc_now,
            batch=settings.consolidator.batch,
            settled=timedelta(seconds=max(_LEAST_SETTLED, 4 * settings.dynamodb.read_timeout)),
            consolidated=metrics.consolidated,
            each=folding.map,
        )

        def purge() -> bool:
            deadline = Deadline.after(_PURGE_SECONDS)
            return stores.rows.purge(_PURGED_AT_A_TIME, deadline) == _PURGED_AT_A_TIME

        stack.enter_context(_loop("purge", purge, _PURGE_EVERY_SECONDS, metrics))
        rest = settings.consolidator.poll
        longest = _CONSOLIDATOR_BACKOFF_SECONDS
        stack.enter_context(
            _loop("consolidator", consolidator.run_once, rest, metrics, longest=longest)
        )
        poll = settings.projector.poll
        stack.enter_context(_loop("projector", projector.run_once, poll, metrics))
        stack.enter_context(_loop("backlog", show_backlog, _BACKLOG_EVERY_SECONDS, metrics))
        yield


def _refresh_once(limits: LimitsInForce) -> None:
    """Know the limits that are set at run time before the first call, if Aurora is there."""
    try:
        limits.refresh()
    except StoreError as error:
        _log.warning("limits not read, aurora cannot be reached", cause=cause_of(error))


def _loop(
    name: str,
    work: Callable[[], bool],
    rest: float,
    metrics: Metrics,
    *,
    longest: float = LONGEST_BACKOFF_SECONDS,
) -> Loop:
    return Loop(name, work, rest=rest, jitter=jitter, observer=metrics, longest=longest)


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
        max_pool_connections=connections(dynamodb.read_in_flight, dynamodb.write_in_flight),
    )


@contextmanager
def _dynamodb(settings: Settings, metrics: Metrics) -> Iterator[DynamoDBPorts]:
    dynamodb = settings.dynamodb

    def unreadable(key: EntityKey, version: int, why: str) -> None:
        metrics.unreadable_entry(Store.DYNAMODB)
        _log.error("item cannot be read", kind=key.kind, version=version, why=why)

    def unreadable_record(why: str) -> None:
        metrics.unreadable_entry(Store.DYNAMODB)
        _log.error("idempotency record cannot be read", why=why)

    def unreadable_counter(why: str) -> None:
        metrics.unreadable_entry(Store.DYNAMODB)
        _log.error("counter cannot be read", why=why)

    with (
        closing(dynamodb_client(settings)) as client,
        open_ports(
            client,
            prefix=dynamodb.table_prefix,
            unreadable=unreadable,
            unreadable_record=unreadable_record,
            unreadable_counter=unreadable_counter,
            compress_above=dynamodb.compress_above,
            timeout=dynamodb.read_timeout,
            reads_in_flight=dynamodb.read_in_flight,
            writes_in_flight=dynamodb.write_in_flight,
            statements=dynamodb.statements,
        ) as ports,
    ):
        yield ports


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
