"""The rows of the dashboard that tell what goes on beside calls, and of quotas."""

from __future__ import annotations

from typing import Final

from duostore_server.telemetry.dashboard_panels import (
    GREEN_TO_RED,
    KIND,
    RANGE,
    Panel,
    Query,
    of,
    or_zero,
    rate,
    share,
)

_VERIFIED: Final = 'sum by (age) (increase(duostore_verified_total{job="$job",outcome=%s}[1h]))'
_LOOKS: Final = _VERIFIED % '~"consistent|inconsistent"'
_WRONG: Final = _VERIFIED % '"inconsistent"'

PROJECTION: Final = (
    Panel(
        "Projection lag",
        "The age of the oldest change that is not projected yet, as a background process measured "
        "it within the last minute.",
        "s",
        (Query('duostore:projection_lag:seconds{job="$job"}', "lag"),),
    ),
    Panel(
        "Outbox",
        "Keys whose newest version may not be projected yet.",
        "none",
        (Query(f"max({of('duostore_outbox_depth')})", "keys"),),
    ),
    Panel(
        "Since the last success",
        "How long ago each background work last had success.",
        "s",
        (
            Query(
                "time() - max by (work) "
                f"({of('duostore_background_last_success_timestamp_seconds')})",
                "{{work}}",
            ),
        ),
    ),
    Panel(
        "Rounds that fail",
        "The share of rounds of background work that ended in an error.",
        "percentunit",
        (Query(share("work", "duostore_background_rounds_total", 'outcome="error"'), "{{work}}"),),
    ),
    Panel(
        "Backfills and drafts",
        "Entities that backfills looked at, by outcome, and drafts brought to Aurora, a second.",
        "ops",
        (
            Query(
                or_zero(
                    rate("kind, outcome", of("duostore_backfilled_total", KIND)),
                    "kind",
                    "no backfill",
                ),
                "{{kind}} {{outcome}}",
            ),
            Query(f"sum(rate({of('duostore_heads_consolidated_total')}{RANGE}))", "drafts"),
        ),
    ),
    Panel(
        "Releases",
        "Instances, by the release that they run.",
        "none",
        (Query(f"count by (release) ({of('duostore_build_info')})", "{{release}}"),),
        form="stat",
    ),
)
CONSISTENCY: Final = (
    Panel(
        "Consistency, in nines",
        "Of the saves of the last hour how many were found right, so long after each: 3 is 99.9 %. "
        "9 stands for all; row is of entities taken at random.",
        "none",
        (Query(f"clamp_max(-log10(({_WRONG} or {_LOOKS} * 0) / ({_LOOKS} > 0)), 9)", "{{age}}"),),
        decimals=1,
        most=9,
    ),
    Panel(
        "What the verifier finds",
        "Looks at entities a second, by outcome.",
        "ops",
        (Query(rate("outcome", of("duostore_verified_total")), "{{outcome}}"),),
    ),
    Panel(
        "Drift",
        "What did not agree with Aurora, since the instances began.",
        "none",
        (
            Query(
                or_zero(
                    f"sum by (kind, drift) ({of('duostore_drift_total', KIND)})", "drift", "none"
                ),
                "{{drift}} {{kind}}",
            ),
        ),
        width=4,
        form="stat",
        colours=GREEN_TO_RED,
    ),
    Panel(
        "Repairs",
        "Entities that were projected anew since they did not agree, since the instances began.",
        "none",
        (
            Query(
                or_zero(
                    f"sum by (outcome) ({of('duostore_repairs_total', KIND)})", "outcome", "none"
                ),
                "{{outcome}}",
            ),
        ),
        width=4,
        form="stat",
    ),
)
FAN_OUT: Final = (
    Panel(
        "Fan-out",
        "Changes whose documents are not all found, documents to recompute, and those of either "
        "whose SQL fails.",
        "none",
        (
            Query(f"max({of('duostore_fan_out_changes')})", "changes"),
            Query(f"max({of('duostore_fan_out_stale_documents')})", "stale documents"),
            Query(f"max({of('duostore_fan_out_failing')})", "failing"),
        ),
    ),
    Panel(
        "Fan-out lag",
        "The age of the oldest change or stale document.",
        "s",
        (Query(f"max({of('duostore_fan_out_oldest_seconds')})", "lag"),),
    ),
    Panel(
        "Documents recomputed",
        "Documents a second, by kind and outcome.",
        "ops",
        (
            Query(
                or_zero(
                    rate("kind, outcome", of("duostore_fan_out_recomputed_total", KIND)),
                    "kind",
                    "none",
                ),
                "{{kind}} {{outcome}}",
            ),
        ),
    ),
)
QUOTAS: Final = (
    Panel(
        "Quota decisions",
        "Calls of quotas a second, by outcome.",
        "reqps",
        (
            Query(
                or_zero(
                    rate("quota, outcome", of("duostore_quota_decisions_total")),
                    "quota",
                    "no calls",
                ),
                "{{quota}} {{outcome}}",
            ),
        ),
    ),
    Panel(
        "Denied",
        "The share of calls of a quota that were denied.",
        "percentunit",
        (
            Query(
                or_zero(
                    share("quota", "duostore_quota_decisions_total", 'outcome="denied"'),
                    "quota",
                    "no calls",
                ),
                "{{quota}}",
            ),
        ),
        most=1,
    ),
    Panel(
        "Leased units",
        "Units of leases a second, by their fate.",
        "ops",
        (
            Query(
                or_zero(
                    rate("quota, fate", of("duostore_quota_leased_units_total")),
                    "quota",
                    "no leases",
                ),
                "{{quota}} {{fate}}",
            ),
        ),
    ),
)
