"""What Snapshot, GetSnapshot, ListSnapshots and publishing promise, over real stores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from typing import TYPE_CHECKING, Any

import grpc
import psycopg

from duostore.v1 import data_access_pb2 as pb
from duostore_server import codec
from tests.rpc.test_data_access import data_of, refused
from tests.support.service import CALL_SECONDS, Caller, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.support.in_process import InProcess


def snapshot(caller: Caller, id_: str, data: dict[str, Any], **options: Any) -> pb.SnapshotResponse:
    request = pb.SnapshotRequest(key=caller.key(id_), data=struct(data), **options)
    return caller.stub.Snapshot(request, timeout=CALL_SECONDS)


def read(caller: Caller, id_: str, sequence: int = 0) -> tuple[int, dict[str, Any]]:
    request = pb.GetSnapshotRequest(key=caller.key(id_), sequence=sequence)
    found = caller.stub.GetSnapshot(request, timeout=CALL_SECONDS).snapshot
    return found.sequence, codec.plain(found.data)


def listed(caller: Caller, id_: str, **options: Any) -> pb.ListSnapshotsResponse:
    request = pb.ListSnapshotsRequest(key=caller.key(id_), **options)
    return caller.stub.ListSnapshots(request, timeout=CALL_SECONDS)


def publish(caller: Caller, id_: str, sequence: int = 0, **options: Any) -> pb.SaveResponse:
    request = pb.SaveRequest(key=caller.key(id_), from_snapshot=sequence, **options)
    return caller.stub.Save(request, timeout=CALL_SECONDS)


def test_an_entity_that_does_not_exist_may_have_snapshots(notes: Caller, id_: str) -> None:
    document = {
        "title": "Ünïcode 😀",
        "n": 2**53 - 1,
        "x": 0.1,
        "deep": [{"a": [None, True]}],
        "": {},
    }
    first = snapshot(notes, id_, {"n": 1})
    second = snapshot(notes, id_, document)
    assert 0 < first.sequence < second.sequence
    assert first.snapshot_time.ToDatetime() <= second.snapshot_time.ToDatetime()
    assert read(notes, id_) == read(notes, id_, second.sequence) == (second.sequence, document)
    assert read(notes, id_, first.sequence) == (first.sequence, {"n": 1})
    with refused() as refusal:
        notes.get(id_)
    assert refusal.reason == "ENTITY_NOT_FOUND"


def test_a_snapshot_that_is_not_there_is_told(notes: Caller, id_: str) -> None:
    with refused() as none:
        read(notes, id_)
    assert (none.code, none.reason, none.metadata) == (
        grpc.StatusCode.NOT_FOUND,
        "SNAPSHOT_NOT_FOUND",
        {"sequence": "0"},
    )
    sequence = snapshot(notes, id_, {}).sequence
    with refused() as later:
        read(notes, id_, sequence + 1)
    assert later.metadata == {"sequence": str(sequence + 1)}
    assert not listed(notes, f"{id_}-other").snapshots


def test_pages_hold_still_while_snapshots_are_added(notes: Caller, id_: str) -> None:
    taken = [snapshot(notes, id_, {"n": n}).sequence for n in range(10)]
    found: list[tuple[int, dict[str, Any]]] = []
    token = ""
    for _ in range(20):
        page = listed(notes, id_, page_size=3, page_token=token)
        assert len(page.snapshots) <= 3
        found += [(s.sequence, codec.plain(s.data)) for s in page.snapshots]
        snapshot(notes, id_, {"n": "added"})
        if not (token := page.next_page_token):
            break
    assert found == [(taken[n], {"n": n}) for n in reversed(range(10))]
    newest = listed(notes, id_).snapshots[0]
    assert codec.plain(newest.data) == {"n": "added"}
    assert newest.key == notes.key(id_)
    assert newest.snapshot_time.ToDatetime(UTC).year > 2000


def test_a_list_is_asked_for_within_bounds_and_by_its_own_token(notes: Caller, id_: str) -> None:
    for n in range(25):
        snapshot(notes, id_, {"n": n})
    page = listed(notes, id_)
    assert len(page.snapshots) == 20
    with refused() as alien:
        listed(notes, f"{id_}-other", page_token=page.next_page_token)
    assert list(alien.fields) == ["page_token"]
    for size in (-1, 101):
        with refused() as refusal:
            listed(notes, id_, page_size=size, page_token="?")
        assert set(refusal.fields) == {"page_size", "page_token"}


def test_a_kind_without_history_keeps_the_newest(channel: grpc.Channel, id_: str) -> None:
    memos = Caller(channel, kind="memo")
    first, newest = (snapshot(memos, id_, {"n": n}).sequence for n in range(2))
    assert first < newest
    assert read(memos, id_) == read(memos, id_, newest) == (newest, {"n": 1})
    assert [s.sequence for s in listed(memos, id_).snapshots] == [newest]
    with refused() as refusal:
        read(memos, id_, first)
    assert refusal.reason == "SNAPSHOT_NOT_FOUND"


def test_sequences_are_used_once_however_many_write(notes: Caller, id_: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: snapshot(notes, id_, {"n": n}).sequence, range(80)))
    assert len(set(taken)) == 80
    newest = max(taken)
    assert read(notes, id_) == (newest, {"n": taken.index(newest)})
    kept = {s.sequence: s.data["n"] for s in listed(notes, id_, page_size=100).snapshots}
    assert kept == {sequence: n for n, sequence in enumerate(taken)}


def test_every_bad_field_is_named(notes: Caller, id_: str) -> None:
    with refused() as empty:
        notes.stub.Snapshot(pb.SnapshotRequest(idempotency_key="a\n"), timeout=CALL_SECONDS)
    assert set(empty.fields) == {"key.kind", "key.id", "data", "idempotency_key"}
    with refused() as nan:
        snapshot(notes, id_, {"a": float("nan")})
    assert set(nan.fields) == {"data.a"}


def test_documents_are_checked_as_those_of_a_save(
    notes: Caller, proposals: Caller, channel: grpc.Channel, id_: str
) -> None:
    with refused() as broken:
        snapshot(proposals, id_, {"title": "", "odd": 1})
    assert set(broken.fields) == {"data.title", "data.odd"}
    with refused() as large:
        snapshot(proposals, id_, {"title": "x" * 70_000})
    assert list(large.fields) == ["data"]
    with refused() as unkept:
        snapshot(Caller(channel, kind="tag"), id_, {})
    assert list(unkept.fields) == ["key.kind"]
    with refused() as negative:
        read(notes, id_, -1)
    assert list(negative.fields) == ["sequence"]


def test_publishing_makes_the_snapshot_the_next_version(notes: Caller, id_: str) -> None:
    notes.save(id_, {"n": "old"})
    assert data_of(notes.get(id_)) == {"n": "old"}
    first, _ = (snapshot(notes, id_, {"n": n}).sequence for n in range(2))
    assert data_of(notes.get(id_)) == {"n": "old"}
    assert publish(notes, id_, if_version=1).version == 2
    assert data_of(notes.get(id_)) == data_of(notes.get(id_, strong=True)) == {"n": 1}
    assert publish(notes, id_, first).version == 3
    assert data_of(notes.get(id_)) == {"n": 0}
    with refused() as overtaken:
        publish(notes, id_, if_version=2)
    assert overtaken.reason == "VERSION_MISMATCH"
    with refused() as missing:
        publish(notes, f"{id_}-other")
    assert missing.reason == "SNAPSHOT_NOT_FOUND"


def test_the_newest_snapshot_comes_to_aurora_once(api: InProcess, notes: Caller, id_: str) -> None:
    taken = [snapshot(notes, id_, {"n": n}).sequence for n in range(5)]

    def drafts() -> list[tuple[Any, ...]]:
        with psycopg.connect(api.dsn, autocommit=True) as connection:
            return connection.execute(
                "SELECT sequence, data FROM duostore.draft WHERE id = %s", (id_,)
            ).fetchall()

    newest = [(taken[-1], {"n": 4})]
    eventually(lambda: drafts() == newest, within=30, what="the draft is in Aurora")
    assert [s.sequence for s in listed(notes, id_).snapshots] == taken[::-1]
