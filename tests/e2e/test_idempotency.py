"""C2: what has an idempotency key is applied once, however often it comes and whatever is lost."""

from __future__ import annotations

import random
import secrets
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server import codec
from tests.support.crowd import Crowd, Persistence
from tests.support.gate import Gate, before_postgres
from tests.support.service import CALL_SECONDS, CHANNEL_OPTIONS, Caller, Service, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

SAVES = 10_000
ENTITIES = 500
THREADS = 8
# How often a Save is sent: one of these.
TIMES = (1, 1, 1, 2, 2, 3, 4)
# One Save in so many creates an entity of its own: tried again it would be refused.
CREATING = 10
# So far behind the first time, at most, a Save is sent again; half of them race it.
MOST_BEHIND = 400
LOST_BY_POSTGRES = 0.03
LOST_BY_SERVICE = 0.02
ABANDONED = 0.02
ABANDONED_AFTER_SECONDS = 0.03
# In the parameters of each statement that saves, and of no other.
DOCUMENT_MARK = b'"request":'

# C8: from the end of the faults to an empty outbox, on a machine that is busy.
DRAIN_SECONDS = 15.0


@dataclass(frozen=True)
class Answered:
    """What somebody who sent a Save was told."""

    version: int
    micros: int
    replayed: bool


@dataclass(frozen=True)
class Request:
    """A Save that is to be applied once."""

    number: int
    entity: str
    creates: bool

    @property
    def key(self) -> str:
        return f"{self.entity}/{self.number}"

    @property
    def message(self) -> data_access_pb2.SaveRequest:
        options: dict[str, Any] = {"if_absent": True} if self.creates else {}
        return data_access_pb2.SaveRequest(
            key=entity_pb2.EntityKey(kind="proposal", id=self.entity),
            data=struct({"request": self.number}),
            idempotency_key=self.key,
            **options,
        )


@dataclass(frozen=True)
class Lossy:
    """A service that loses answers to its callers, and whose database loses answers to it."""

    service: Service
    dsn: str
    before_service: Gate
    before_postgres: Gate

    def channels(self) -> Callable[[], grpc.Channel]:
        """Return what opens channels: in turn straight to the service, and through the gate."""
        targets = cycle((self.service.target, f"127.0.0.1:{self.before_service.port}"))
        return lambda: grpc.insecure_channel(next(targets), options=CHANNEL_OPTIONS)


@pytest.fixture
def lossy(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Lossy]:
    dsn = postgres.create_database()
    chance = random.Random(SAVES).random

    def loses_commit(asked: bytes, _answered: bytes) -> bool:
        return DOCUMENT_MARK in asked and chance() < LOST_BY_POSTGRES

    def loses_answer(_asked: bytes, answered: bytes) -> bool:
        return b"proposal" in answered and chance() < LOST_BY_SERVICE

    with (
        before_postgres(dsn, loses=loses_commit) as (through, gate),
        Service(
            tmp_path_factory.mktemp("lossy"),
            dsn=through,
            endpoint_url=dynamodb.endpoint_url,
            prefix=f"t{secrets.token_hex(4)}_",
            node=memcached.address,
        ) as service,
        Gate(service.port, loses=loses_answer) as before_service,
    ):
        yield Lossy(service, dsn, before_service, gate)


def plan() -> tuple[list[Request], list[Request]]:
    """Return the requests, and what is sent: each one to four times, some at once, some later."""
    chance = random.Random(SAVES)
    run = secrets.token_hex(4)
    requests = [
        Request(n, f"{run}-new-{n}", creates=True)
        if not n % CREATING
        else Request(n, f"{run}-{chance.randrange(ENTITIES)}", creates=False)
        for n in range(SAVES)
    ]
    sends = [
        (request.number + behind, request)
        for request in requests
        for time in range(chance.choice(TIMES))
        for behind in (chance.choice((0.0, chance.uniform(0, MOST_BEHIND))) if time else 0.0,)
    ]
    sends.sort(key=lambda send: send[0])
    return requests, [request for _, request in sends]


