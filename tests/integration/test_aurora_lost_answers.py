"""Writes whose answer is lost on its way: applied, or not, and what their caller is told (C2)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from duostore_server.domain.errors import (
    IdempotencyKeyReusedError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import (
    Change,
    Check,
    Idempotency,
    IdempotencyKey,
    IfAbsent,
    IfVersion,
)
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.aurora.pool import AuroraPool
from tests.support.authority_engines import soon, write_of
from tests.support.authority_faults import locked, query, terminate, wait_until_blocked
from tests.support.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import LiteralString

    from duostore_server.domain.transactions import Mutation

KEY = EntityKey("", "account", "a")
OTHER = EntityKey("", "account", "b")
DUE = timedelta()
# What the server says at the end of a statement that was one transaction, and of a COMMIT.
STATEMENT_IS_DONE = b"SELECT 1\0"
COMMIT_IS_DONE = b"COMMIT\0"

SAVE = Change(KEY, {"n": 2}, None, DUE)
# Each changes what stands at version 1 to version 2, and cannot be applied a second time.
ONE: dict[str, tuple[Mutation, ...]] = {
    "save": (Change(KEY, {"n": 2}, IfVersion(1), DUE),),
    "delete": (Change(KEY, None, None, DUE),),
}
SEVERAL: dict[str, tuple[Mutation, ...]] = {
    "two": (Change(OTHER, {}, IfAbsent(), DUE), Change(KEY, {"n": 2}, IfVersion(1), DUE)),
    "with a check": (Change(KEY, {"n": 2}, None, DUE), Check(EntityKey("", "account", "c"), 1)),
}
ALL = [
    *((mutations, STATEMENT_IS_DONE) for mutations in ONE.values()),
    *((mutations, COMMIT_IS_DONE) for mutations in SEVERAL.values()),
]
NAMES = [*ONE, *SEVERAL]


def once(text: str = "k-1", request: int = 1) -> Idempotency:
    return Idempotency(IdempotencyKey("", text), bytes([request]) * 32, timedelta(hours=24))


@pytest.fixture
def dsn(postgres_dsn: str) -> str:
    migrate(postgres_dsn)
    return postgres_dsn


@contextmanager
def through_gate(dsn: str) -> Iterator[tuple[Gate, AuroraAuthority]]:
    """Yield an authority that reaches its server through a gate, and finds what stands there."""
    folder = conninfo_to_dict(dsn)["host"]
    with (
        Gate(Path(f"{folder}/.s.PGSQL.5432")) as gate,
        AuroraPool(
            make_conninfo(dsn, host="127.0.0.1", port=gate.port), max_size=1, wait=10
        ) as pool,
    ):
        authority = AuroraAuthority(pool)
        authority.write(write_of(Change(KEY, {"n": 1}, None, DUE)), soon())
        third = EntityKey("", "account", "c")
        authority.write(write_of(Change(third, {"n": 1}, None, DUE)), soon())
        yield gate, authority


def state(dsn: str) -> tuple[int, int]:
    """Return the version of the entity, and how often it was written since it was created."""
    ((version,),) = query(dsn, "SELECT version FROM duostore.entity WHERE id = 'a'")
    ((audited,),) = query(
        dsn, "SELECT count(*) FROM duostore.audit WHERE entity_id = 'a' AND version > 1"
    )
    return int(str(version)), int(str(audited))


@pytest.mark.parametrize(("mutations", "answer"), ALL, ids=NAMES)
def test_with_a_key_a_write_whose_answer_is_lost_is_applied_once_and_answered(
    dsn: str, mutations: tuple[Mutation, ...], answer: bytes
) -> None:
    transaction = write_of(*mutations, idempotency=once())
    with through_gate(dsn) as (gate, authority):
        gate.lose_answer(answer)
        committed = authority.write(transaction, soon())
        assert gate.has_lost_answer
        # Whose first try it was cannot be told.
        assert committed.replayed
        assert committed.written == ()
        place = [mutation.key for mutation in mutations].index(KEY)
        assert committed.answer[place].version == 2
        assert authority.write(transaction, soon()) == committed
    assert state(dsn) == (2, 1)


@pytest.mark.parametrize(("mutations", "answer"), ALL, ids=NAMES)
def test_without_a_key_its_outcome_is_unknown(
    dsn: str, mutations: tuple[Mutation, ...], answer: bytes
) -> None:
    with through_gate(dsn) as (gate, authority):
        gate.lose_answer(answer)
        with pytest.raises(WriteOutcomeUnknownError):
            authority.write(write_of(*mutations), soon())
        assert gate.has_lost_answer
    assert state(dsn) == (2, 1)


def test_many_writes_of_which_each_loses_its_answer_are_applied_once_each(dsn: str) -> None:
    rounds = 20
    with through_gate(dsn) as (gate, authority):
        for n in range(rounds):
            answer = COMMIT_IS_DONE if n % 2 else STATEMENT_IS_DONE
            mutations = (SAVE, Change(OTHER, {}, None, DUE)) if n % 2 else (SAVE,)
            gate.lose_answer(answer)
            committed = authority.write(write_of(*mutations, idempotency=once(f"k-{n}")), soon())
            assert gate.has_lost_answer
            assert committed.answer[0].version == n + 2
    assert state(dsn) == (rounds + 1, rounds)


def test_with_a_key_a_write_whose_request_is_lost_is_applied(dsn: str) -> None:
    with through_gate(dsn) as (_, authority), ThreadPoolExecutor(1) as threads:
        with locked(dsn, KEY):
            writing = threads.submit(authority.write, write_of(SAVE, idempotency=once()), soon())
            wait_until_blocked(dsn)
            terminate(dsn)
            wait_until_blocked(dsn)
        committed = writing.result(10)
        assert not committed.replayed
        assert [written.entity.version for written in committed.written] == [2]
    assert state(dsn) == (2, 1)


def test_with_a_key_it_is_tried_no_more_than_twice(dsn: str) -> None:
    with (
        through_gate(dsn) as (_, authority),
        ThreadPoolExecutor(1) as threads,
        locked(dsn, KEY),
    ):
        writing = threads.submit(authority.write, write_of(SAVE, idempotency=once()), soon())
        for _ in range(2):
            wait_until_blocked(dsn)
            terminate(dsn)
        with pytest.raises(WriteOutcomeUnknownError):
            writing.result(10)
    assert state(dsn) == (1, 0)


OTHERS_SAVE: LiteralString = "UPDATE duostore.entity SET version = 7 WHERE id = 'a'"
OTHERS_KEY: LiteralString = """
INSERT INTO duostore.idempotency VALUES ('', 'k-1', sha256('another'), '[]', now(), now())
"""


@pytest.mark.parametrize(
    ("meanwhile", "expected"),
    [
        # The first try may be under way still: that it is refused too is not known.
        (OTHERS_SAVE, WriteOutcomeUnknownError),
        # It cannot be applied any more, whatever became of it.
        (OTHERS_KEY, IdempotencyKeyReusedError),
    ],
    ids=["refused", "key reused"],
)
def test_what_the_second_try_says_is_told_if_it_is_true_of_the_first(
    dsn: str, meanwhile: LiteralString, expected: type[Exception]
) -> None:
    change = Change(KEY, {"n": 2}, IfVersion(1), DUE)
    with through_gate(dsn) as (_, authority), ThreadPoolExecutor(1) as threads:
        with locked(dsn, KEY) as other:
            writing = threads.submit(authority.write, write_of(change, idempotency=once()), soon())
            wait_until_blocked(dsn)
            terminate(dsn)
            wait_until_blocked(dsn)
            other.execute(meanwhile)
            other.commit()
        with pytest.raises(expected):
            writing.result(10)
    assert state(dsn)[1] == 0
