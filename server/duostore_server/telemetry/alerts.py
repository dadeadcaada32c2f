"""What to tell somebody of beside the objectives: alerts that name a cause."""

from __future__ import annotations

from typing import Final

from duostore_server.domain.drift import Drift
from duostore_server.telemetry.rule_files import Alert
from duostore_server.telemetry.slo_counts import STORE_FAULTS

_MISLEADING: Final = "|".join(drift.value for drift in Drift if drift.misleads)
# What is nobody's fault: a kind that moves to another projection version is like this for a while.
_NO_TICKET: Final = "|".join(drift.value for drift in Drift if drift.misleads or drift.is_evolution)
_FAULTS: Final = "|".join(STORE_FAULTS)


def _any(labels: str, selector: str) -> str:
    """Return the expression for any increase of a counter in the last quarter of an hour.

    Also of a series that only now began, of which ``increase`` knows nothing; but not of one
    that is new to Prometheus alone, which has not seen the instance for so long.
    """
    return f"""
        sum by ({labels}) (increase({selector}[15m])) > 0
        or
        sum by ({labels}) (
          {selector}
          unless
          {selector} offset 15m
          and on (job, instance)
          duostore_rpcs_in_flight offset 15m
        ) > 0
        """


def _share(labels: str, part: str, whole: str, window: str, most: float) -> str:
    return f"""
        sum by ({labels}) (rate({part}[{window}]))
        / (sum by ({labels}) (rate({whole}[{window}])) > 0)
        > {most:g}
        """


