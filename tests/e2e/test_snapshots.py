"""C9: of what writers snapshot nothing is lost and nothing doubled, whatever process dies."""

from __future__ import annotations

import random
import secrets
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from duostore_server import codec
from duostore_server.storage.dynamodb.head_items import DIRTY_INDEX
from duostore_server.storage.dynamodb.tables import snapshot_table
from tests.support.crowd import Crowd, Persistence
from tests.support.service import Caller, Service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc
    import psutil
    from types_boto3_dynamodb import DynamoDBClient

    from duostore.v1.entity_pb2 import EntitySnapshot

SNAPSHOTS = 10_000
DRAFTS = 50
THREADS = 8
KILLS = 12
# One snapshot in so many has an idempotency key, and half of these are sent again though
# they were answered.
KEYED = 5
# The kind's consolidate_every is 1 s, and a busy machine is late.
ROUND_SECONDS = 30.0


@dataclass(frozen=True)
class Autosave:
    """A snapshot that is to be taken; its document is that of no other."""

    number: int
    draft: str

    @property
    def document(self) -> dict[str, Any]:
        return {"number": self.number, "text": f"{self.draft} as of {self.number}"}

    @property
    def key(self) -> str:
        return "" if self.number % KEYED else f"{self.draft}/{self.number}"

    @property
    def is_sent_again(self) -> bool:
        return bool(self.key) and not self.number % (2 * KEYED)


def plan() -> list[Autosave]:
    drafts = [f"{secrets.token_hex(4)}-{number}" for number in range(DRAFTS)]
    choose = random.Random(SNAPSHOTS).choice
    return [Autosave(number, choose(drafts)) for number in range(SNAPSHOTS)]


def document_of(snapshot: EntitySnapshot) -> dict[str, Any]:
    return codec.plain(snapshot.data)


def victims(service: Service) -> list[tuple[int, Callable[[], psutil.Process]]]:
    """Return whom to kill at which number of snapshots: every third is not a serving process."""

    def background() -> psutil.Process:
        return eventually(service.background, within=30, what="a background process")[0]

    def serving() -> psutil.Process:
        return eventually(service.serving, within=30, what="a serving process")[0]

    marks = [(kill + 1) * SNAPSHOTS // (KILLS + 1) for kill in range(KILLS)]
    return [(mark, serving if kill % 3 else background) for kill, mark in enumerate(marks)]


@pytest.mark.timeout(300)
def test_of_10000_snapshots_none_is_lost_or_doubled_by_twelve_kills(
    service: Service,
    dynamodb_client: DynamoDBClient,
    record_property: Callable[[str, object], None],
) -> None:
    persistence = Persistence()
    acknowledged: list[tuple[Autosave, int]] = []

    def autosave(channel: grpc.Channel, one: Autosave) -> None:
        caller = Caller(channel)

        def append() -> Any:
            return persistence.answer(
                lambda: caller.snapshot(one.draft, one.document, idempotency_key=one.key),
                what=f"snapshot {one.number} is taken",
            )

        answer = append()
        acknowledged.append((one, answer.sequence))
        if one.is_sent_again:
            again = append()
            assert (again.sequence, again.replayed) == (answer.sequence, True)
            assert again.snapshot_time == answer.snapshot_time

    crowd: Crowd[Autosave] = Crowd(service.channel, threads=THREADS)
    crowd.work_off(plan(), autosave, meanwhile=lambda: crowd.kill_on_the_way(victims(service)))
    assert len(acknowledged) == SNAPSHOTS
    # Else nobody was hit.
    assert persistence.unanswered
    record_property("unanswered calls", dict(persistence.unanswered))

    by_draft: dict[str, list[tuple[Autosave, int]]] = defaultdict(list)
    for one, sequence in acknowledged:
        by_draft[one.draft].append((one, sequence))
    heads = {}
    with service.channel() as channel:
        caller = Caller(channel)
        for draft, mine in by_draft.items():
            heads[draft] = _check_history(caller, draft, mine)
    eventually(
        lambda: _in_aurora(service, heads) == heads,
        within=ROUND_SECONDS,
        what="Aurora holds what every head does",
    )
    eventually(
        lambda: _dirty(dynamodb_client, service) == 0,
        within=ROUND_SECONDS,
        what="all heads are settled",
    )


def _check_history(
    caller: Caller, draft: str, mine: list[tuple[Autosave, int]]
) -> tuple[int, dict[str, Any]]:
    """Compare what was acknowledged of a draft with what is there; return its newest snapshot."""
    listed = caller.list_snapshots(draft)
    sequences = [snapshot.sequence for snapshot in listed]
    assert sequences == sorted(set(sequences), reverse=True)
    assert len({sequence for _, sequence in mine}) == len(mine), "a sequence was used twice"

    history = {snapshot.sequence: document_of(snapshot) for snapshot in listed}
    for one, sequence in mine:
        assert history.get(sequence) == one.document
    times = Counter(document["number"] for document in history.values())
    assert times.keys() == {one.number for one, _ in mine}
    # Without a key, who got no answer may have left a snapshot that nobody knows of.
    assert all(times[one.number] == 1 for one, _ in mine if one.key)

    for _, sequence in mine[::10]:
        assert document_of(caller.get_snapshot(draft, sequence)) == history[sequence]
    head = caller.get_snapshot(draft)
    assert head.sequence == sequences[0]
    assert document_of(head) == history[sequences[0]]
    assert head.sequence >= max(sequence for _, sequence in mine)
    return head.sequence, document_of(head)


def _in_aurora(
    service: Service, heads: dict[str, tuple[int, dict[str, Any]]]
) -> dict[str, tuple[int, dict[str, Any]]]:
    with psycopg.connect(service.dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT id, sequence, data FROM duostore.draft WHERE id = ANY(%s)", (list(heads),)
        ).fetchall()
    return {id_: (sequence, data) for id_, sequence, data in rows}


def _dirty(client: DynamoDBClient, service: Service) -> int:
    return client.scan(
        TableName=snapshot_table(service.prefix), IndexName=DIRTY_INDEX, Select="COUNT"
    )["Count"]
