"""The client's README, run as it is written."""

from __future__ import annotations

import re
import secrets
import shutil
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import duostore
from duostore.v1 import data_access_pb2, entity_pb2
from tests.support.in_process import in_process
from tests.support.results import first_portion, page, portion
from tests.support.scripted_service import (
    ScriptedService,
    client_of,
    hold,
    reason,
    serving,
    status,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

ROOT = Path(__file__).parents[2]
README = ROOT / "clients" / "python" / "README.md"
DEMO = ROOT / "examples" / "proposals" / "duostore.toml"
ADDRESS = "127.0.0.1:50051"
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```", README.read_text(encoding="utf-8"))
SHELL = [block for language, block in BLOCKS if language == "sh"]
PYTHON = [block for language, block in BLOCKS if language == "python"]
(
    FIRST,
    OPENING,
    READING,
    WRITING,
    TRANSACTING,
    DRAFTING,
    QUERYING,
    EXPORTING,
    LIMITING,
    FAILING,
    RESERVING,
    CONNECTING,
) = PYTHON
HURRY = "timeout=0.25"
# Where a busy machine is not to be taken for a server that hangs.
UNHURRIED = FAILING.replace(HURRY, "timeout=30")


def found(request: Any, _: grpc.ServicerContext) -> Message:
    response = data_access_pb2.GetResponse(entity=entity_pb2.Entity(key=request.key, version=7))
    response.entity.data.update({"title": "A new roof", "status": "draft"})
    return response


def all_missing(request: Any, _: grpc.ServicerContext) -> Message:
    return data_access_pb2.BatchGetResponse(missing=request.keys)


def test_the_first_save_and_get_take_under_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService()
    service.script("Save", data_access_pb2.SaveResponse(version=7))
    service.script("Get", found)
    with serving(service) as (_, target):
        exec(FIRST.replace(ADDRESS, target), {})
    assert capsys.readouterr().out == "7 A new roof unknown\n"
    save, get = (asked.request for asked in service.asked)
    assert save.data["status"] == "draft"
    assert get.min_version == 7
    lines = [line for line in (SHELL[0] + FIRST).splitlines() if line]
    assert len(lines) < 10


def test_reading_as_written() -> None:
    service = ScriptedService()
    service.script("Get", *[found] * 4)
    service.script("BatchGet", *[all_missing] * 4)
    names: dict[str, Any] = {"duostore": duostore}
    with client_of(service) as client:
        exec(READING, names | {"client": client}, names)
    assert [asked.request.WhichOneof("freshness") for asked in service.asked[:4]] == [
        None,
        None,
        "min_version",
        "strong",
    ]
    assert sum(len(asked.request.keys) for asked in service.asked[4:]) == 2000
    assert names["found"] == {}


def test_writing_as_written() -> None:
    service = ScriptedService()
    service.script("Get", found)
    service.script("Save", *[data_access_pb2.SaveResponse(version=8)] * 2)
    service.script("Delete", data_access_pb2.DeleteResponse(version=9))
    with client_of(service) as client:
        exec(WRITING, {"client": client})
    _, first, _, second = (asked.request for asked in service.asked)
    assert (first.if_version, first.data["status"]) == (7, "published")
    assert second.if_absent


def applied(request: Any, _: grpc.ServicerContext) -> Message:
    """Answer each mutation with the version 5."""
    names = [getattr(part, part.WhichOneof("mutation")).key for part in request.mutations]
    results = [data_access_pb2.MutationResult(key=key, version=5) for key in names]
    return data_access_pb2.TransactResponse(results=results)


def test_a_transaction_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService()
    mismatch = reason("VERSION_MISMATCH", expected="9", version="10", mutation="1")
    service.script("Save", *[data_access_pb2.SaveResponse(version=9)] * 4)
    service.script("Transact", applied, status(grpc.StatusCode.ABORTED, "no", mismatch))
    names: dict[str, Any] = {"duostore": duostore, "changed": {"title": "A new roof"}}
    names["saved"] = duostore.Saved(4, datetime.now(UTC), projected=True)
    with client_of(service) as client:
        exec(TRANSACTING, names | {"client": client})
        exec(TRANSACTING, names | {"client": client})
    assert capsys.readouterr().out == "[5, 5, 5]\nmutation 1 was refused: VERSION_MISMATCH\n"
    save, delete, check = service.asked[2].request.mutations
    assert (save.save.if_version, save.save.data["status"]) == (4, "accepted")
    assert (delete.delete.if_version, check.check.if_version) == (9, 9)


def test_drafting_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService()
    key = entity_pb2.EntityKey(kind="proposal", id="p-1")
    snapshot = entity_pb2.EntitySnapshot(key=key, sequence=3)
    service.script("Get", found)
    service.script("Snapshot", data_access_pb2.SnapshotResponse(sequence=3))
    service.script("GetSnapshot", data_access_pb2.GetSnapshotResponse(snapshot=snapshot))
    service.script("ListSnapshots", data_access_pb2.ListSnapshotsResponse(snapshots=[snapshot]))
    service.script("Save", data_access_pb2.SaveResponse(version=2))
    with client_of(service) as client:
        exec(DRAFTING, {"client": client})
    assert capsys.readouterr().out == "3 1970-01-01 00:00:00+00:00 {}\n"
    published = service.asked[-1].request
    assert (published.from_snapshot, published.if_version) == (3, 7)


def test_querying_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService()
    columns = {"id": "text", "title": "text"}
    service.script("Query", page([["p-1", "A new roof"]], columns))
    with client_of(service) as client:
        exec(QUERYING, {"client": client})
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "p-1 A new roof",
        "1 drafts as of 2026-01-02 03:04:05.678901+00:00, from aurora",
    ]
    [asked] = service.asked
    assert asked.request.params["status"] == "draft"
    since = datetime.fromisoformat(asked.request.params["since"])
    assert timedelta(days=29) < datetime.now(UTC) - since < timedelta(days=31)


def test_exporting_as_written() -> None:
    service = ScriptedService()
    columns = {"id": "text", "title": "text"}
    service.script("Export", [first_portion([["p-1", "A"]], columns), portion([["p-2", "B"]])])
    names: dict[str, Any] = {}
    with client_of(service) as client:
        exec(EXPORTING, names | {"client": client}, names)
    assert names["titles"] == ["A", "B"]


def test_limiting_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService()
    denied = data_access_pb2.QuotaResponse(limit=1000)
    denied.retry_after.FromMilliseconds(1500)
    allowed = data_access_pb2.QuotaResponse(allowed=True)
    service.script("Quota", denied, allowed, allowed, allowed)
    with client_of(service) as client:
        exec(LIMITING, {"client": client})
        exec(LIMITING, {"client": client})
    assert capsys.readouterr().out == "too many requests; try again in 0:00:01.500000\n"
    modes = [asked.request.mode for asked in service.asked]
    assert modes == [data_access_pb2.MODE_CONSUME, data_access_pb2.MODE_PEEK] * 2


@pytest.mark.parametrize(
    "reply",
    [
        status(grpc.StatusCode.UNAVAILABLE, "connection reset"),
        status(grpc.StatusCode.UNAVAILABLE, "down", reason("STORE_UNAVAILABLE")),
        status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", reason("OVERLOADED")),
        hold,
    ],
    ids=["connection", "store", "overload", "silence"],
)
def test_a_limiter_that_nobody_answers_fails_open(reply: Any) -> None:
    service = ScriptedService()
    denied, mistake = data_access_pb2.QuotaResponse(limit=1), reason("INVALID_REQUEST")
    refused = status(grpc.StatusCode.INVALID_ARGUMENT, "no such quota", mistake)
    service.script("Quota", reply, denied, refused)
    with client_of(service) as client:
        names: dict[str, Any] = {"duostore": duostore, "client": client}
        exec(FAILING if reply is hold else UNHURRIED, names)
        assert names.pop("allowed") is True
        exec(UNHURRIED, names)
        assert names.pop("allowed") is False
        with pytest.raises(duostore.InvalidRequestError):
            exec(UNHURRIED, names)
    assert (service.asked[0].remaining < 1) is (reply is hold)


def test_reserving_as_written() -> None:
    service = ScriptedService()
    reserved = data_access_pb2.QuotaResponse(allowed=True, reservation="r1")
    service.script("Quota", reserved, data_access_pb2.QuotaResponse(limit=1000))
    service.script("SettleQuota", data_access_pb2.SettleQuotaResponse(committed=4))
    with client_of(service) as client:
        exec(RESERVING, {"client": client})
        with pytest.raises(duostore.QuotaDeniedError):
            exec(RESERVING, {"client": client})
    reserve, settle, _ = (asked.request for asked in service.asked)
    assert (reserve.cost, reserve.mode) == (4000, data_access_pb2.MODE_RESERVE)
    assert (settle.reservation, settle.cost) == ("r1", 4)


def test_connecting_as_written() -> None:
    names: dict[str, Any] = {"duostore": duostore, "grpc": grpc, "token": "t"}
    exec(CONNECTING, names)
    names["client"].close()


def test_every_quota_query_and_kind_is_one_of_the_demo() -> None:
    demo = tomllib.loads(DEMO.read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    quotas = set(re.findall(r"client\.\w*quota\(\"(\w+)\"", text))
    assert quotas == set(demo["quotas"])
    queries = set(re.findall(r"client\.(?:query|export)\(\"(\w+)\"", text))
    assert queries
    assert queries <= set(demo["queries"])
    of_kinds = r"(?:client\.(?!\w*quota|query|export)\w+|duostore\.[A-Z]\w+)\(\s*\"(\w+)\""
    kinds = set(re.findall(of_kinds, text))
    assert kinds == {"proposal", "template"}
    assert kinds < set(demo["kinds"])


def test_all_of_it_runs_in_its_order_against_the_demo(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"t{secrets.token_hex(4)}"
    config = shutil.copytree(DEMO.parent, tmp_path / "proposals") / DEMO.name
    text = config.read_text(encoding="utf-8")
    # The one part of it that others on the same memcached share.
    assert text.count('namespace = "proposals"') == 1
    config.write_text(text.replace('namespace = "proposals"', f'namespace = "{name}"'), "utf-8")
    names: dict[str, Any] = {}
    with in_process(
        config,
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"{name}_",
        node=memcached.address,
    ) as running:
        for block in PYTHON[:-1]:
            exec(block.replace(ADDRESS, running.target).replace(HURRY, "timeout=30"), names)
        with names["client"] as client:
            published = client.get("proposal", "p-1", strong=True)
            used = client.peek_quota("api_calls", "ann")
            tokens = client.peek_quota("ai_tokens", "ann")
    first, results, kept, found, counted = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"1 A new roof (cache|dynamodb)", first)
    assert results == "[5, 2, 1]"
    assert kept.startswith("1 ")
    assert found == "p-1 A new roof, and a"
    assert re.fullmatch(r"1 drafts as of .*, from aurora", counted)
    assert names["titles"] == ["A new roof, and a"]
    assert (published.version, published.data["title"]) == (6, "A new roof, and a")
    assert (names["allowed"], used.limit - used.remaining) == (True, 2)
    assert tokens.limit - tokens.remaining == 4, "the rest was given back"


def test_every_error_is_explained() -> None:
    text = README.read_text(encoding="utf-8")
    raised = [name for name in duostore.__all__ if name.endswith("Error")]
    assert [
        name for name in raised if f"`{name}`" not in text and f"`duostore.{name}`" not in text
    ] == []
    named = set(re.findall(r"`(\w+Error)`", text)) - {"ValueError"}
    assert named <= set(duostore.__all__)
