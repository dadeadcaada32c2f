"""What every engine of the authority promises of writes with an idempotency key (C2)."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    EntityExistsError,
    IdempotencyKeyReusedError,
    VersionMismatchError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import (
    Applied,
    Change,
    Check,
    Idempotency,
    IdempotencyKey,
    IfAbsent,
    IfVersion,
)
from tests.support.authority_engines import (
    in_memory,
    migrated_pool,
    on_postgresql,
    relational_on_postgresql,
    soon,
    write_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.transactions import Committed, Mutation, Transaction
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.authority_engines import Engine
    from tests.support.servers import PostgresServer

KEY = EntityKey("acme", "proposal", "p-1")
OTHER = EntityKey("acme", "proposal", "p-2")
DUE = timedelta()
DAY = timedelta(hours=24)
THREADS = 8


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture(params=["postgresql", "relational", "fake"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        return in_memory()
    make = relational_on_postgresql if request.param == "relational" else on_postgresql
    return make(*request.getfixturevalue("database"))


def once(text: str = "k-1", request: int = 1, tenant: str = "acme") -> Idempotency:
    return Idempotency(IdempotencyKey(tenant, text), bytes([request]) * 32, DAY)


def save(data: dict[str, Any], precondition: IfVersion | IfAbsent | None = None) -> Change:
    return Change(KEY, data, precondition, DUE)


def write(
    engine: Engine, *mutations: Mutation, idempotency: Idempotency | None = None
) -> Committed:
    return engine.authority.write(write_of(*mutations, idempotency=idempotency), soon())


def version(engine: Engine, key: EntityKey = KEY) -> int:
    found = engine.authority.read([key], soon()).get(key)
    return found.version if found else 0


# Each can be applied to what `prepare` leaves of a new engine; most cannot a second time.
WRITES: dict[str, tuple[Mutation, ...]] = {
    "save": (save({"n": 2}),),
    "save if absent": (replace(save({"n": 2}, IfAbsent()), key=OTHER),),
    "save if version": (save({"n": 2}, IfVersion(1)),),
    "delete": (Change(KEY, None, None, DUE),),
    "delete if version": (Change(KEY, None, IfVersion(1), DUE),),
    "check": (Check(KEY, 1),),
    "several": (
        Change(OTHER, {"n": 2}, IfAbsent(), DUE),
        Change(KEY, {"n": 2}, IfVersion(1), DUE),
    ),
    "several with a check": (Change(OTHER, {"n": 2}, None, DUE), Check(KEY, 1)),
}


def prepare(engine: Engine) -> int:
    """Leave an entity whose version is returned, and no other."""
    found = engine.authority.read([OTHER], soon()).get(OTHER)
    if found and found.data is not None:
        write(engine, Change(OTHER, None, None, DUE))
    return write(engine, save({"n": 1})).answer[0].version


@pytest.mark.parametrize("name", WRITES)
def test_a_repetition_is_answered_as_the_first_was_and_changes_nothing(
    engine: Engine, name: str
) -> None:
    prepare(engine)
    first = write(engine, *WRITES[name], idempotency=once())
    assert not first.replayed
    assert [each.entity.key for each in first.written] == [
        each.key for each in WRITES[name] if isinstance(each, Change)
    ]
    versions, audit = (version(engine), version(engine, OTHER)), engine.audit()
    backlog = engine.outbox.backlog(soon()).depth
    for _ in range(3):
        again = write(engine, *WRITES[name], idempotency=once())
        assert again.replayed
        assert again.answer == first.answer
        assert again.written == ()
    assert (version(engine), version(engine, OTHER)) == versions
    assert engine.audit() == audit
    assert engine.outbox.backlog(soon()).depth == backlog


def test_a_repetition_is_answered_whatever_has_become_of_the_entity(engine: Engine) -> None:
    first = write(engine, save({"n": 1}, IfAbsent()), idempotency=once())
    write(engine, save({"n": 2}))
    write(engine, Change(KEY, None, None, DUE))
    again = write(engine, save({"n": 1}, IfAbsent()), idempotency=once())
    assert again.replayed
    assert again.answer == first.answer == (Applied(1, first.written[0].entity.update_time),)
    assert version(engine) == 3


def test_the_same_key_with_another_request_is_refused(engine: Engine) -> None:
    write(engine, save({"n": 1}), idempotency=once())
    for mutations in (
        (save({"n": 2}),),
        (save({"n": 2}, IfAbsent()),),
        (Change(KEY, None, None, DUE),),
        (save({"n": 2}), Change(OTHER, {}, None, DUE)),
    ):
        with pytest.raises(IdempotencyKeyReusedError):
            write(engine, *mutations, idempotency=once(request=2))
    assert version(engine) == 1
    assert version(engine, OTHER) == 0
    assert len(engine.audit()) == 1


def test_keys_are_their_own_in_each_tenant_and_to_the_letter(engine: Engine) -> None:
    keys = [
        once(),
        once(tenant=""),
        once(tenant="ACME"),
        once("K-1"),
        once("k-1 "),
        once("caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
        once("cafe\N{COMBINING ACUTE ACCENT}"),
        once("\N{GRINNING FACE}" * 32),
        once("%s '\\"),
    ]
    for n, idempotency in enumerate(keys, 1):
        assert not write(engine, save({}), idempotency=idempotency).replayed
        assert version(engine) == n
    assert all(write(engine, save({}), idempotency=each).replayed for each in keys)


def test_a_refusal_is_not_remembered(engine: Engine) -> None:
    with pytest.raises(VersionMismatchError):
        write(engine, save({"n": 2}, IfVersion(1)), idempotency=once())
    with pytest.raises(VersionMismatchError):
        write(engine, save({"n": 2}, IfVersion(1)), Check(OTHER, 1), idempotency=once())
    prepare(engine)
    committed = write(engine, save({"n": 2}, IfVersion(1)), idempotency=once())
    assert not committed.replayed
    assert [applied.version for applied in committed.answer] == [2]


def test_without_a_key_each_repetition_is_a_write_of_its_own(engine: Engine) -> None:
    for n in range(1, 4):
        committed = write(engine, save({}))
        assert ([applied.version for applied in committed.answer], committed.replayed) == (
            [n],
            False,
        )


def at_once(work: Callable[[int], Committed]) -> list[Committed | Exception]:
    """Return what came of work in many threads that began at the same time."""
    barrier = threading.Barrier(THREADS)

    def run(n: int) -> Committed | Exception:
        barrier.wait()
        try:
            return work(n)
        except Exception as error:  # noqa: BLE001 - judged by the test
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pytest.mark.parametrize("name", WRITES)
def test_of_many_at_once_one_is_applied_and_all_are_answered(engine: Engine, name: str) -> None:
    for n in range(10):
        live = prepare(engine)
        transaction = write_of(
            *(_at(each, live) for each in WRITES[name]), idempotency=once(f"k-{n}")
        )
        outcomes = at_once(partial(_write, engine, transaction))
        committed = [each for each in outcomes if not isinstance(each, Exception)]
        assert len(committed) == THREADS, outcomes
        assert sorted(each.replayed for each in committed) == [False] + [True] * (THREADS - 1)
        assert len({each.answer for each in committed}) == 1
        changes = any(isinstance(each, Change) and each.key == KEY for each in WRITES[name])
        assert version(engine) == live + changes


def _write(engine: Engine, transaction: Transaction, _: int) -> Committed:
    return engine.authority.write(transaction, soon())


def _at(mutation: Mutation, live: int) -> Mutation:
    """Return the mutation with the version that the entity has now."""
    if isinstance(mutation, Check):
        return replace(mutation, version=live)
    if isinstance(mutation.precondition, IfVersion):
        return replace(mutation, precondition=IfVersion(live))
    return mutation


def test_of_many_requests_under_one_key_one_is_applied(engine: Engine) -> None:
    outcomes = at_once(
        lambda n: write(
            engine,
            Change(replace(KEY, id=f"p-{n}"), {}, IfAbsent(), DUE),
            idempotency=once(request=n + 1),
        )
    )
    applied = [each for each in outcomes if not isinstance(each, Exception)]
    assert len(applied) == 1
    assert not applied[0].replayed
    refused = [each for each in outcomes if isinstance(each, Exception)]
    assert {type(each) for each in refused} == {IdempotencyKeyReusedError}
    assert len(engine.audit()) == 1


def test_a_key_counts_until_its_row_is_purged(engine: Engine) -> None:
    write(engine, save({}), idempotency=once())
    assert engine.idempotency.purge(10, soon()) == 0
    engine.elapse(24 * 3600 - 60)
    assert engine.idempotency.purge(10, soon()) == 0
    engine.elapse(61)
    assert write(engine, save({}), idempotency=once()).replayed
    assert engine.idempotency.purge(10, soon()) == 1
    assert engine.idempotency.purge(10, soon()) == 0
    assert not write(engine, save({}), idempotency=once()).replayed
    assert version(engine) == 2


def test_a_purge_takes_the_oldest_and_no_more_than_it_may(engine: Engine) -> None:
    for n in range(5):
        write(engine, save({}), idempotency=once(f"k-{n}"))
        engine.elapse(3600)
    engine.elapse(24 * 3600 - 3 * 3600 + 60)
    assert engine.idempotency.purge(2, soon()) == 2
    assert [write(engine, save({}), idempotency=once(f"k-{n}")).replayed for n in range(5)] == [
        *(False, False),
        *(True, True, True),
    ]


def test_purgers_at_once_share_the_work(engine: Engine) -> None:
    rows = 60
    for n in range(rows):
        write(engine, save({}), idempotency=once(f"k-{n}"))
    engine.elapse(25 * 3600)
    barrier = threading.Barrier(THREADS)

    def purge(_: int) -> int:
        barrier.wait()
        return engine.idempotency.purge(rows // THREADS, soon())

    with ThreadPoolExecutor(THREADS) as pool:
        purged = sum(pool.map(purge, range(THREADS)))
    assert purged + engine.idempotency.purge(rows, soon()) == rows


def test_if_absent_is_still_refused_for_what_another_has_made(engine: Engine) -> None:
    prepare(engine)
    with pytest.raises(EntityExistsError) as exists:
        write(engine, save({}, IfAbsent()), idempotency=once())
    assert exists.value.version == 1


def test_a_deadline_that_passed_stops_a_call_before_it_begins(engine: Engine) -> None:
    gone = Deadline.after(10, cancelled=lambda: True)
    with pytest.raises(DeadlineExceededError):
        engine.authority.write(write_of(save({}), idempotency=once()), gone)
    with pytest.raises(DeadlineExceededError):
        engine.idempotency.purge(1, gone)
    assert not write(engine, save({}), idempotency=once()).replayed
