"""The client's README, run as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

import duostore
from duostore.v1 import data_access_pb2, entity_pb2
from tests.support.scripted_service import ScriptedService, client_of, reason, serving, status

if TYPE_CHECKING:
    from google.protobuf.message import Message

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```", README.read_text(encoding="utf-8"))
SHELL = [block for language, block in BLOCKS if language == "sh"]
PYTHON = [block for language, block in BLOCKS if language == "python"]
FIRST, READING, WRITING, TRANSACTING, DRAFTING, LIMITING, RESERVING, CONNECTING = PYTHON


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
        exec(FIRST.replace("127.0.0.1:50051", target), {})
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
    service.script("Transact", applied, status(grpc.StatusCode.ABORTED, "no", mismatch))
    with client_of(service) as client:
        exec(TRANSACTING, {"duostore": duostore, "client": client})
        exec(TRANSACTING, {"duostore": duostore, "client": client})
    assert capsys.readouterr().out == ("[5, 5, 5, 5]\nmutation 1 was refused: VERSION_MISMATCH\n")


def test_drafting_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    service = ScriptedService()
    key = entity_pb2.EntityKey(kind="proposal", id="p-1")
    snapshot = entity_pb2.EntitySnapshot(key=key, sequence=3)
    service.script("Snapshot", data_access_pb2.SnapshotResponse(sequence=3))
    service.script("GetSnapshot", data_access_pb2.GetSnapshotResponse(snapshot=snapshot))
    service.script("ListSnapshots", data_access_pb2.ListSnapshotsResponse(snapshots=[snapshot]))
    service.script("Save", data_access_pb2.SaveResponse(version=2))
    with client_of(service) as client:
        exec(DRAFTING, {"client": client})
    assert capsys.readouterr().out == "3 1970-01-01 00:00:00+00:00 {}\n"
    published = service.asked[-1].request
    assert (published.from_snapshot, published.if_version) == (3, 1)


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


def test_reserving_as_written() -> None:
    service = ScriptedService()
    reserved = data_access_pb2.QuotaResponse(allowed=True, reservation="r1")
    service.script("Quota", reserved, data_access_pb2.QuotaResponse(limit=1000))
    service.script("SettleQuota", data_access_pb2.SettleQuotaResponse(committed=3))
    with client_of(service) as client:
        exec(RESERVING, {"client": client, "generate": lambda: 3})
        with pytest.raises(duostore.QuotaDeniedError):
            exec(RESERVING, {"client": client, "generate": lambda: 3})
    reserve, settle, _ = (asked.request for asked in service.asked)
    assert (reserve.cost, reserve.mode) == (4000, data_access_pb2.MODE_RESERVE)
    assert (settle.reservation, settle.cost) == ("r1", 3)


def test_connecting_as_written() -> None:
    names: dict[str, Any] = {"duostore": duostore, "grpc": grpc, "token": "t"}
    exec(CONNECTING, names)
    names["client"].close()


def test_every_error_is_explained() -> None:
    text = README.read_text(encoding="utf-8")
    raised = [name for name in duostore.__all__ if name.endswith("Error")]
    assert [
        name for name in raised if f"`{name}`" not in text and f"`duostore.{name}`" not in text
    ] == []
    named = set(re.findall(r"`(\w+Error)`", text)) - {"ValueError"}
    assert named <= set(duostore.__all__)
