"""What every engine of the authority promises of several mutations, and of the audit."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.errors import (
    EntityExistsError,
    EntityNotFoundError,
    VersionMismatchError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import (
    Applied,
    Change,
    Check,
    IfAbsent,
    IfVersion,
    Origin,
)
from tests.support.authority_engines import (
    in_memory,
    migrated_pool,
    on_postgresql,
    soon,
    write_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from duostore_server.domain.entities import Entity
    from duostore_server.domain.errors import RefusalError
    from duostore_server.domain.transactions import Committed, Mutation, Precondition
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.authority_engines import Engine
    from tests.support.servers import PostgresServer

DUE = timedelta()
THREADS = 8


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture(params=["postgresql", "fake"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        return in_memory()
    return on_postgresql(*request.getfixturevalue("database"))


def key(name: object) -> EntityKey:
    return EntityKey("acme", "account", str(name))


def save(name: object, data: dict[str, Any], precondition: Precondition = None) -> Change:
    return Change(key(name), data, precondition, DUE)


def delete(name: object, precondition: IfVersion | None = None) -> Change:
    return Change(key(name), None, precondition, DUE)


def write(engine: Engine, *mutations: Mutation) -> Committed:
    return engine.authority.write(write_of(*mutations), soon())


def versions(engine: Engine, names: Sequence[object]) -> list[int]:
    found = read(engine, names)
    return [found[key(name)].version if key(name) in found else 0 for name in names]


def read(engine: Engine, names: Sequence[object]) -> dict[EntityKey, Entity]:
    return dict(engine.authority.read([key(name) for name in names], soon()))


def test_all_are_applied_and_answered_in_the_order_of_the_request(engine: Engine) -> None:
    write(engine, save("b", {"n": 1}))
    write(engine, save("d", {"n": 1}))
    committed = write(
        engine,
        save("d", {"n": 2}, IfVersion(1)),
        Check(key("b"), 1),
        save("a", {"n": 1}, IfAbsent()),
        save("c", {"n": 1}),
    )
    found = read(engine, "abcd")
    assert [found[key(name)].data for name in "abcd"] == [{"n": n} for n in (1, 1, 1, 2)]
    assert committed.answer == tuple(
        Applied(found[key(name)].version, found[key(name)].update_time) for name in "dbac"
    )
    assert [applied.version for applied in committed.answer] == [2, 1, 1, 1]
    assert [written.entity for written in committed.written] == [found[key(name)] for name in "dac"]
    assert not committed.replayed


def test_each_change_leaves_its_outbox_row_and_a_check_none(engine: Engine) -> None:
    write(engine, save("b", {}))
    engine.outbox.complete(engine.outbox.claim(9, soon()), soon())
    committed = write(engine, save("c", {}), Check(key("b"), 1), save("a", {}))
    rows = {row.key: row.id for row in engine.outbox.claim(9, soon())}
    assert rows == {written.entity.key: written.row.id for written in committed.written}
    assert set(rows) == {key("a"), key("c")}


def test_a_hundred_large_documents_are_one_transaction(engine: Engine) -> None:
    names = [f"{n:03}" for n in range(100)]
    random.Random(1).shuffle(names)
    data = {"text": "x" * 50_000}
    assert [a.version for a in write(engine, *(save(name, data) for name in names)).answer] == (
        [1] * 100
    )
    with pytest.raises(VersionMismatchError) as refused:
        write(engine, *(save(name, data, IfVersion(1 + (name == "050"))) for name in names))
    assert refused.value.mutation == names.index("050")
    assert set(versions(engine, names)) == {1}
    committed = write(engine, *(save(name, data, IfVersion(1)) for name in names))
    assert [written.entity.key.id for written in committed.written] == names


REFUSED: list[tuple[Mutation, type[RefusalError], dict[str, str]]] = [
    (save("live", {}, IfAbsent()), EntityExistsError, {"version": "1"}),
    (save("live", {}, IfVersion(2)), VersionMismatchError, {"expected": "2", "version": "1"}),
    (save("none", {}, IfVersion(1)), VersionMismatchError, {"expected": "1", "version": "0"}),
    (save("gone", {}, IfVersion(2)), VersionMismatchError, {"expected": "2", "version": "0"}),
    (delete("none"), EntityNotFoundError, {"version": "0"}),
    (delete("gone"), EntityNotFoundError, {"version": "2"}),
    (delete("live", IfVersion(3)), VersionMismatchError, {"expected": "3", "version": "1"}),
    (Check(key("live"), 2), VersionMismatchError, {"expected": "2", "version": "1"}),
    (Check(key("none"), 1), VersionMismatchError, {"expected": "1", "version": "0"}),
    (Check(key("gone"), 2), VersionMismatchError, {"expected": "2", "version": "0"}),
]


@pytest.mark.parametrize(("mutation", "expected", "details"), REFUSED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_is_refused_is_named_and_none_is_applied(
    engine: Engine,
    mutation: Mutation,
    expected: type[RefusalError],
    details: dict[str, str],
    place: int,
) -> None:
    write(engine, save("live", {}))
    write(engine, save("gone", {}))
    write(engine, delete("gone"))
    names = ["live", "gone", "none", "a", "z"]
    before = versions(engine, names)
    audit, backlog = engine.audit(), engine.outbox.backlog(soon()).depth
    mutations: list[Mutation] = [save("a", {}), save("z", {})]
    mutations.insert(place, mutation)
    with pytest.raises(expected) as refused:
        write(engine, *mutations)
    assert refused.value.metadata == {**details, "mutation": str(place)}
    assert str(refused.value).startswith(f"mutations[{place}]: ")
    assert versions(engine, names) == before
    assert engine.audit() == audit
    assert engine.outbox.backlog(soon()).depth == backlog


@pytest.mark.parametrize(("mutation", "expected", "details"), REFUSED)
def test_one_alone_is_refused_without_a_place(
    engine: Engine, mutation: Mutation, expected: type[RefusalError], details: dict[str, str]
) -> None:
    write(engine, save("live", {}))
    write(engine, save("gone", {}))
    write(engine, delete("gone"))
    with pytest.raises(expected) as refused:
        write(engine, mutation)
    assert refused.value.metadata == details
    assert versions(engine, ["live", "gone", "none"]) == [1, 2, 0]


def test_of_several_that_are_refused_the_first_is_named(engine: Engine) -> None:
    for names in ("za", "az"):
        with pytest.raises(VersionMismatchError) as refused:
            write(engine, save("m", {}), *(save(name, {}, IfVersion(7)) for name in names))
        assert refused.value.mutation == 1
    assert versions(engine, "amz") == [0, 0, 0]


def test_a_check_alone_answers_the_version_that_it_found(engine: Engine) -> None:
    (written,) = write(engine, save("a", {})).written
    committed = write(engine, Check(key("a"), 1))
    assert committed.answer == (Applied(1, written.entity.update_time),)
    assert committed.written == ()
    assert versions(engine, "a") == [1]


def test_a_delete_cannot_require_absence_among_others_either(engine: Engine) -> None:
    with pytest.raises(ValueError, match="absent"):
        write(engine, save("a", {}), Change(key("b"), None, IfAbsent(), DUE))
    assert versions(engine, "ab") == [0, 0]


def together(work: Callable[[random.Random], None]) -> None:
    """Do work in many threads that begin at the same time, each with a randomness of its own."""
    barrier = threading.Barrier(THREADS)

    def run(seed: int) -> None:
        barrier.wait()
        work(random.Random(seed))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS)))


def test_amounts_that_are_moved_in_any_order_keep_their_sum(engine: Engine) -> None:
    names, start, moves = range(10), 100, 25
    refused: list[VersionMismatchError] = []
    write(engine, *(save(name, {"amount": start}) for name in names))

    def move(rng: random.Random) -> None:
        done = 0
        while done < moves:
            # In an order of their own, so that a lock order that goes by the request fails.
            source, target = rng.sample(names, 2)
            found = read(engine, (source, target))
            changes = [
                save(name, {"amount": _amount(entity) + gain}, IfVersion(entity.version))
                for name, gain in ((source, -1), (target, +1))
                for entity in [found[key(name)]]
            ]
            try:
                write(engine, *changes)
            except VersionMismatchError as mismatch:
                refused.append(mismatch)
            else:
                done += 1

    together(move)
    # Never for a version that would have been fine.
    assert all(mismatch.version > mismatch.expected for mismatch in refused)
    found = read(engine, names)
    assert sum(_amount(entity) for entity in found.values()) == start * len(names)
    assert sum(entity.version - 1 for entity in found.values()) == 2 * moves * THREADS


def _amount(entity: Entity) -> int:
    assert entity.data is not None
    return int(entity.data["amount"])


def test_entities_that_do_not_exist_yet_are_created_in_any_order(engine: Engine) -> None:
    rounds = 12

    def create(rng: random.Random) -> None:
        for n in range(rounds):
            names = [f"{n}-{m}" for m in range(6)]
            rng.shuffle(names)
            committed = write(engine, *(save(name, {}) for name in names))
            # All of one transaction or none: so each finds them at the same version.
            assert len({applied.version for applied in committed.answer}) == 1

    together(create)
    names = [f"{n}-{m}" for n in range(rounds) for m in range(6)]
    assert set(versions(engine, names)) == {THREADS}


def test_a_check_holds_until_the_commit(engine: Engine) -> None:
    """Of two that each check what the other writes, one is refused: no write skew."""
    for n in range(30):
        a, b = f"{n}-a", f"{n}-b"
        write(engine, save(a, {"on": True}), save(b, {"on": True}))
        barrier = threading.Barrier(2)
        names = [(a, b), (b, a)]

        def leave(
            pair: tuple[str, str], barrier: threading.Barrier = barrier
        ) -> VersionMismatchError | None:
            own, other = pair
            barrier.wait()
            try:
                write(engine, save(own, {"on": False}), Check(key(other), 1))
            except VersionMismatchError as mismatch:
                return mismatch
            return None

        with ThreadPoolExecutor(2) as pool:
            refused = [each for each in pool.map(leave, names) if each]
        assert [each.mutation for each in refused] == [1]
        assert sorted(versions(engine, [a, b])) == [1, 2]


def test_each_version_is_audited_with_who_wrote_it(engine: Engine) -> None:
    origins = [Origin("alice", "r-1"), Origin("", ""), Origin("bob", "r-3")]
    transactions = [
        write_of(save("a", {"n": 1}), origin=origins[0]),
        write_of(save("b", {}), save("a", {"n": 2}, IfVersion(1)), origin=origins[1]),
        write_of(delete("a"), Check(key("b"), 1), origin=origins[2]),
    ]
    written = [
        each
        for transaction in transactions
        for each in engine.authority.write(transaction, soon()).written
    ]
    rows = {(row.key, row.version): row for row in engine.audit()}
    assert len(rows) == len(written) == 4
    assert all(rows[w.entity.key, w.entity.version].time == w.entity.update_time for w in written)
    assert {place: (row.operation, row.origin) for place, row in rows.items()} == {
        (key("a"), 1): ("save", origins[0]),
        (key("b"), 1): ("save", origins[1]),
        (key("a"), 2): ("save", origins[1]),
        (key("a"), 3): ("delete", origins[2]),
    }
