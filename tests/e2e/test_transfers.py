"""Transact under contention: amounts move between accounts, each once, and none is lost."""

from __future__ import annotations

import random
import secrets
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest
from psycopg import sql

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server import codec
from duostore_server.domain.entities import Form
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb import items
from duostore_server.storage.dynamodb.tables import projection_table
from tests.support.crowd import Crowd, Persistence, failure_of
from tests.support.gate import Gate, before_postgres
from tests.support.service import Caller, Service, kill, struct
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psutil
    from types_boto3_dynamodb import DynamoDBClient

    from tests.e2e.conftest import Breakable
    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

TRANSFERS = 5_000
ACCOUNTS = 20
THREADS = 8
KILLS = 5
OPENING_BALANCE = 1_000
# One transfer in so many is good only as long as a third account stays as it is.
CHECKING = 4
LOST_COMMITS = 0.02
# C8: from the end of the faults to an empty outbox, on a machine that is busy.
DRAIN_SECONDS = 15.0
# For what has no bound of its own.
RECOVERY_SECONDS = 30.0

# By account: version and document.
Balances = dict[str, tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class Transfer:
    """An amount that is to move once, from the first account to the second.

    If there is a third account it has to stay as it is meanwhile.
    """

    number: int
    accounts: list[str]
    amount: int


@dataclass(frozen=True)
class Bank:
    """A service whose database loses answers to COMMIT."""

    service: Service
    dsn: str
    gate: Gate


@pytest.fixture
def bank(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bank]:
    dsn = postgres.create_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        # Much less than lock_timeout, which would end a deadlock before it is found to be one.
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET deadlock_timeout = '20ms'").format(name))
    chance = random.Random(TRANSFERS).random

    def loses_commit(asked: bytes, _answered: bytes) -> bool:
        return b"COMMIT" in asked and chance() < LOST_COMMITS

    with (
        before_postgres(dsn, loses=loses_commit) as (through, gate),
        Service(
            tmp_path_factory.mktemp("bank"),
            dsn=through,
            endpoint_url=dynamodb.endpoint_url,
            prefix=f"t{secrets.token_hex(4)}_",
            node=memcached.address,
        ) as service,
    ):
        yield Bank(service, dsn, gate)


class Clerk:
    """Makes transfers: reads, decides, and begins anew if an account has changed meanwhile."""

    def __init__(self) -> None:
        self.persistence = Persistence()
        self.begun_anew: Counter[str] = Counter()
        self._lock = threading.Lock()

    def transfer(self, channel: grpc.Channel, transfer: Transfer) -> None:
        caller = Caller(channel)
        tries = 0
        while not self._try(caller, transfer, tries):
            tries += 1

    def _try(self, caller: Caller, transfer: Transfer, tries: int) -> bool:
        """Make the transfer on what is there now; return False if it did not stay so."""
        accounts = transfer.accounts
        # Who met another does not ask the cache again, which may not have heard of it yet.
        source, target, *others = self._read(caller, accounts, strong=tries > 0)
        mutations = [
            _save(source, -transfer.amount),
            _save(target, transfer.amount),
            *map(_check, others),
        ]
        # Another document has another key: what was refused is another request the next time.
        key = f"{accounts[0]}/{transfer.number}/{tries}"
        try:
            self.persistence.answer(
                lambda: caller.transact(*mutations, idempotency_key=key),
                what=f"transfer {transfer.number} is answered",
            )
        except grpc.RpcError as error:
            failure = failure_of(error)
            if failure.reason != "VERSION_MISMATCH":
                raise
            refused = int(failure.metadata["mutation"])
            with self._lock:
                self.begun_anew[mutations[refused].WhichOneof("mutation") or ""] += 1
            return False
        return True

    def _read(
        self, caller: Caller, accounts: list[str], *, strong: bool
    ) -> list[entity_pb2.Entity]:
        """Return accounts as anybody sees them, or as Aurora has them."""

        def read() -> list[entity_pb2.Entity]:
            if strong:
                return [caller.get(account, strong=True).entity for account in accounts]
            return list(caller.batch_get(accounts).entities)

        return self.persistence.answer(read, what="accounts are read")


def _save(account: entity_pb2.Entity, amount: int) -> data_access_pb2.Mutation:
    held = codec.plain(account.data)
    data = {"balance": held["balance"] + amount, "moves": held["moves"] + 1}
    save = data_access_pb2.SaveMutation(
        key=account.key, data=struct(data), if_version=account.version
    )
    return data_access_pb2.Mutation(save=save)


def _check(account: entity_pb2.Entity) -> data_access_pb2.Mutation:
    check = data_access_pb2.VersionCheck(key=account.key, if_version=account.version)
    return data_access_pb2.Mutation(check=check)


def plan(accounts: list[str]) -> list[Transfer]:
    chance = random.Random(TRANSFERS)
    transfers = []
    for number in range(TRANSFERS):
        concerned = chance.sample(accounts, 2 if number % CHECKING else 3)
        transfers.append(Transfer(number, concerned, chance.randint(1, 100)))
    return transfers


@pytest.mark.timeout(300)
def test_of_5000_transfers_each_is_made_once_and_the_sum_is_kept(
    bank: Bank, dynamodb_client: DynamoDBClient, record_property: Callable[[str, object], None]
) -> None:
    service = bank.service
    run = secrets.token_hex(4)
    accounts = [f"{run}-{number}" for number in range(ACCOUNTS)]
    with service.channel() as channel:
        for account in accounts:
            Caller(channel).save(account, {"balance": OPENING_BALANCE, "moves": 0})

    def serving() -> psutil.Process:
        return eventually(service.serving, within=30, what="a serving process")[0]

    clerk = Clerk()
    crowd: Crowd[Transfer] = Crowd(service.channel, threads=THREADS)
    kills = [((kill + 1) * TRANSFERS // (KILLS + 1), serving) for kill in range(KILLS)]
    crowd.work_off(plan(accounts), clerk.transfer, meanwhile=lambda: crowd.kill_on_the_way(kills))
    eventually(service.is_drained, within=DRAIN_SECONDS, what="the outbox is empty")
    record_property("begun anew", dict(clerk.begun_anew))
    record_property("unanswered calls", dict(clerk.persistence.unanswered))
    record_property("lost answers to COMMIT", bank.gate.lost_answers)
    # Else it was not tried.
    assert min(clerk.begun_anew["save"], clerk.begun_anew["check"]) > TRANSFERS / 100
    assert bank.gate.lost_answers > TRANSFERS * LOST_COMMITS / 2

    held, deadlocks = _in_aurora(bank.dsn)
    assert held.keys() == set(accounts)
    assert sum(data["balance"] for _, data in held.values()) == ACCOUNTS * OPENING_BALANCE
    # The sum alone would not tell of a transfer that was made twice.
    assert sum(data["moves"] for _, data in held.values()) == 2 * TRANSFERS
    assert sum(version for version, _ in held.values()) == ACCOUNTS + 2 * TRANSFERS
    assert deadlocks == 0
    assert _projected(dynamodb_client, service, accounts) == held
    for _ in range(2 * len(service.workers())):
        with service.channel() as channel:
            assert _read(Caller(channel), accounts) == held


def test_of_a_transaction_whose_worker_dies_after_the_commit_every_part_is_projected(
    breakable: Breakable,
) -> None:
    """Nobody repeats it: the outbox alone knows of it."""
    service = breakable.service
    ids = [secrets.token_hex(8) for _ in range(3)]
    with service.channel() as channel, ThreadPoolExecutor(1) as pool:
        caller = Caller(channel)
        for id_ in ids:
            caller.save(id_, {"n": 1})
            eventually(
                lambda: caller.get(id_).receipt.served_from == entity_pb2.STORE_CACHE,  # noqa: B023 - called now
                within=RECOVERY_SECONDS,
                what="it is cached",
            )
        # Nobody else calls: the process that is called is this caller's.
        [victim, _] = service.serving()
        breakable.gate.close()
        try:
            mutations = [
                data_access_pb2.Mutation(
                    save=data_access_pb2.SaveMutation(key=caller.key(id_), data=struct({"n": 2}))
                )
                for id_ in ids
            ]
            transacting = pool.submit(caller.transact, *mutations)
            eventually(
                lambda: {_in_aurora(service.dsn)[0][id_][0] for id_ in ids} == {2},
                within=RECOVERY_SECONDS,
                what="it is committed",
            )
            kill(victim)
        finally:
            breakable.gate.open()
        with pytest.raises(grpc.RpcError):
            transacting.result()
    with service.channel() as channel:
        caller = Caller(channel)
        eventually(
            lambda: {version for version, _ in _read(caller, ids).values()} == {2},
            within=RECOVERY_SECONDS,
            what="the projector brings all of it",
        )
    eventually(service.is_drained, within=RECOVERY_SECONDS, what="the outbox is empty")


def _in_aurora(dsn: str) -> tuple[Balances, int]:
    """Return what Aurora holds, and how many deadlocks it has seen."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute("SELECT id, version, data FROM duostore.entity").fetchall()
        [(deadlocks,)] = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchall()
    return {id_: (version, data) for id_, version, data in rows}, deadlocks


def _projected(client: DynamoDBClient, service: Service, accounts: list[str]) -> Balances:
    """Return what DynamoDB holds."""

    def unreadable(key: EntityKey, version: int, why: str) -> None:
        raise AssertionError(f"{key} at version {version}: {why}")

    held = {}
    for account in accounts:
        key = EntityKey("", "proposal", account)
        answer = client.get_item(
            TableName=projection_table(service.prefix),
            Key={"pk": {"S": str(key)}},
            ConsistentRead=True,
        )
        projection = items.decode(key, answer["Item"], unreadable)
        assert projection.form is Form.VALUE
        entity = entity_pb2.Entity.FromString(projection.payload or b"")
        assert entity.version == projection.version
        held[account] = (entity.version, codec.plain(entity.data))
    return held


def _read(caller: Caller, accounts: list[str]) -> Balances:
    return {
        entity.key.id: (entity.version, codec.plain(entity.data))
        for entity in caller.batch_get(accounts).entities
    }
