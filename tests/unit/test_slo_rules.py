"""The rules for Prometheus and the dashboard are those of the code, and ask for what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from duostore_server.config import load, objectives
from duostore_server.domain.drift import Drift
from duostore_server.telemetry.dashboard import dashboard
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.rule_files import Group, Recording, written
from duostore_server.telemetry.slo_rules import rules
from tests.support.promql import grouped, selectors

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "proposals" / "duostore.toml"
RULES = ROOT / "deploy" / "prometheus" / "duostore.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "duostore.json"
OPERATIONS = ROOT / "docs" / "operations.md"
# What Prometheus adds to all that it scrapes, and to alerts.
ADDED = {"job", "instance"}
OF_ALERTS = {"alertname", "alertstate", "severity", "slo"}

OBJECTIVES = objectives(load(EXAMPLE, {}))


def of_rules(text: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def queries_of(text: str) -> list[str]:
    return [
        target["expr"]
        for panel in json.loads(text)["panels"]
        for target in panel.get("targets", ())
    ]


def known_series() -> dict[str, set[str]]:
    """Return the labels of every series that is exported or recorded."""
    known: dict[str, set[str]] = {"up": set(ADDED), "ALERTS": OF_ALERTS | ADDED}
    for metric in vars(Metrics(CollectorRegistry())).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        (family,) = metric.describe()
        labels = {*metric._labelnames, *ADDED}
        if family.type == "histogram":
            known |= {f"{family.name}_{part}": labels for part in ("count", "sum")}
            known[f"{family.name}_bucket"] = {*labels, "le"}
        else:
            known[f"{family.name}_total" if family.type == "counter" else family.name] = labels
    for rule in of_rules(rules(OBJECTIVES)):
        if "record" in rule:
            known.setdefault(rule["record"], {"job", "slo"})
    return known


EXPRESSIONS = [
    *(rule["expr"] for rule in of_rules(rules(OBJECTIVES))),
    *queries_of(dashboard()),
]


def printed_by(*arguments: str) -> str:
    """Return what a command prints, in a process of its own: it says how its process logs."""
    command = [sys.executable, "-m", "duostore_server.cli.main", "slo", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_committed_rules_are_those_of_the_example() -> None:
    printed = printed_by("rules", "--config", str(EXAMPLE))
    advice = "duostore slo rules --config examples/proposals/duostore.toml > deploy/prometheus/..."
    assert RULES.read_text(encoding="utf-8") == printed, advice


def test_the_committed_dashboard_is_that_of_the_code() -> None:
    printed = printed_by("dashboard")
    advice = "duostore slo dashboard > deploy/grafana/dashboards/duostore.json"
    assert DASHBOARD.read_text(encoding="utf-8") == printed, advice


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_query_asks_for_series_and_labels_that_there_are(expr: str) -> None:
    known = known_series()
    chosen = selectors(expr)
    assert chosen or expr.startswith("vector(")
    for selector in chosen:
        assert selector.metric in known
        assert selector.labels - known[selector.metric] == set(), selector.text
    everything = set().union(*(known[selector.metric] for selector in chosen))
    assert grouped(expr) - everything == set()


def test_values_of_labels_in_rules_are_those_of_the_code() -> None:
    named = set(re.findall(r'drift=~"([^"]+)"', RULES.read_text()))
    assert named == {"|".join(drift.value for drift in Drift if drift.misleads)}
    within = set(re.findall(r'le="([^"]+)"', RULES.read_text()))
    metrics = Metrics(CollectorRegistry())
    metrics.rpc_seconds.labels("Get", "OK").observe(1)
    (family,) = metrics.rpc_seconds.collect()
    assert within < {sample.labels.get("le") for sample in family.samples}


@pytest.mark.parametrize("seconds", [0.00025, 0.001, 0.05, 1.0, 30.0])
def test_bounds_are_written_as_the_client_of_prometheus_does(seconds: float) -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.rpc_seconds.labels("Get", "OK").observe(1)
    (family,) = metrics.rpc_seconds.collect()
    made = rules(
        replace(OBJECTIVES, read_latency=replace(OBJECTIVES.read_latency, threshold=seconds))
    )
    (within,) = set(re.findall(r'le="([^"]+)"', made))
    assert within in {sample.labels.get("le") for sample in family.samples}


def burns(window: timedelta) -> list[tuple[str, str, str]]:
    made = of_rules(rules(replace(OBJECTIVES, window=window)))
    return [
        (rule["labels"]["severity"], rule["labels"]["long"], rule["expr"].partition(" > ")[2])
        for rule in made
        if rule.get("alert") == "DuostoreSloBurn"
    ]


def test_budgets_burn_too_fast_as_the_sre_workbook_says() -> None:
    assert burns(timedelta(days=30)) == [
        ("page", "1h", "14.4 and duostore:slo_burn:rate5m > 14.4"),
        ("page", "6h", "6 and duostore:slo_burn:rate30m > 6"),
        ("ticket", "1d", "3 and duostore:slo_burn:rate2h > 3"),
        ("ticket", "3d", "1 and duostore:slo_burn:rate6h > 1"),
    ]


def test_over_another_window_the_same_share_of_the_budget_counts_but_none_that_lasts() -> None:
    factors = [factor.partition(" ")[0] for _, _, factor in burns(timedelta(days=7))]
    assert factors == ["3.36", "1.4", "1", "1"]
    assert burns(timedelta(days=90))[0][2].startswith("43.2 ")
    assert "duostore:slo_burn:rate7d" in rules(replace(OBJECTIVES, window=timedelta(days=7)))


def test_every_alert_is_explained_and_no_other() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    section = text.partition("\n## SLOs and alerts\n")[2]
    told = re.findall(r"(?m)^\| `(Duostore\w+)` \|", section)
    alerts = [rule["alert"] for rule in of_rules(rules(OBJECTIVES)) if "alert" in rule]
    assert sorted(told) == sorted(set(alerts))


def test_every_alert_has_a_severity_and_says_what_it_means_of_which_job() -> None:
    for rule in of_rules(rules(OBJECTIVES)):
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert rule["annotations"]["summary"].startswith("{{ $labels.job }}: ")
            assert rule["annotations"]["description"].endswith(".")


def test_every_panel_says_what_it_shows_in_which_unit() -> None:
    panels = [panel for panel in json.loads(dashboard())["panels"] if panel["type"] != "row"]
    assert len(panels) > 30
    for panel in panels:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
    ids = [panel["id"] for panel in json.loads(dashboard())["panels"]]
    assert len(set(ids)) == len(ids)


def test_no_two_panels_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(dashboard())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_variables_of_queries_are_declared() -> None:
    declared = {one["name"] for one in json.loads(dashboard())["templating"]["list"]}
    used = set(re.findall(r"\$(\w+)", " ".join(queries_of(dashboard()))))
    assert used - {"__rate_interval"} == declared - {"datasource"}


def test_what_is_provisioned_leads_to_the_dashboard() -> None:
    grafana = ROOT / "deploy" / "grafana" / "provisioning"
    (provider,) = yaml.safe_load((grafana / "dashboards" / "duostore.yml").read_text())["providers"]
    assert provider["type"] == "file"
    (source,) = yaml.safe_load((grafana / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    scraping = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    # The shortest range of a rate is four scrapes.
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    assert scraping["rule_files"] == [RULES.name]


def test_a_file_of_rules_is_yaml_whatever_the_text() -> None:
    odd = 'a: "b" # {{ $labels.x }} \\ \u00e9'
    text = written(odd, [Group("g", "30s", [Recording("r", "a\n  + b", {"l": odd})])], "r")
    (rule,) = of_rules(text)
    assert rule == {"record": "r", "expr": "a\n  + b", "labels": {"l": odd}}