ALERTS: Final = (
    Alert(
        "DuostoreDown",
        "page",
        """
        group by (job) (max_over_time(duostore_rpcs_in_flight[1h]))
        unless on (job)
        group by (job) (duostore_rpcs_in_flight)
        """,
        "2m",
        "{{ $labels.job }}: no instance can be scraped",
        "Not one instance that was there within the last hour answers Prometheus.",
    ),
    Alert(
        "DuostoreInstanceDown",
        "ticket",
        "up == 0 and on (job, instance) max_over_time(duostore_rpcs_in_flight[1h])",
        "5m",
        "{{ $labels.job }}: {{ $labels.instance }} cannot be scraped",
        "An instance that was there within the last hour does not answer Prometheus.",
    ),
    Alert(
        "DuostoreStoreDown",
        "page",
        _share(
            "job, store",
            f'duostore_store_calls_total{{store!="cache",outcome=~"{_FAULTS}"}}',
            'duostore_store_calls_total{store!="cache"}',
            "5m",
            0.5,
        ),
        "2m",
        "{{ $labels.job }}: most calls of {{ $labels.store }} fail",
        "{{ $value | humanizePercentage }} of calls of {{ $labels.store }} failed in five minutes.",
    ),
    Alert(
        "DuostoreStoreFails",
        "ticket",
        _share(
            "job, store",
            f'duostore_store_calls_total{{outcome=~"{_FAULTS}"}}',
            "duostore_store_calls_total",
            "5m",
            0.01,
        ),
        "5m",
        "{{ $labels.job }}: calls of {{ $labels.store }} fail",
        "{{ $value | humanizePercentage }} of calls of {{ $labels.store }} failed in five minutes.",
    ),
    Alert(
        "DuostoreCacheBypassed",
        "ticket",
        "sum by (job) (rate(duostore_cache_bypasses_total[5m])) > 0",
        "5m",
        "{{ $labels.job }}: calls go on without a memcached node",
        "A node of the cache fails, and what is there is read from DynamoDB.",
    ),
    Alert(
        "DuostoreOutboxStuck",
        "page",
        "duostore:projection_lag:seconds > 60",
        "2m",
        "{{ $labels.job }}: a change waits for {{ $value | humanizeDuration }} to be projected",
        "Readers without a token may see old versions.",
    ),
    Alert(
        "DuostoreNobodyProjects",
        "page",
        """
        time() - max by (job) (
          duostore_background_last_success_timestamp_seconds{work="projector"}
        ) > 60
        """,
        "1m",
        "{{ $labels.job }}: no projector had success for {{ $value | humanizeDuration }}",
        "Saves project in-line; what they miss waits, and readers may see old versions.",
    ),
    Alert(
        "DuostoreBackgroundWorkStopped",
        "ticket",
        "time() - max by (job, work) (duostore_background_last_success_timestamp_seconds) > 600",
        "1m",
        "{{ $labels.job }}: {{ $labels.work }} had no success for {{ $value | humanizeDuration }}",
        "A background work fails each time, or is not running any more.",
    ),
    Alert(
        "DuostoreReadersMisled",
        "page",
        _any("job, kind, drift", f'duostore_drift_total{{drift=~"{_MISLEADING}"}}'),
        "0m",
        "{{ $labels.job }}: {{ $labels.drift }} of {{ $labels.kind }}",
        "Readers were answered what Aurora does not hold, or would have been.",
    ),
    Alert(
        "DuostoreDrift",
        "ticket",
        _any("job, kind, drift", f'duostore_drift_total{{drift!~"{_NO_TICKET}"}}'),
        "0m",
        "{{ $labels.job }}: {{ $labels.drift }} of {{ $labels.kind }}",
        "A store lacks what Aurora holds, or has what cannot be read. Readers are answered by "
        "Aurora.",
    ),
    Alert(
        "DuostoreRepairFails",
        "ticket",
        _any("job, kind", 'duostore_repairs_total{outcome="failed"}'),
        "0m",
        "{{ $labels.job }}: drift of {{ $labels.kind }} could not be repaired",
        "What was found not to agree with Aurora is as it was.",
    ),
    Alert(
        "DuostoreWriteOutcomeUnknown",
        "ticket",
        _any("job, store", 'duostore_store_calls_total{outcome="unknown"}'),
        "0m",
        "{{ $labels.job }}: answers of {{ $labels.store }} to writes were lost",
        "Callers were told that they cannot know whether a write was done.",
    ),
    Alert(
        "DuostoreInternalErrors",
        "ticket",
        _any("job, method", 'duostore_rpc_duration_seconds_count{code="INTERNAL"}'),
        "0m",
        "{{ $labels.job }}: {{ $labels.method }} failed by a fault of the server",
        "A bug or a wrong setting; the log has `call failed` with the request id.",
    ),
    Alert(
        "DuostoreUnreadableEntries",
        "ticket",
        _any("job, store", "duostore_unreadable_entries_total"),
        "0m",
        "{{ $labels.job }}: entries of {{ $labels.store }} cannot be read",
        "Something else writes there, or data is damaged.",
    ),
    Alert(
        "DuostoreQuotaNotAsked",
        "ticket",
        "sum by (job, quota) "
        '(rate(duostore_quota_decisions_total{outcome=~"unavailable|unchecked"}[5m])) > 0',
        "1m",
        "{{ $labels.job }}: quota {{ $labels.quota }} cannot be asked",
        "Callers are refused, or let through unchecked, as the quota's on_outage says.",
    ),
    Alert(
        "DuostoreQuotaSlicesLost",
        "ticket",
        _share(
            "job, quota",
            'duostore_quota_leased_units_total{fate="lost"}',
            'duostore_quota_leased_units_total{fate="granted"}',
            "15m",
            0.1,
        ),
        "15m",
        "{{ $labels.job }}: {{ $value | humanizePercentage }} of the leased units of "
        "{{ $labels.quota }} are lost",
        "Subjects are denied what others were granted and did not use.",
    ),
    Alert(
        "DuostoreQuotaSubjectHot",
        "ticket",
        _share(
            "job",
            'duostore_store_calls_total{op="step_counter",outcome="conflict"}',
            'duostore_store_calls_total{op="step_counter"}',
            "15m",
            0.33,
        ),
        "15m",
        "{{ $labels.job }}: many processes meet on few counters of quotas",
        "{{ $value | humanizePercentage }} of the debits have to be tried again.",
    ),
    Alert(
        "DuostoreFanOutFails",
        "ticket",
        "max by (job) (duostore_fan_out_failing) > 0",
        "5m",
        "{{ $labels.job }}: SQL of a read model fails",
        "Some derived documents are not recomputed; all others are.",
    ),
    Alert(
        "DuostoreFanOutBehind",
        "ticket",
        "max by (job) (duostore_fan_out_oldest_seconds) > 60",
        "5m",
        "{{ $labels.job }}: derived documents are {{ $value | humanizeDuration }} behind",
        "Derived documents show old sources.",
    ),
    Alert(
        "DuostoreQueryHardlyCached",
        "ticket",
        """
        sum by (job, query) (rate(duostore_query_results_total{served_from="cache"}[1h]))
        / (sum by (job, query) (rate(duostore_query_results_total[1h])) > 0.1)
        < 0.5
        """,
        "1h",
        "{{ $labels.job }}: only {{ $value | humanizePercentage }} of the results of "
        "{{ $labels.query }} come from the cache",
        "Aurora answers a query that is meant to be cached.",
    ),
    Alert(
        "DuostoreBackfillFails",
        "ticket",
        _any("job, kind", 'duostore_backfilled_total{outcome="failed"}'),
        "0m",
        "{{ $labels.job }}: entities of {{ $labels.kind }} cannot be projected",
        "A backfill passed them over; their readers are answered by Aurora.",
    ),
    Alert(
        "DuostoreBackfillStalled",
        "ticket",
        """
        sum by (job) (
          increase(duostore_background_rounds_total{work=~"backfill.*",outcome="error"}[10m])
        ) > 0
        and sum by (job) (increase(duostore_backfilled_total[6h])) > 0
        unless sum by (job) (increase(duostore_backfilled_total[10m])) > 0
        """,
        "10m",
        "{{ $labels.job }}: a backfill does not go on",
        "It got on within the last six hours, and now its batches fail.",
    ),
    Alert(
        "DuostoreReadOnly",
        "ticket",
        "max by (job, kind) (duostore_read_only) == 1",
        "1h",
        "{{ $labels.job }}: writes of {{ $labels.kind }} are refused, for an hour by now",
        "Somebody said so by `duostore readonly on`; `*` stands for all kinds.",
    ),
    Alert(
        "DuostoreAuroraPoolExhausted",
        "ticket",
        "sum by (job, instance, pool) (duostore_aurora_waiting) > 0",
        "5m",
        "{{ $labels.job }}: calls wait for connections of {{ $labels.pool }}",
        "All connections of a pool to Aurora of {{ $labels.instance }} are in use all the time.",
    ),
)