@pytest.mark.timeout(300)
def test_10000_saves_sent_up_to_four_times_are_applied_once_each(
    lossy: Lossy, record_property: Callable[[str, object], None]
) -> None:
    requests, sends = plan()
    persistence = Persistence()
    answers: dict[int, list[Answered]] = defaultdict(list)
    abandoned: list[bool] = []
    chance = random.Random(ENTITIES)

    def save(channel: grpc.Channel, request: Request) -> None:
        stub, message = Caller(channel).stub, request.message
        metadata = (("x-request-id", request.key),)
        if chance.random() < ABANDONED:
            sent = stub.Save.future(message, timeout=CALL_SECONDS, metadata=metadata)
            abandoned.append(_abandon(sent, chance))
        answer = persistence.answer(
            lambda: stub.Save(message, timeout=CALL_SECONDS, metadata=metadata),
            what=f"Save {request.number} is answered",
        )
        micros = answer.update_time.ToMicroseconds()
        answers[request.number].append(Answered(answer.version, micros, answer.replayed))

    Crowd[Request](lossy.channels(), threads=THREADS).work_off(sends, save)
    eventually(lossy.service.is_drained, within=DRAIN_SECONDS, what="the outbox is empty")
    losses = {
        "of PostgreSQL": lossy.before_postgres.lost_answers,
        "of the service": lossy.before_service.lost_answers,
    }
    record_property("lost answers", losses)
    record_property("abandoned calls", sum(abandoned))
    record_property("unanswered calls", dict(persistence.unanswered))
    # Else it was not tried.
    assert min(losses.values()) > SAVES * LOST_BY_SERVICE / 2
    assert sum(abandoned) > len(sends) * ABANDONED / 10

    applied = _audited(lossy.dsn)
    assert applied.keys() == {request.key for request in requests}
    for request in requests:
        entity, version, micros = applied[request.key]
        assert entity == request.entity
        told = answers[request.number]
        assert {(answer.version, answer.micros) for answer in told} == {(version, micros)}
        assert sum(not answer.replayed for answer in told) <= 1
    _check_entities(lossy, requests, applied)


def _abandon(call: Any, chance: random.Random) -> bool:
    """Lose interest in a call a moment after it was sent; return False if that was too late."""
    try:
        call.exception(chance.uniform(0, ABANDONED_AFTER_SECONDS))
    except grpc.FutureTimeoutError:
        return bool(call.cancel())
    return False


def _audited(dsn: str) -> dict[str, tuple[str, int, int]]:
    """Return entity, version and time of each request that was applied, which none was twice."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "SELECT request_id, entity_id, version, extract(epoch FROM time) * 1000000"
            " FROM duostore.audit"
        ).fetchall()
    applied = {request: (entity, version, int(at)) for request, entity, version, at in rows}
    twice = Counter(request for request, *_ in rows) - Counter(dict.fromkeys(applied, 1))
    assert not twice
    return applied


def _check_entities(
    lossy: Lossy, requests: list[Request], applied: dict[str, tuple[str, int, int]]
) -> None:
    """Each entity has one version for each of its requests, and holds the document of the last."""
    by_entity: dict[str, dict[int, int]] = defaultdict(dict)
    for request in requests:
        by_entity[request.entity][applied[request.key][1]] = request.number
    newest = {}
    for entity, by_version in by_entity.items():
        assert sorted(by_version) == list(range(1, len(by_version) + 1))
        newest[entity] = (len(by_version), by_version[len(by_version)])
    with psycopg.connect(lossy.dsn, autocommit=True) as connection:
        rows = connection.execute("SELECT id, version, data FROM duostore.entity").fetchall()
        [(remembered,)] = connection.execute("SELECT count(*) FROM duostore.idempotency").fetchall()
    assert {id_: (version, data["request"]) for id_, version, data in rows} == newest
    assert sum(version for _, version, _ in rows) == remembered == SAVES
    ids = list(newest)
    read = {}
    with lossy.service.channel() as channel:
        caller = Caller(channel)
        for first in range(0, len(ids), 500):
            answer = caller.batch_get(ids[first : first + 500])
            assert not answer.missing
            for found in answer.entities:
                read[found.key.id] = (found.version, codec.plain(found.data)["request"])
    assert read == newest
