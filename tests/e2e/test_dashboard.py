"""Every query of the dashboard and every rule answers with data, asked of a real run."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from duostore.v1 import admin_pb2, data_access_pb2
from duostore.v1.entity_pb2 import EntityKey
from tests.support.administrator import Administrator
from tests.support.installed import MissingProgramError, prometheus
from tests.support.prometheus import PrometheusServer
from tests.support.server import running
from tests.support.service import CALL_SECONDS, Caller, Service, struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "proposals"
RULES = ROOT / "deploy" / "prometheus" / "duostore.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "duostore.json"
DATA_SECONDS = 60.0
# As Grafana does; of a rate, four scrapes at least.
CHOSEN = {
    "$__rate_interval": "10s",
    "$job": "duostore",
    "$instance": ".*",
    "$method": ".*",
    "$kind": ".*",
}


def example_kinds() -> str:
    """Return the kinds, queries and quotas of the example, with paths that hold anywhere."""
    text = (EXAMPLE / "duostore.toml").read_text(encoding="utf-8")
    tables = text[text.index("[kinds.proposal]") :]
    return re.sub(r'"((?:schemas|sql|transforms)/)', rf'"{EXAMPLE}/\1', tables)


@pytest.fixture
def watched(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[Service, PrometheusServer]]:
    """The service of the example, and a Prometheus that scrapes it."""
    try:
        prometheus()
    except MissingProgramError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("DUOSTORE__AURORA__MIGRATIONS", str(EXAMPLE / "migrations"))
    monkeypatch.setenv("DUOSTORE__ADMIN__OPEN", "true")
    folder = tmp_path / "prometheus"
    folder.mkdir()
    with (
        Service(
            tmp_path,
            dsn=postgres.create_database(),
            endpoint_url=dynamodb.endpoint_url,
            prefix="dashboard_",
            node=memcached.address,
            kinds=example_kinds(),
            verifier=True,
        ) as service,
        running(
            PrometheusServer(
                folder, scraped=service.metrics_port, rules=RULES.read_text(encoding="utf-8")
            )
        ) as scraping,
    ):
        yield service, scraping


class Users:
    """Those who use the example: a round of theirs makes every call of the API at least once."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._proposals = Caller(channel)
        self._editors = Caller(channel, kind="editor_state")
        self._countries = Caller(channel, kind="country")
        self._stub = self._proposals.stub
        self._admin = Administrator(channel)
        self._round = 0

    def go_round(self) -> None:
        """Make all calls once."""
        self._round += 1
        id_ = f"p{self._round}"
        self._write(id_)
        self._read(id_)
        self._count()
        self._operate(id_)

    def _write(self, id_: str) -> None:
        proposal = {"title": f"Roof {id_}", "status": "draft", "author": "alice"}
        self._proposals.save(id_, proposal)
        self._proposals.snapshot(id_, proposal)
        andorra = {"alpha_2": "AD", "alpha_3": "AND", "numeric": "020", "name": "Andorra"}
        self._countries.save("AD", {**andorra, "flag": id_})
        self._editors.save("alice", {"proposal": id_, "cursor": {"section": 0, "offset": 1}})
        gone = data_access_pb2.SaveMutation(
            key=self._proposals.key(f"gone-{id_}"), data=struct(proposal)
        )
        self._proposals.transact(data_access_pb2.Mutation(save=gone))
        self._proposals.delete(f"gone-{id_}")

    def _read(self, id_: str) -> None:
        for _ in range(3):
            self._proposals.get(id_)
            self._proposals.query("proposals_by_status", {"status": "draft"})
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            self._proposals.get("nobody's")
        self._proposals.batch_get([id_, "nobody's"])
        self._proposals.get_snapshot(id_)
        self._proposals.list_snapshots(id_)
        request = data_access_pb2.ExportRequest(
            query="subdivisions_by_country", params=struct({"country": "AD"})
        )
        assert list(self._stub.Export(request, timeout=CALL_SECONDS))

    def _count(self) -> None:
        consume = data_access_pb2.QuotaRequest(quota="api_calls", subject="alice", cost=1)
        self._stub.Quota(consume, timeout=CALL_SECONDS)
        reserve = data_access_pb2.QuotaRequest(
            quota="ai_tokens", subject="alice", cost=100, mode=data_access_pb2.MODE_RESERVE
        )
        reservation = self._stub.Quota(reserve, timeout=CALL_SECONDS).reservation
        settle = data_access_pb2.SettleQuotaRequest(reservation=reservation, cost=70)
        self._stub.SettleQuota(settle, timeout=CALL_SECONDS)

    def _operate(self, id_: str) -> None:
        self._admin.explain("proposal", id_)
        self._admin.flags()
        if self._round == 1:
            self._admin.check("proposal", sample=10)
            self._admin.backfill("template", admin_pb2.BackfillRequest.ACTION_START)
            self._admin.set_read_only("language", "to see it on the dashboard")
        for kind, key in (("country_card", "AD"), ("author_card", "alice")):
            request = data_access_pb2.GetRequest(key=EntityKey(kind=kind, id=key))
            try:
                self._stub.Get(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                # It is built beside the calls.
                assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017 - else it is there

    def status(self) -> admin_pb2.GetStatusResponse:
        """Return how the service is."""
        return self._admin.status()


def panel_queries() -> dict[str, str]:
    """Return the queries of the dashboard as Grafana sends them, by panel."""
    found: dict[str, str] = {}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            expr: str = target["expr"]
            for variable, value in CHOSEN.items():
                expr = expr.replace(variable, value)
            assert "$" not in expr
            found[f"{panel['title']}, {target['refId']}"] = expr
    return found


def recordings(rules: list[dict[str, Any]]) -> dict[str, str]:
    return {f"{rule['name']} {rule.get('labels', '')}": rule["query"] for rule in rules}


def test_every_query_and_every_rule_answers_with_data(
    watched: tuple[Service, PrometheusServer],
) -> None:
    service, scraping = watched
    rules = scraping.rules()
    recorded = [rule for rule in rules if rule["type"] == "recording"]
    wanted = {**panel_queries(), **recordings(recorded)}
    assert len(wanted) > 60
    with service.channel() as channel:
        users = Users(channel)
        end = time.monotonic() + DATA_SECONDS
        while wanted and time.monotonic() < end:
            users.go_round()
            wanted = {name: expr for name, expr in wanted.items() if not scraping.query(expr)}
        status = users.status()
    assert wanted == {}
    # What GetStatus tells is what Prometheus is told.
    assert {slo.name for slo in status.slos} == {
        *("read_latency", "availability", "projection_lag", "consistency")
    }
    assert all(slo.holds and slo.ratio == 1 for slo in status.slos if slo.name == "availability")
    assert {store.store for store in status.stores if store.calls} != set()
    # Of alerts, none fires in a service that is well, and each can be evaluated.
    evaluated = scraping.rules()
    assert {rule["name"]: rule["lastError"] for rule in evaluated if rule.get("lastError")} == {}
    assert {rule["health"] for rule in evaluated} == {"ok"}
    firing = [rule["name"] for rule in evaluated if rule.get("state") == "firing"]
    assert firing == []
