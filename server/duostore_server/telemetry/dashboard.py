"""The dashboard for Grafana: panels in rows, as JSON that Grafana is provisioned with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from duostore_server.telemetry import dashboard_calls as calls
from duostore_server.telemetry import dashboard_tiers as tiers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.telemetry.dashboard_panels import Panel

_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH: Final = 24
_HEIGHT: Final = 8
# Of Grafana 10; later ones bring it up to date when they load it.
_SCHEMA_VERSION: Final = 39


@dataclass(frozen=True, slots=True)
class _Variable:
    """What is chosen above the panels, from the values of a label."""

    name: str
    label: str
    query: str
    several: bool


_VARIABLES: Final = (
    _Variable("job", "Job", "label_values(duostore_rpcs_in_flight, job)", several=False),
    _Variable(
        "instance",
        "Instance",
        'label_values(duostore_rpcs_in_flight{job="$job"}, instance)',
        several=True,
    ),
    _Variable(
        "method",
        "Method",
        'label_values(duostore_rpc_duration_seconds_count{job="$job"}, method)',
        several=True,
    ),
    _Variable("kind", "Kind", 'label_values(duostore_reads_total{job="$job"}, kind)', several=True),
)

_ROWS: Final = (
    ("Objectives", calls.OBJECTIVES),
    ("Methods", calls.METHODS),
    ("Stores", calls.STORES),
    ("Reads and queries", calls.READS),
    ("Projection and background work", tiers.PROJECTION),
    ("Agreement of the stores", tiers.CONSISTENCY),
    ("Fan-out", tiers.FAN_OUT),
    ("Quotas", tiers.QUOTAS),
)


def dashboard() -> str:
    """Return the dashboard, as JSON; it needs the rules of ``duostore slo rules``."""
    made = {
        "annotations": {"list": []},
        "editable": True,
        "graphTooltip": 1,
        "links": [],
        "panels": list(_panels()),
        "refresh": "30s",
        "schemaVersion": _SCHEMA_VERSION,
        "tags": ["duostore"],
        "templating": {"list": list(_variables())},
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "title": "Duostore",
        "uid": "duostore",
        "version": 1,
    }
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def _panels() -> Iterator[dict[str, Any]]:
    y = number = 0
    for title, panels in _ROWS:
        number += 1
        yield {
            "collapsed": False,
            "gridPos": {"h": 1, "w": _WIDTH, "x": 0, "y": y},
            "id": number,
            "panels": [],
            "title": title,
            "type": "row",
        }
        y += 1
        x = 0
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y = 0, y + _HEIGHT
            number += 1
            place = {"h": _HEIGHT, "w": panel.width, "x": x, "y": y}
            yield _panel(panel, number, place)
            x += panel.width
        y += _HEIGHT


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "datasource": _SOURCE,
        "description": panel.description,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "gridPos": place,
        "id": number,
        "options": _options(panel),
        "targets": [
            {
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "instant": panel.form == "stat",
                "legendFormat": query.legend,
                "range": panel.form != "stat",
                "refId": chr(ord("A") + position),
            }
            for position, query in enumerate(panel.queries)
        ],
        "title": panel.title,
        "type": panel.form,
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.least is not None:
        defaults["min"] = panel.least
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.words:
        options = {str(value): {"text": text} for value, text in panel.words.items()}
        defaults["mappings"] = [{"type": "value", "options": options}]
    first, *steps = panel.colours or ((0, "text"),)
    defaults["color"] = {"mode": "thresholds" if panel.form == "stat" else "palette-classic"}
    defaults["thresholds"] = {
        "mode": "absolute",
        "steps": [
            {"color": first[1], "value": None},
            *({"color": colour, "value": value} for value, colour in steps),
        ],
    }
    if panel.form == "timeseries":
        defaults["custom"] = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never"}
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    if panel.form == "stat":
        return {
            "colorMode": "background" if panel.colours else "none",
            "graphMode": "none",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "value_and_name",
        }
    return {
        "legend": {"calcs": ["lastNotNull"], "displayMode": "table", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "label": "Prometheus",
        "name": "datasource",
        "query": "prometheus",
        "type": "datasource",
    }
    for variable in _VARIABLES:
        described: dict[str, Any] = {
            "datasource": _SOURCE,
            "definition": variable.query,
            "label": variable.label,
            "name": variable.name,
            "query": {"query": variable.query, "refId": variable.name},
            "refresh": 2,
            "sort": 1,
            "type": "query",
        }
        if variable.several:
            chosen = {"selected": True, "text": ["All"], "value": ["$__all"]}
            described |= {"allValue": ".*", "current": chosen, "includeAll": True, "multi": True}
        yield described
