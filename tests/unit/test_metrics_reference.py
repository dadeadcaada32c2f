"""The page of metrics is what the code says, and the code keeps to its own rules."""

from __future__ import annotations

import re

from prometheus_client import CollectorRegistry

from duostore_server.domain.drift import Drift
from duostore_server.telemetry.metrics import Metrics
from tools.metrics_reference import REFERENCE, render

# What a label may never be: there is no end of them.
UNBOUNDED = {"id", "key", "tenant", "subject", "caller"}


def rows() -> list[list[str]]:
    return [line.split(" | ") for line in render().splitlines() if line.startswith("| `duostore_")]


def test_the_page_of_metrics_is_fresh() -> None:
    written = REFERENCE.read_text(encoding="utf-8")
    assert written == render(), "run `python -m tools.metrics_reference`"


def test_every_metric_of_the_registry_has_its_row() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
    }
    listed = [re.findall(r"`(\w+)`", row[0])[0] for row in rows()]
    assert sorted(listed) == sorted(families)


def test_each_row_has_labels_a_unit_and_a_sentence() -> None:
    for name, _, labels, unit, meaning, over in rows():
        assert not UNBOUNDED & set(re.findall(r"`(\w+)`", labels)), name
        assert unit, name
        assert meaning.endswith("."), name
        assert "|" not in over.rstrip(" |"), name


def test_a_kind_that_is_taken_again_is_shown_as_such() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def shown(kind: str) -> float | None:
        return registry.get_sample_value("duostore_read_only", {"kind": kind})

    metrics.read_only({"proposal", ""})
    assert (shown("proposal"), shown("*")) == (1, 1)
    metrics.read_only({"proposal"})
    assert (shown("proposal"), shown("*")) == (1, 0)
    metrics.read_only(())
    assert (shown("proposal"), shown("*")) == (0, 0)


def test_an_objective_of_which_nothing_was_counted_shows_no_share() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.slo("availability", ratio=None, ratio_hour=0.5, burn_rate=2.0, holds=False)

    def shown(window: str) -> float | None:
        labels = {"slo": "availability", "window": window}
        return registry.get_sample_value("duostore_slo_good_ratio", labels)

    # Not a number is equal to nothing, itself included.
    assert shown("5m") != shown("5m")
    assert shown("1h") == 0.5
    assert registry.get_sample_value("duostore_slo_holds", {"slo": "availability"}) == 0


def test_what_the_verifier_finds_is_counted_by_what_it_is() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for drift in Drift:
        metrics.drifted("proposal", drift)
    metrics.drifted("proposal", Drift.CACHE_CONTENT)
    metrics.repaired("proposal", ok=True)
    metrics.repaired("proposal", ok=False)

    def shown(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"kind": "proposal", **labels})

    assert shown("duostore_drift_total", drift="cache_content") == 2
    assert shown("duostore_drift_total", drift="projection_orphan") == 1
    assert shown("duostore_repairs_total", outcome="repaired") == 1
    assert shown("duostore_repairs_total", outcome="failed") == 1
