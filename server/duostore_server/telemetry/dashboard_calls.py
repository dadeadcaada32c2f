"""The rows of the dashboard that tell of calls: objectives, methods, stores, reads."""

from __future__ import annotations

from typing import Final

from duostore_server.telemetry.dashboard_panels import (
    GREEN_TO_RED,
    KIND,
    RED_TO_GREEN,
    Panel,
    Query,
    of,
    or_zero,
    quantiles,
    rate,
    share,
)
from duostore_server.telemetry.slo_counts import FAULTS, STORE_FAULTS

_RPC: Final = "duostore_rpc_duration_seconds"
_CALLS: Final = "duostore_store_calls_total"
_METHOD: Final = 'method=~"$method"'
_FAULTY: Final = f'code=~"{"|".join(FAULTS)}"'
_STORE_FAULTY: Final = f'outcome=~"{"|".join(STORE_FAULTS)}"'

OBJECTIVES: Final = (
    Panel(
        "Objectives",
        "Whether each objective holds now, as `duostore status` says: of all instances the one "
        "where it is worst.",
        "none",
        (Query(f"min by (slo) ({of('duostore_slo_holds')})", "{{slo}}"),),
        form="stat",
        words={0: "broken", 1: "holds"},
        colours=RED_TO_GREEN,
    ),
    Panel(
        "Error budget left",
        "What is left of each error budget over the window of [slo]; below 0 the objective is "
        "missed.",
        "percentunit",
        (Query('min by (slo) (duostore:slo_budget_left:ratio{job="$job"})', "{{slo}}"),),
        form="stat",
        decimals=1,
        least=None,
        colours=((-1e9, "red"), (0, "orange"), (0.25, "green")),
    ),
    Panel(
        "Alerts that fire",
        "Alerts of this job, by their severity.",
        "none",
        (
            Query(
                or_zero(
                    'count by (severity) (ALERTS{alertname=~"Duostore.*",alertstate="firing",'
                    'job="$job"})',
                    "severity",
                    "none",
                ),
                "{{severity}}",
            ),
        ),
        form="stat",
        width=4,
        colours=GREEN_TO_RED,
    ),
    Panel(
        "Read-only",
        "Kinds whose writes are refused; * stands for all.",
        "none",
        (
            Query(
                or_zero(
                    f"max by (kind) ({of('duostore_read_only')} == 1)", "kind", "writes are taken"
                ),
                "{{kind}}",
            ),
        ),
        form="stat",
        width=4,
        words={0: "none", 1: "refused"},
        colours=GREEN_TO_RED,
    ),
    Panel(
        "Burn rate over 1 h",
        "How many times too fast each error budget is used up. Over 14.4, and over 5 m too, "
        "somebody is paged.",
        "none",
        (Query('duostore:slo_burn:rate1h{job="$job"}', "{{slo}}"),),
    ),
    Panel(
        "Burn rate over 6 h",
        "As over 1 h. Over 6, and over 30 m too, somebody is paged.",
        "none",
        (Query('duostore:slo_burn:rate6h{job="$job"}', "{{slo}}"),),
    ),
    Panel(
        "Good share, 5 m",
        "The share of each objective that was good in the last five minutes.",
        "percentunit",
        (Query("min by (slo) (" + of("duostore_slo_good_ratio", 'window="5m"') + ")", "{{slo}}"),),
        least=None,
        most=1,
        decimals=3,
    ),
)
METHODS: Final = (
    Panel(
        "Calls",
        "Calls a second, by method.",
        "reqps",
        (Query(rate("method", of(f"{_RPC}_count", _METHOD)), "{{method}}"),),
    ),
    Panel(
        "Failed calls",
        "The share of calls that fail by fault of the service, by method.",
        "percentunit",
        (Query(share("method", f"{_RPC}_count", _FAULTY, _METHOD), "{{method}}"),),
    ),
    Panel(
        "Calls by code",
        "Calls a second, by status code, all methods that are chosen.",
        "reqps",
        (Query(rate("code", of(f"{_RPC}_count", _METHOD)), "{{code}}"),),
    ),
    Panel(
        "How long calls take",
        "Median, 95th and 99th percentile by method, from the start of the handler.",
        "s",
        quantiles("method", "{{method}}", _RPC, _METHOD),
        width=16,
    ),
    Panel(
        "Calls under way",
        "Calls whose handler is running, by instance.",
        "none",
        (Query(f"sum by (instance) ({of('duostore_rpcs_in_flight')})", "{{instance}}"),),
    ),
)
STORES: Final = (
    Panel(
        "Calls of stores",
        "Calls a second, by store; background work included.",
        "reqps",
        (Query(rate("store", of(_CALLS)), "{{store}}"),),
    ),
    Panel(
        "Failed calls of stores",
        "The share of calls that fail by fault of the store.",
        "percentunit",
        (Query(share("store", _CALLS, _STORE_FAULTY), "{{store}}"),),
    ),
    Panel(
        "How long stores take",
        "Median, 95th and 99th percentile of a store's answers.",
        "s",
        quantiles("store", "{{store}}", "duostore_store_call_duration_seconds"),
    ),
    Panel(
        "Slowest operations",
        "95th percentile of the ten slowest operations.",
        "s",
        (
            Query(
                "topk(10, histogram_quantile(0.95, "
                + rate("store, op, le", of("duostore_store_call_duration_seconds_bucket"))
                + "))",
                "{{store}} {{op}}",
            ),
        ),
    ),
    Panel(
        "Nodes bypassed, entries unreadable",
        "Calls of the cache that went on without a node, and entries or items that could not be "
        "read, a second.",
        "reqps",
        (
            Query(
                or_zero(rate("op", of("duostore_cache_bypasses_total")), "op", "none"),
                "bypassed: {{op}}",
            ),
            Query(
                or_zero(rate("store", of("duostore_unreadable_entries_total")), "store", "none"),
                "unreadable: {{store}}",
            ),
        ),
    ),
    Panel(
        "Connections to Aurora",
        "Connections in use and open, and calls that wait for one, by pool.",
        "none",
        (
            Query(
                f"sum by (pool, state) ({of('duostore_aurora_connections')})", "{{pool}} {{state}}"
            ),
            Query(f"sum by (pool) ({of('duostore_aurora_waiting')})", "{{pool}} waiting"),
        ),
    ),
)
READS: Final = (
    Panel(
        "Hit ratio",
        "The share of reads that the cache answered, by kind.",
        "percentunit",
        (Query(share("kind", "duostore_reads_total", 'served_from="cache"', KIND), "{{kind}}"),),
        most=1,
    ),
    Panel(
        "Who answers reads",
        "Entities read a second, by the store that answered.",
        "reqps",
        (
            Query(
                rate("served_from", of("duostore_reads_total", KIND)),
                "{{served_from}}",
            ),
        ),
    ),
    Panel(
        "Hit ratio of queries",
        "The share of results that the cache answered, by query.",
        "percentunit",
        (
            Query(
                share("query", "duostore_query_results_total", 'served_from="cache"'), "{{query}}"
            ),
        ),
        most=1,
    ),
)
