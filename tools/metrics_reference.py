"""Writes docs/metrics.md: every metric of the service, as the code has them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics import MetricWrapperBase

from duostore_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

REFERENCE: Final = Path(__file__).parents[1] / "docs" / "metrics.md"

_HEAD: Final = """# Metrics

Every metric of the service, in the format of Prometheus at `metrics.address`, path `/metrics`.
[Operations](operations.md#metrics) says what to watch. Written by
`python -m tools.metrics_reference`.

A histogram has the series `_bucket`, `_count` and `_sum`. `duostore serve` puts together what its
processes say, as the last column has it. No key, id, tenant or caller is ever a label; kinds,
quotas and queries are, since the configuration bounds them.

| metric | type | labels | unit | meaning | of several processes |
|---|---|---|---|---|---|
"""
# By the end of the name; the first that fits.
_UNITS: Final = (
    ("_timestamp_seconds", "seconds since 1970"),
    ("_seconds", "seconds"),
    ("_ratio", "share, 0 to 1"),
    ("_burn_rate", "ratio"),
    ("_holds", "0 or 1"),
    ("_read_only", "0 or 1"),
    ("_info", "1"),
)
_OVER_PROCESSES: Final = {
    "livesum": "the sum of those that run",
    "livemax": "the highest of those that run",
    "mostrecent": "what was set last",
}


def render() -> str:
    """Return the whole page."""
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in _rows())


def _rows() -> Iterator[tuple[str, ...]]:
    for metric in vars(Metrics(CollectorRegistry())).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        unit = next((unit for end, unit in _UNITS if name.endswith(end)), "count")
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"  # noqa: SLF001 - known nowhere else
        over = _OVER_PROCESSES[_mode(metric)] if isinstance(metric, Gauge) else "the sum"
        yield f"`{name}`", family.type, labels, unit, family.documentation, over


def _mode(gauge: Gauge) -> str:
    return gauge._multiprocess_mode  # noqa: SLF001 - known nowhere else


def main() -> int:
    """Write the page."""
    REFERENCE.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
