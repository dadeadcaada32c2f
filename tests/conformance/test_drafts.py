"""What every engine of the drafts promises."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.snapshots import Draft
from duostore_server.storage.aurora.drafts import AuroraDrafts
from tests.support.authority_engines import empty, migrated_pool, soon
from tests.support.fake_authority import FakeAuthority

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from duostore_server.domain.ports import Drafts
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
THREADS = 8


class Engine:
    """Drafts that hold nothing yet, and what they hold."""

    def __init__(self, drafts: Drafts, held: Callable[[], Mapping[EntityKey, Draft]]) -> None:
        self.drafts = drafts
        self.held = held

    def fold(self, *drafts: Draft) -> Mapping[EntityKey, int]:
        return self.drafts.fold(drafts, soon())


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture(params=["postgresql", "fake"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "fake":
        fake = FakeAuthority()
        return Engine(fake, fake.drafts)
    dsn, pool = request.getfixturevalue("database")
    empty(dsn)

    def held() -> Mapping[EntityKey, Draft]:
        with psycopg.connect(dsn) as connection:
            rows = connection.execute(
                "SELECT tenant, kind, id, sequence, data, deleted, update_time, expire_time"
                " FROM duostore.draft"
            ).fetchall()
        assert all(deleted == (data is None) for *_, data, deleted, _, _ in rows)
        return {
            (name := EntityKey(tenant, kind, id_)): Draft(
                name,
                sequence,
                data,
                update_time.astimezone(UTC),
                expire_time and expire_time.astimezone(UTC),
            )
            for tenant, kind, id_, sequence, data, _, update_time, expire_time in rows
        }

    return Engine(AuroraDrafts(pool), held)


def key(name: object) -> EntityKey:
    return EntityKey("acme", "proposal", str(name))


def draft(name: object, sequence: int) -> Draft:
    return Draft(key(name), sequence, {"n": sequence}, NOON + timedelta(microseconds=sequence))


def test_a_draft_is_held_as_it_was_given(engine: Engine) -> None:
    data = {"text": "\N{GRINNING FACE} '\"{},\\", "none": None, "list": [1, 0.5]}
    given = [
        draft("a", 1),
        Draft(key("b"), 2**62, data, NOON),
        Draft(EntityKey("", "k", "#{}\\ NULL"), 3, None, NOON),
        Draft(key("c"), 1, {}, NOON, NOON + timedelta(hours=24)),
    ]
    assert engine.fold(*given) == {each.key: 0 for each in given}
    assert engine.held() == {each.key: each for each in given}


def test_nothing_is_folded_into_nothing(engine: Engine) -> None:
    assert engine.fold() == {}
    assert engine.held() == {}


def test_the_newer_sequence_wins_in_whatever_order_they_come(engine: Engine) -> None:
    assert engine.fold(draft("a", 5)) == {key("a"): 0}
    assert engine.fold(draft("a", 4)) == {key("a"): 5}
    assert engine.fold(replace(draft("a", 5), data={"other": True})) == {key("a"): 5}
    assert engine.held() == {key("a"): draft("a", 5)}
    assert engine.fold(draft("a", 9)) == {key("a"): 5}
    assert engine.fold(draft("a", 9)) == {key("a"): 9}
    assert engine.held() == {key("a"): draft("a", 9)}


def test_a_deletion_is_folded_like_any_other(engine: Engine) -> None:
    gone = Draft(key("a"), 2, None, NOON)
    engine.fold(draft("a", 1))
    assert engine.fold(gone) == {key("a"): 1}
    assert engine.held() == {key("a"): gone}
    assert engine.fold(draft("a", 3)) == {key("a"): 2}
    assert engine.held() == {key("a"): draft("a", 3)}


def test_each_of_many_is_judged_and_answered_by_itself(engine: Engine) -> None:
    engine.fold(*(draft(n, 10) for n in range(0, 100, 2)))
    names = list(range(100))
    random.Random(1).shuffle(names)
    before = engine.fold(*(draft(n, 5 + n % 3 * 5) for n in names))
    assert before == {key(n): 0 if n % 2 else 10 for n in range(100)}
    assert {name: held.sequence for name, held in engine.held().items()} == {
        key(n): 5 + n % 3 * 5 if n % 2 else max(10, 5 + n % 3 * 5) for n in range(100)
    }


def test_many_that_fold_the_same_at_once_end_with_the_newest(engine: Engine) -> None:
    rounds, names = 10, range(20)
    barrier = threading.Barrier(THREADS)

    def fold(thread: int) -> None:
        rng = random.Random(thread)
        barrier.wait()
        for n in range(rounds):
            # In an order of their own, new ones and old ones.
            chosen = rng.sample(names, 15)
            sequence = 1 + n * THREADS + thread
            before = engine.fold(*(draft(name, sequence) for name in chosen))
            assert set(before) == {key(name) for name in chosen}
        engine.fold(*(draft(name, 1000 + thread) for name in rng.sample(names, len(names))))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fold, range(THREADS)))
    assert engine.held() == {key(name): draft(name, 1000 + THREADS - 1) for name in names}


def test_a_deadline_that_passed_stops_a_call_before_it_begins(engine: Engine) -> None:
    for deadline in (Deadline.after(0), Deadline.after(10, cancelled=lambda: True)):
        with pytest.raises(DeadlineExceededError):
            engine.drafts.fold([draft("a", 1)], deadline)
    assert engine.held() == {}
