"""Builds the service out of its parts; the order in which they wrap stands here alone."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from duostore_server.access.limits import LimitsInForce
from duostore_server.admin_use_cases import admin_of, permission_of
from duostore_server.background_work import loop
from duostore_server.config import quotas as quotas_of
from duostore_server.config import read_models as read_models_of
from duostore_server.domain.errors import DeadlineExceededError, Store, StoreError
from duostore_server.in_force import CONTROLS_EVERY_SECONDS
from duostore_server.rpc.chain import CallChain
from duostore_server.rpc.health import HealthMonitor
from duostore_server.rpc.server import SERVICES, Tls, listening
from duostore_server.rpc.streams import Streams
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.backfills import AuroraBackfills
from duostore_server.storage.aurora.controls import AuroraControls
from duostore_server.storage.aurora.drafts import AuroraDrafts
from duostore_server.storage.aurora.entities import AuroraEntities
from duostore_server.storage.aurora.idempotency import AuroraIdempotency
from duostore_server.storage.aurora.limits import AuroraLimits
from duostore_server.storage.aurora.outbox import AuroraOutbox
from duostore_server.storage.aurora.pool import AuroraPool
from duostore_server.storage.aurora.probe import open_probe as open_aurora_probe
from duostore_server.storage.aurora.queries import AuroraQueries
from duostore_server.storage.aurora.source_changes import AuroraSourceChanges
from duostore_server.storage.aurora.stale import AuroraStaleDocuments
from duostore_server.storage.aurora.verifications import AuroraVerifications
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
from duostore_server.telemetry.observed_backfills import ObservedBackfills
from duostore_server.telemetry.observed_cache import ObservedCache
from duostore_server.telemetry.observed_controls import ObservedControls
from duostore_server.telemetry.observed_counters import ObservedCounters
from duostore_server.telemetry.observed_dirty import ObservedDirtyHeads
from duostore_server.telemetry.observed_drafts import ObservedDrafts
from duostore_server.telemetry.observed_entities import ObservedEntities
from duostore_server.telemetry.observed_heads import ObservedHeads
from duostore_server.telemetry.observed_idempotency_rows import ObservedIdempotencyRows
from duostore_server.telemetry.observed_items import ObservedProjectionItems
from duostore_server.telemetry.observed_limits import ObservedLimits
from duostore_server.telemetry.observed_outbox import ObservedOutbox
from duostore_server.telemetry.observed_projections import ObservedProjections
from duostore_server.telemetry.observed_queries import ObservedQueries
from duostore_server.telemetry.observed_records import ObservedRecords
from duostore_server.telemetry.observed_snapshots import ObservedSnapshots
from duostore_server.telemetry.observed_source_changes import ObservedSourceChanges
from duostore_server.telemetry.observed_stale import ObservedStaleDocuments
from duostore_server.telemetry.observed_verifications import ObservedVerifications
from duostore_server.use_cases import Quoting, data_access
from duostore_server.workers.deferred import Deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.config import Settings
    from duostore_server.domain.admin_ports import (
        Backfills,
        Controls,
        Entities,
        ProjectionItems,
        Verifications,
    )
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
        Queries,
        Snapshots,
        SourceChanges,
        StaleDocuments,
    )
    from duostore_server.domain.status import Figures
    from duostore_server.in_force import InForce
    from duostore_server.rpc.server import Listening
    from duostore_server.storage.dynamodb.ports import DynamoDBPorts
    from duostore_server.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_PROBE_EVERY_SECONDS: Final = 1.0
_DEFERRED_EVERY_SECONDS: Final = 0.05
_COMPLETIONS_AT_A_TIME: Final = 500
_ANSWERS_AT_A_TIME: Final = 100
_LIMITS_EVERY_SECONDS: Final = 1.0
# What a caller who has gone leaves behind is freed within a second.
_LOOK_EVERY_SECONDS: Final = 0.2
# The server keeps a result for as long as a client may stall, and this much longer.
_STALL_MARGIN_SECONDS: Final = 5.0
# Nobody waits for it, and a page of a large change, or a read model, may take a while.
_FAN_OUT_SECONDS: Final = 60.0
_FAN_OUT_CONNECTIONS: Final = 4
# For what looks at many entities at a time: checks, backfills, the verifier.
_OPERATING_SECONDS: Final = 10.0
_OPERATING_CONNECTIONS: Final = 4
_OPERATING_WAITING: Final = 32
# What sets them waits beside what reads them.
_CONTROLS_WAITING: Final = 8
_POOLS_EVERY_SECONDS: Final = 5.0
# One slow answer is not an outage; these many in a row, with none in between, are.
_DYNAMODB_TOLERANCE: Final = 3
_DYNAMODB_PAUSE_SECONDS: Final = (0.25, 0.5)


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
    queries: Queries
    source_changes: SourceChanges
    stale: StaleDocuments
    controls: Controls
    entities: Entities
    verifications: Verifications
    backfills: Backfills
    items: ProjectionItems
    projections: Projections
    heads: Heads
    snapshots: Snapshots
    dirty_heads: DirtyHeads
    records: IdempotencyRecords
    counters: Counters
    cache: Cache
    probes: tuple[Probe, ...]
    # Ends the queries whose callers have gone; one round.
    cancel_abandoned: Callable[[], bool]
    # Shows how the pools of connections to Aurora are used; one round.
    show_pools: Callable[[], bool]


@contextmanager
def open_stores(settings: Settings, metrics: Metrics) -> Iterator[Stores]:
    """Open the stores; each port is wrapped once, by what measures it.

    Does not wait for a store that is down: what needs it fails until it is back.
    """
    with ExitStack() as stack:
        aurora = settings.aurora
        pool = stack.enter_context(
            _aurora_pool(
                settings,
                "aurora",
                least=aurora.pool_min,
                most=aurora.pool_max,
                waiting=aurora.max_waiting,
            )
        )
        aurora_probe = stack.enter_context(
            open_aurora_probe(
                dsn_of(settings),
                connect_timeout=settings.aurora.connect_timeout,
                pooler=settings.aurora.pooler,
            )
        )
        dynamodb = stack.enter_context(_dynamodb(settings, metrics))
        cache, cache_probe = _open_cache(settings, metrics, stack)
        read_models = read_models_of(settings)
        queries = _open_queries(settings, stack)
        fan_out_pool = stack.enter_context(
            _aurora_pool(
                settings,
                "aurora-fan-out",
                most=_FAN_OUT_CONNECTIONS,
                waiting=_FAN_OUT_CONNECTIONS,
                statement_timeout=_FAN_OUT_SECONDS,
            )
        )
        operating_pool = stack.enter_context(
            _aurora_pool(
                settings,
                "aurora-operating",
                most=_OPERATING_CONNECTIONS,
                waiting=_OPERATING_WAITING,
                statement_timeout=_OPERATING_SECONDS,
            )
        )
        # Read-only mode waits for nobody: neither for callers nor for a backfill.
        controls_pool = stack.enter_context(
            _aurora_pool(settings, "aurora-controls", most=1, waiting=_CONTROLS_WAITING)
        )
        pools = (pool, fan_out_pool, operating_pool, controls_pool)
        # What one port finds out of DynamoDB holds for the others.
        guard = Guard(_dynamodb_backoff())
        yield Stores(
            authority=ObservedAuthority(AuroraAuthority(pool, read_models), metrics),
            outbox=ObservedOutbox(AuroraOutbox(pool, claim=settings.projector.claim), metrics),
            rows=ObservedIdempotencyRows(AuroraIdempotency(pool), metrics),
            drafts=ObservedDrafts(AuroraDrafts(pool), metrics),
            limits=ObservedLimits(AuroraLimits(pool), metrics),
            controls=ObservedControls(AuroraControls(controls_pool), metrics),
            entities=ObservedEntities(AuroraEntities(operating_pool), metrics),
            verifications=ObservedVerifications(AuroraVerifications(operating_pool), metrics),
            backfills=ObservedBackfills(AuroraBackfills(operating_pool), metrics),
            items=ObservedProjectionItems(dynamodb.items, metrics),
            queries=ObservedQueries(queries, metrics),
            cancel_abandoned=queries.cancel_abandoned,
            source_changes=ObservedSourceChanges(
                AuroraSourceChanges(fan_out_pool, read_models), metrics
            ),
            stale=ObservedStaleDocuments(AuroraStaleDocuments(fan_out_pool, read_models), metrics),
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
            show_pools=partial(_show_pools, pools, metrics),
        )


def _show_pools(pools: Collection[AuroraPool], metrics: Metrics) -> bool:
    for pool in pools:
        usage = pool.usage()
        metrics.pool(usage.name, usage.idle, usage.used, usage.waiting)
    return False


@contextmanager
def serving(
    settings: Settings,
    stores: Stores,
    metrics: Metrics,
    now: InForce,
    figures: Callable[[], Figures],
) -> Iterator[Listening]:
    """Answer calls while the block runs; drain at its end, and note what was completed.

    ``figures`` returns what all processes of the machine have counted.
    """
    server = settings.server
    streams = Streams(stall=server.export_stall)
    completer = Deferred(stores.outbox.complete, batch=_COMPLETIONS_AT_A_TIME)
    recorder = Deferred(stores.records.put, batch=_ANSWERS_AT_A_TIME)
    limits = LimitsInForce(quotas_of(settings), stores.limits)
    quoting = Quoting(settings, stores, metrics, limits)
    chain = CallChain(
        metrics,
        default_deadline=server.default_deadline,
        max_deadline=server.max_deadline,
        stream_deadline=server.export_deadline,
        streams=streams,
    )
    with ExitStack() as stack:
        for name, work in (("completer", completer), ("recorder", recorder)):
            stack.callback(work.finish)
            stack.enter_context(loop(name, work.run_once, _DEFERRED_EVERY_SECONDS, metrics))
        for name, refresh in now.works.items():
            stack.enter_context(loop(name, refresh, CONTROLS_EVERY_SECONDS, metrics))
        stack.enter_context(loop("pools", stores.show_pools, _POOLS_EVERY_SECONDS, metrics))
        if settings.quotas:
            _refresh_once(limits)
            stack.enter_context(loop("limits", limits.refresh, _LIMITS_EVERY_SECONDS, metrics))
            # Once nobody is answered any more, and before the stores are closed.
            stack.callback(quoting.return_leases)
            rest = quoting.rest
            stack.enter_context(loop("leases", quoting.return_unused, rest, metrics, longest=rest))
        looks = [("stalled", streams.cancel_stalled)]
        if settings.queries:
            looks.append(("abandoned", stores.cancel_abandoned))
        for name, look in looks:
            stack.enter_context(loop(name, look, _LOOK_EVERY_SECONDS, metrics))
        admin, reporting = admin_of(settings, stores, metrics, now, figures)
        answering = stack.enter_context(
            listening(
                address=str(server.address),
                threads=server.threads,
                max_concurrent_rpcs=server.max_concurrent_rpcs,
                max_message_bytes=server.max_message_bytes,
                max_connection_age=server.max_connection_age,
                connection_age_grace=server.connection_age_grace,
                query_threads=server.query_threads,
                export_streams=server.export_streams,
                drain_timeout=server.drain_timeout,
                tls=_tls(settings),
                reflect=server.reflection,
                chain=chain,
                data_access=data_access(
                    settings, stores, metrics, quoting, now, completions=completer, answers=recorder
                ),
                admin=admin,
                admin_permission=permission_of(settings),
            )
        )
        monitor = HealthMonitor(answering.health, stores.probes, SERVICES, noted=reporting.noted)
        stack.enter_context(loop("health", monitor.run_once, _PROBE_EVERY_SECONDS, metrics))
        yield answering


def _refresh_once(limits: LimitsInForce) -> None:
    """Know the limits that are set at run time before the first call, if Aurora is there."""
    try:
        limits.refresh()
    except (StoreError, DeadlineExceededError) as error:
        _log.warning("limits not read, aurora cannot be reached", cause=cause_of(error))


def dsn_of(settings: Settings) -> str:
    """Return how to reach the writer of Aurora. Secret: it may hold a password."""
    if settings.aurora.dsn is None:
        raise ValueError("aurora.dsn is not set")
    return settings.aurora.dsn.get_secret_value()


def _aurora_pool(
    settings: Settings,
    name: str,
    *,
    most: int,
    waiting: int,
    least: int = 0,
    statement_timeout: float = 0.0,
    reader_dsn: str | None = None,
) -> AuroraPool:
    """Return a pool of connections to Aurora, still closed: to the writer, unless to a reader.

    A statement may take ``statement_timeout`` seconds if that is longer than is configured.
    """
    aurora = settings.aurora
    return AuroraPool(
        reader_dsn or dsn_of(settings),
        min_size=least,
        max_size=most,
        wait=aurora.pool_wait,
        max_waiting=waiting,
        statement_timeout=max(aurora.statement_timeout, statement_timeout),
        lock_timeout=aurora.lock_timeout,
        connect_timeout=aurora.connect_timeout,
        pooler=aurora.pooler,
        any_server=reader_dsn is not None,
        name=name,
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


def _open_queries(settings: Settings, stack: ExitStack) -> AuroraQueries:
    """Open the pools of queries: they take no connection from what else needs Aurora."""
    server, reader_dsn = settings.server, settings.aurora.reader_dsn
    most = server.query_threads + server.export_streams
    open_pool = partial(_aurora_pool, settings, most=most, waiting=most)
    reader = None
    if reader_dsn is not None:
        secret = reader_dsn.get_secret_value()
        reader = stack.enter_context(open_pool("aurora-reader", reader_dsn=secret))
    writer = stack.enter_context(open_pool("aurora-queries"))
    return AuroraQueries(writer, reader, stall=server.export_stall + _STALL_MARGIN_SECONDS)


def _tls(settings: Settings) -> Tls | None:
    tls = settings.server.tls
    if tls.certificate is None or tls.key is None:
        return None
    return Tls(
        tls.certificate.read_bytes(),
        tls.key.read_bytes(),
        None if tls.client_ca is None else tls.client_ca.read_bytes(),
    )
