"""Builds the use cases, which know the stores by their ports."""

from __future__ import annotations

import random
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import structlog

from duostore_server import codec
from duostore_server.access.accounts import Accounts
from duostore_server.access.checks import Checks
from duostore_server.access.committing import Committer
from duostore_server.access.counting import Counting
from duostore_server.access.drafting import Drafting
from duostore_server.access.dynamodb_home import DynamoDBHome
from duostore_server.access.exporting import Exporting
from duostore_server.access.flights import Flights
from duostore_server.access.generations import Generations
from duostore_server.access.granting import Granting
from duostore_server.access.leasing import Leasing
from duostore_server.access.propagation import Propagation
from duostore_server.access.query_checks import QueryChecks
from duostore_server.access.querying import Querying
from duostore_server.access.quotas import Quotas
from duostore_server.access.reading import Reader, lease_pauses
from duostore_server.access.result_flights import ResultFlights
from duostore_server.access.settling import Settling
from duostore_server.access.sources import HeadSource, ProjectedSource
from duostore_server.access.writing import Writer
from duostore_server.config import policies as policies_of
from duostore_server.config import queries as queries_of
from duostore_server.config import quotas as quotas_of
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.policies import Home
from duostore_server.rpc.data_access import DataAccess

if TYPE_CHECKING:
    from duostore_server.access.limits import LimitsInForce
    from duostore_server.bootstrap import Stores
    from duostore_server.config import Settings
    from duostore_server.domain.entities import OutboxRow
    from duostore_server.domain.ports import Notes
    from duostore_server.domain.transactions import Idempotency, Recorded
    from duostore_server.in_force import InForce
    from duostore_server.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

# Counters that a process remembers, at a kilobyte and a half, and 70 bytes for each of
# their sub-windows.
_MOST_ACCOUNTS: Final = 10_000
# So often in the time of a slice it is looked at.
_LOOKS: Final = 5
_LEAST_REST_SECONDS: Final = 0.02
_RETURN_SECONDS: Final = 1.0
# For all that a process has leased, when it ends.
_DRAIN_SECONDS: Final = 3.0
_WORKER_DIGITS: Final = 12
_QUIET_SECONDS: Final = 60.0
# TTLs and backoffs are shortened by up to a tenth, so that what began together does
# not end together.
_LEAST_JITTER: Final = 0.9


def utc_now() -> datetime:
    """Return the time, aware and in UTC."""
    return datetime.now(UTC)


def jitter() -> float:
    """Return the part of a time to wait: nearly all of it."""
    return random.uniform(_LEAST_JITTER, 1.0)  # noqa: S311 - spreads load, guards nothing


class _Clock:
    """Tells once a minute that this machine's clock is behind that of another."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def behind(self, quota: str, nanoseconds: int) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            seconds = round(nanoseconds / 1e9, 3)
            _log.warning("clock is behind that of another server", quota=quota, seconds=seconds)


class Quoting:
    """The quotas of one process: what answers calls, and what looks after its leases."""

    def __init__(
        self, settings: Settings, stores: Stores, metrics: Metrics, limits: LimitsInForce
    ) -> None:
        quotas = quotas_of(settings)
        keep = timedelta(seconds=settings.idempotency.keep)
        counting = Counting(
            stores.counters,
            worker=uuid.uuid4().hex[:_WORKER_DIGITS],
            clock=time.time_ns,
            new_id=lambda: uuid.uuid4().hex,
            behind=_Clock().behind,
        )
        self._accounts = Accounts(_MOST_ACCOUNTS)
        self._leasing = Leasing(counting, monotonic=time.monotonic, leased=metrics.leased)
        self.quotas = Quotas(
            quotas,
            limits=limits,
            accounts=self._accounts,
            counting=counting,
            leasing=self._leasing,
            granting=Granting(counting, keep=keep),
            decided=metrics.quota_decided,
        )
        self.settling = Settling(quotas, limits=limits, counting=counting)
        shortest = min((quota.lease_time for quota in quotas.values()), default=timedelta(1))
        # How long to rest between two rounds of return_unused, in seconds.
        self.rest = max(_LEAST_REST_SECONDS, shortest.total_seconds() / _LOOKS)

    def return_unused(self) -> bool:
        """Give back what was leased and is not used; return False, for it is all of it.

        Raises what the last of those met that could not be given back: they are tried again.
        """
        self._leasing.return_unused(
            self._accounts.holding(), lambda: Deadline.after(_RETURN_SECONDS)
        )
        return False

    def return_leases(self) -> None:
        """Give back all that was leased, before the process ends."""
        self._leasing.return_all(self._accounts.holding(), Deadline.after(_DRAIN_SECONDS))


def data_access(
    settings: Settings,
    stores: Stores,
    metrics: Metrics,
    quoting: Quoting,
    now: InForce,
    *,
    completions: Notes[OutboxRow],
    answers: Notes[tuple[Idempotency, Recorded]],
) -> DataAccess:
    """Return the servicer on its use cases."""
    max_answer_bytes = settings.server.max_answer_bytes
    policies = policies_of(settings)
    checks = Checks(policies)
    keep = timedelta(seconds=settings.idempotency.keep)
    reader = Reader(
        sources={
            Home.AURORA: ProjectedSource(stores.authority, stores.projections, now.shapes),
            Home.DYNAMODB: HeadSource(stores.heads, codec.head_entity, utc_now),
        },
        cache=stores.cache,
        policies=policies,
        checks=checks,
        shapes_of=now.shapes.readable,
        flights=Flights(),
        pauses=lease_pauses(settings.cache.lease_wait),
        pause=time.sleep,
        jitter=jitter,
        now=utc_now,
        served=metrics.served,
    )
    drafting = Drafting(
        snapshots=stores.snapshots,
        policies=policies,
        checks=checks,
        encode=codec.encode_snapshot,
        numbered=codec.numbered,
        data_of=codec.document_of,
        now=utc_now,
        keep=keep,
        max_answer_bytes=max_answer_bytes,
    )
    writer = Writer(
        committer=Committer(
            authority=stores.authority,
            rows=stores.rows,
            records=stores.records,
            propagation=Propagation(stores.projections, stores.cache, now.shapes.project),
            completions=completions,
            answers=answers,
            policies=policies,
        ),
        dynamodb_home=DynamoDBHome(
            heads=stores.heads,
            cache=stores.cache,
            policies=policies,
            encode=codec.encode_head,
            now=utc_now,
        ),
        drafting=drafting,
        policies=policies,
        checks=checks,
        keep=keep,
        check_writable=now.controls.check_writable,
    )
    query_checks = QueryChecks(queries_of(settings))
    querying = Querying(
        checks=query_checks,
        queries=stores.queries,
        cache=stores.cache,
        generations=Generations(stores.cache, utc_now),
        flights=ResultFlights(),
        encode=codec.encode_result,
        row_bytes=codec.row_bytes,
        slice_of=codec.page_of,
        pauses=lease_pauses,
        pause=time.sleep,
        jitter=jitter,
        now=utc_now,
        served=metrics.query_served,
    )
    return DataAccess(
        reader,
        writer,
        drafting,
        policies,
        quotas=quoting.quotas,
        settling=quoting.settling,
        querying=querying,
        exporting=Exporting(query_checks, stores.queries),
        max_answer_bytes=max_answer_bytes,
    )
