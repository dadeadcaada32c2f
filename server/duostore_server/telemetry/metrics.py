"""Every metric of the service: name, unit, labels and help, in one place.

No key, id or tenant is ever a label; kinds and quotas are, since the configuration bounds
them.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram

from duostore_server.domain.objectives import RPC_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Collection

    from prometheus_client import CollectorRegistry

    from duostore_server.domain.drift import Drift
    from duostore_server.domain.entities import Backlog
    from duostore_server.domain.errors import Store, StoreError
    from duostore_server.domain.read_models import FanOutBacklog, Outcome

# From a cache hit on the same machine to a store that is given up.
_STORE_BUCKETS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


class Metrics:
    """The metrics of one process, registered with ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.store_call_seconds = Histogram(
            "duostore_store_call_duration_seconds",
            "How long calls of a store took, whatever their outcome.",
            ("store", "op"),
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self.store_calls = Counter(
            "duostore_store_calls_total",
            "Calls of a store by outcome: ok, miss (nothing found), conflict (a condition did"
            " not hold), timeout, unavailable, overloaded, unknown (a write's answer was lost),"
            " deadline (the caller's), error.",
            ("store", "op", "outcome"),
            registry=registry,
        )
        self.rpc_seconds = Histogram(
            "duostore_rpc_duration_seconds",
            "How long RPCs took, from the start of their handler, by status code.",
            ("method", "code"),
            buckets=RPC_BOUNDS,
            registry=registry,
        )
        self.rpcs_in_flight = Gauge(
            "duostore_rpcs_in_flight",
            "RPCs whose handler is running.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.reads = Counter(
            "duostore_reads_total",
            "Entities read, absent ones included, by the store that answered. The hit ratio of"
            " a kind is its share with served_from=cache.",
            ("kind", "served_from"),
            registry=registry,
        )
        self.unreadable = Counter(
            "duostore_unreadable_entries_total",
            "Cache entries and DynamoDB items that could not be read and were passed over.",
            ("store",),
            registry=registry,
        )
        self.cache_bypasses = Counter(
            "duostore_cache_bypasses_total",
            "Calls of the cache that went on without a node that failed, by operation.",
            ("op",),
            registry=registry,
        )
        self.outbox_depth = Gauge(
            "duostore_outbox_depth",
            "Keys whose newest version may not have been projected yet.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.projection_lag_seconds = Gauge(
            "duostore_projection_lag_seconds",
            "Age of the oldest outbox row; 0 if there is none.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.heads_consolidated = Counter(
            "duostore_heads_consolidated_total",
            "Heads whose newest content was brought from DynamoDB to Aurora.",
            registry=registry,
        )
        self.quota_decisions = Counter(
            "duostore_quota_decisions_total",
            "Calls of a quota by outcome: allowed, denied; while DynamoDB cannot be asked,"
            " unchecked (allowed, with nothing debited) or unavailable (refused), as is"
            " configured.",
            ("quota", "outcome"),
            registry=registry,
        )
        self.quota_leased_units = Counter(
            "duostore_quota_leased_units_total",
            "Units of leases by their fate: granted (debited ahead), and of these admitted,"
            " returned (given back) or lost (left unused, to under-admit).",
            ("quota", "fate"),
            registry=registry,
        )
        self.query_results = Counter(
            "duostore_query_results_total",
            "Queries that were answered, by the store that had the result. The hit ratio of a"
            " query is its share with served_from=cache.",
            ("query", "served_from"),
            registry=registry,
        )
        self.fan_out_changes = Gauge(
            "duostore_fan_out_changes",
            "Changes of sources whose documents are not all found yet.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.fan_out_stale = Gauge(
            "duostore_fan_out_stale_documents",
            "Documents that have to be recomputed.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.fan_out_failing = Gauge(
            "duostore_fan_out_failing",
            "Changes and documents whose SQL failed when it was last tried, in neither of the"
            " above.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.fan_out_oldest_seconds = Gauge(
            "duostore_fan_out_oldest_seconds",
            "Age of the oldest change or stale document; 0 if there is none.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.fan_out_recomputed = Counter(
            "duostore_fan_out_recomputed_total",
            "Documents that were recomputed, by outcome: changed (a version was written),"
            " unchanged, failed (it is tried again).",
            ("kind", "outcome"),
            registry=registry,
        )
        self.background_rounds = Counter(
            "duostore_background_rounds_total",
            "Rounds of background work by outcome: ok, error.",
            ("work", "outcome"),
            registry=registry,
        )
        self.background_last_success = Gauge(
            "duostore_background_last_success_timestamp_seconds",
            "When a background work last did a round without an error.",
            ("work",),
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.verified_entities = Counter(
            "duostore_verified_total",
            "Looks of the verifier at entities, by how long after a save (row: at random), and by"
            " outcome: consistent, inconsistent (a reader is answered wrongly, or may be),"
            " undecided (a store could not be asked, or the entity had changed).",
            ("age", "outcome"),
            registry=registry,
        )
        # There from the start: of a series that begins with its first count no rate knows that.
        for age in ("1s", "60s", "5m", "row"):
            for outcome in ("consistent", "inconsistent", "undecided"):
                self.verified_entities.labels(age, outcome)
        self.drifts = Counter(
            "duostore_drift_total",
            "Times that DynamoDB or the cache was found not to agree with Aurora, by what it was.",
            ("kind", "drift"),
            registry=registry,
        )
        self.repairs = Counter(
            "duostore_repairs_total",
            "Entities that were projected anew since they did not agree, by outcome: repaired,"
            " failed.",
            ("kind", "outcome"),
            registry=registry,
        )
        self.backfilled_entities = Counter(
            "duostore_backfilled_total",
            "Entities that backfills looked at, by outcome: projected (DynamoDB did not have them"
            " as they are), unchanged, failed.",
            ("kind", "outcome"),
            registry=registry,
        )
        self.kinds_read_only = Gauge(
            "duostore_read_only",
            "1 while any process refuses writes of a kind, * being all kinds.",
            ("kind",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.aurora_connections = Gauge(
            "duostore_aurora_connections",
            "Connections to Aurora that are open, by pool and state: idle, used.",
            ("pool", "state"),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.aurora_waiting = Gauge(
            "duostore_aurora_waiting",
            "Calls that wait for a connection to Aurora, by pool.",
            ("pool",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.slo_good_ratio = Gauge(
            "duostore_slo_good_ratio",
            "Share of what an objective counts that was good, over the last 5m and 1h; NaN if"
            " nothing was counted.",
            ("slo", "window"),
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.slo_burn_rate = Gauge(
            "duostore_slo_burn_rate",
            "How fast the error budget of an objective is used up: 1 uses it up just at the end"
            " of its window.",
            ("slo",),
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.slo_holds = Gauge(
            "duostore_slo_holds",
            "1 while an objective holds, else 0.",
            ("slo",),
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.build_info = Gauge(
            "duostore_build_info",
            "Always 1; the label says which release runs.",
            ("release",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.build_info.labels(version("duostore-server")).set(1)
        self._read_only: set[str] = set()

    def served(self, kind: str, store: Store) -> None:
        """Count one entity that was read."""
        self.reads.labels(kind, store.value).inc()

    def unreadable_entry(self, store: Store) -> None:
        """Count an entry or an item that could not be read."""
        self.unreadable.labels(store.value).inc()

    def bypassed(self, op: str, _error: StoreError) -> None:
        """Count a call of the cache that went on without one of its nodes."""
        self.cache_bypasses.labels(op).inc()

    def backlog(self, backlog: Backlog) -> None:
        """Show how much waits to be projected."""
        self.outbox_depth.set(backlog.depth)
        self.projection_lag_seconds.set(backlog.oldest_seconds)

    def consolidated(self, heads: int) -> None:
        """Count heads that were brought to Aurora."""
        self.heads_consolidated.inc(heads)

    def quota_decided(self, quota: str, outcome: str) -> None:
        """Count how a call of a quota was decided."""
        self.quota_decisions.labels(quota, outcome).inc()

    def leased(self, quota: str, fate: str, units: int) -> None:
        """Count units of leases and what became of them."""
        self.quota_leased_units.labels(quota, fate).inc(units)

    def query_served(self, query: str, store: Store) -> None:
        """Count a query that was answered."""
        self.query_results.labels(query, store.value).inc()

    def fan_out(self, backlog: FanOutBacklog) -> None:
        """Show how much of the fan-out is left."""
        self.fan_out_changes.set(backlog.changes)
        self.fan_out_stale.set(backlog.stale)
        self.fan_out_failing.set(backlog.failing)
        self.fan_out_oldest_seconds.set(backlog.oldest_seconds)

    def recomputed(self, kind: str, outcome: Outcome) -> None:
        """Count a document that was recomputed."""
        self.fan_out_recomputed.labels(kind, outcome.value).inc()

    def succeeded(self, name: str) -> None:
        """Count a round of background work that was done."""
        self.background_rounds.labels(name, "ok").inc()
        self.background_last_success.labels(name).set_to_current_time()

    def failed(self, name: str) -> None:
        """Count a round of background work that ended in an error."""
        self.background_rounds.labels(name, "error").inc()

    def verified(self, age: str, outcome: str) -> None:
        """Count a look of the verifier."""
        self.verified_entities.labels(age, outcome).inc()

    def drifted(self, kind: str, drift: Drift) -> None:
        """Count one thing that did not agree."""
        self.drifts.labels(kind, drift.value).inc()

    def repaired(self, kind: str, ok: bool) -> None:  # noqa: FBT001 - one outcome or the other
        """Count an entity whose drift was repaired, or could not be."""
        self.repairs.labels(kind, "repaired" if ok else "failed").inc()

    def backfilled(self, kind: str, outcome: str, count: int) -> None:
        """Count entities that a backfill looked at."""
        self.backfilled_entities.labels(kind, outcome).inc(count)

    def read_only(self, kinds: Collection[str]) -> None:
        """Show which kinds are read-only; the empty one stands for all."""
        refused = {kind or "*" for kind in kinds}
        for kind in self._read_only - refused:
            self.kinds_read_only.labels(kind).set(0)
        for kind in refused:
            self.kinds_read_only.labels(kind).set(1)
        self._read_only |= refused

    def pool(self, name: str, idle: int, used: int, waiting: int) -> None:
        """Show how a pool of connections to Aurora is used."""
        self.aurora_connections.labels(name, "idle").set(idle)
        self.aurora_connections.labels(name, "used").set(used)
        self.aurora_waiting.labels(name).set(waiting)

    def slo(
        self,
        name: str,
        *,
        ratio: float | None,
        ratio_hour: float | None,
        burn_rate: float,
        holds: bool,
    ) -> None:
        """Show how an objective is met: the shares of five minutes and of an hour, if any."""
        for window, share in (("5m", ratio), ("1h", ratio_hour)):
            self.slo_good_ratio.labels(name, window).set(math.nan if share is None else share)
        self.slo_burn_rate.labels(name).set(burn_rate)
        self.slo_holds.labels(name).set(holds)
