"""What every engine of the authority promises."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.documents import document_violations, normalized
from duostore_server.domain.errors import (
    DeadlineExceededError,
    EntityExistsError,
    EntityNotFoundError,
    VersionMismatchError,
)
from duostore_server.domain.keys import MAX_ID_BYTES, EntityKey, key_violations
from duostore_server.domain.transactions import Change, IfAbsent, IfVersion
from tests.support.authority_engines import (
    in_memory,
    migrated_pool,
    on_postgresql,
    soon,
    write_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.entities import Entity
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.authority_engines import Engine
    from tests.support.servers import PostgresServer

KEY = EntityKey("acme", "proposal", "p-1")
OTHER = EntityKey("acme", "proposal", "p-2")
LATER = timedelta(hours=1)
THREADS = 8

UNUSUAL_KEYS = [
    EntityKey("", "proposal", "p-1"),
    EntityKey("", "k", "acme#proposal#p-1"),
    EntityKey("acme", "proposal", "#"),
    EntityKey("acme", "proposal", "P-1"),
    EntityKey("acme", "proposal", "p-1 "),
    EntityKey("acme", "proposal", " p-1"),
    EntityKey("acme", "proposal", "x" * MAX_ID_BYTES),
    EntityKey("acme", "proposal", "x" * (MAX_ID_BYTES - 1)),
    EntityKey("acme", "proposal", "\N{GRINNING FACE}" * (MAX_ID_BYTES // 4)),
    EntityKey("acme", "proposal", "'; DROP TABLE duostore.entity; --"),
    EntityKey("acme", "proposal", '"{},\\'),
    EntityKey("acme", "proposal", "\\N"),
    EntityKey("acme", "proposal", "NULL"),
    EntityKey("acme", "proposal", "%s %(id)s %"),
    # The same to a reader's eye, not to a store: composed and decomposed.
    EntityKey("acme", "proposal", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"),
    EntityKey("acme", "proposal", "cafe\N{COMBINING ACUTE ACCENT}"),
    EntityKey("\N{HIRAGANA LETTER A}", "\N{HIRAGANA LETTER I}", "\N{HIRAGANA LETTER U}"),
]


def nested(depth: int) -> dict[str, Any]:
    data: dict[str, Any] = {"leaf": [[]]}
    for _ in range(depth - 3):
        data = {"a": data}
    return data


AWKWARD_DOCUMENTS = [
    {},
    {"": ""},
    {"": {"": [{}, [], ""]}},
    {"null": None, "true": True, "false": False, "zero": 0, "one": 1},
    {"whole": [2**53, -(2**53), 2**53 - 1, 0]},
    {"small": [1e-300, -1e-300, 5e-324, 2.2250738585072014e-308]},
    {"fractions": [0.1, -0.1, 1 / 3, 0.30000000000000004, 123456789.123456789]},
    {"below 2^53": [4503599627370495.5, 1.0000000000000002]},
    {"text": "\N{GRINNING FACE} caf\N{LATIN SMALL LETTER E WITH ACUTE} \ufeff \ufffe \u2028"},
    {"escapes": '"\\/\b\f\n\r\t\x01\x7f \\u0000 \\x00 %s'},
    {"names": {"b": 1, "a": 2, "aa": 3, "\N{GRINNING FACE}": 4, "'": 5, "%s": 6, "$1": 7}},
    {"long": "x" * 1_000_000},
    {"many": list(range(10_000))},
    {"long name " + "n" * 10_000: 1},
    nested(20),
]


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


def save(
    engine: Engine,
    data: dict[str, Any] | None = None,
    precondition: IfVersion | IfAbsent | None = None,
    *,
    key: EntityKey = KEY,
) -> Entity:
    change = Change(key, data if data is not None else {"a": 1}, precondition, LATER)
    return engine.authority.write(write_of(change), soon()).written[0].entity


def delete(engine: Engine, precondition: IfVersion | None = None) -> Entity:
    change = Change(KEY, None, precondition, LATER)
    return engine.authority.write(write_of(change), soon()).written[0].entity


def read(engine: Engine, key: EntityKey = KEY) -> Entity | None:
    return engine.authority.read([key], soon()).get(key)


def test_versions_start_at_1_and_rise_by_1(engine: Engine) -> None:
    assert [save(engine).version for _ in range(3)] == [1, 2, 3]
    assert save(engine, key=OTHER).version == 1


def test_a_write_answers_what_a_read_then_finds(engine: Engine) -> None:
    for data in ({"a": 1}, {"b": [True, None]}):
        assert save(engine, data) == read(engine)
    tombstone = delete(engine)
    assert tombstone.data is None
    assert tombstone == read(engine)


def test_a_delete_is_a_version_and_none_is_used_twice(engine: Engine) -> None:
    assert save(engine).version == 1
    assert delete(engine).version == 2
    assert save(engine).version == 3
    assert delete(engine).version == 4
    assert save(engine, precondition=IfAbsent()).version == 5


def test_a_key_that_never_existed_is_missing(engine: Engine) -> None:
    save(engine)
    found = engine.authority.read([OTHER, KEY], soon())
    assert set(found) == {KEY}
    assert engine.authority.read([OTHER], soon()) == {}
    assert engine.authority.read([], soon()) == {}


def test_many_keys_are_read_at_once_and_each_under_its_own_name(engine: Engine) -> None:
    keys = [EntityKey("acme", "proposal", f"p-{n}") for n in range(500)]
    for n, key in enumerate(keys[::2]):
        save(engine, {"n": n}, key=key)
    found = engine.authority.read([*keys, keys[0]], soon())
    assert set(found) == set(keys[::2])
    assert all(found[key].data == {"n": n} for n, key in enumerate(keys[::2]))
    assert all(found[key].key == key for key in found)


def test_if_version_holds_for_that_version_alone(engine: Engine) -> None:
    save(engine, {"n": 1})
    for wrong in (2, 10**12, 2**63 - 1):
        with pytest.raises(VersionMismatchError) as mismatch:
            save(engine, {"n": 9}, IfVersion(wrong))
        assert (mismatch.value.expected, mismatch.value.version) == (wrong, 1)
    assert save(engine, {"n": 2}, IfVersion(1)).version == 2
    with pytest.raises(VersionMismatchError) as mismatch:
        save(engine, {"n": 9}, IfVersion(1))
    assert (mismatch.value.expected, mismatch.value.version) == (1, 2)
    assert (found := read(engine))
    assert found.data == {"n": 2}


def test_if_version_never_holds_for_what_is_absent_or_deleted(engine: Engine) -> None:
    with pytest.raises(VersionMismatchError) as mismatch:
        save(engine, precondition=IfVersion(1))
    assert mismatch.value.version == 0
    assert read(engine) is None
    save(engine)
    delete(engine)
    for version in (1, 2, 3):
        with pytest.raises(VersionMismatchError) as mismatch:
            save(engine, precondition=IfVersion(version))
        assert mismatch.value.version == 0


def test_if_absent_holds_for_what_is_absent_or_deleted(engine: Engine) -> None:
    assert save(engine, {"n": 1}, IfAbsent()).version == 1
    with pytest.raises(EntityExistsError) as exists:
        save(engine, {"n": 9}, IfAbsent())
    assert exists.value.version == 1
    assert (found := read(engine))
    assert found.data == {"n": 1}
    delete(engine)
    assert save(engine, {"n": 3}, IfAbsent()).version == 3


def test_a_delete_needs_an_entity(engine: Engine) -> None:
    with pytest.raises(EntityNotFoundError) as missing:
        delete(engine)
    assert missing.value.version == 0
    assert read(engine) is None
    save(engine)
    delete(engine)
    with pytest.raises(EntityNotFoundError) as missing:
        delete(engine)
    assert missing.value.version == 2
    assert (found := read(engine))
    assert found.version == 2


def test_a_delete_can_require_a_version(engine: Engine) -> None:
    with pytest.raises(VersionMismatchError) as mismatch:
        delete(engine, IfVersion(1))
    assert mismatch.value.version == 0
    save(engine)
    with pytest.raises(VersionMismatchError) as mismatch:
        delete(engine, IfVersion(2))
    assert (mismatch.value.expected, mismatch.value.version) == (2, 1)
    assert delete(engine, IfVersion(1)).version == 2
    with pytest.raises(VersionMismatchError) as mismatch:
        delete(engine, IfVersion(2))
    assert mismatch.value.version == 0


def test_a_delete_cannot_require_absence(engine: Engine) -> None:
    with pytest.raises(ValueError, match="absent"):
        engine.authority.write(write_of(Change(KEY, None, IfAbsent(), LATER)), soon())


def test_a_refused_write_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(VersionMismatchError):
        save(engine, precondition=IfVersion(1))
    with pytest.raises(EntityNotFoundError):
        delete(engine)
    assert read(engine) is None
    assert engine.outbox.backlog(soon()).depth == 0


def test_a_write_and_its_outbox_row_are_one(engine: Engine) -> None:
    change = Change(KEY, {}, None, timedelta())
    (written,) = engine.authority.write(write_of(change), soon()).written
    assert [(row.id, row.key) for row in engine.outbox.claim(10, soon())] == [(written.row.id, KEY)]


def test_create_time_is_kept_until_the_entity_is_created_anew(engine: Engine) -> None:
    first = save(engine)
    assert first.create_time == first.update_time
    assert first.create_time.tzinfo is UTC
    second = save(engine)
    tombstone = delete(engine)
    assert second.create_time == tombstone.create_time == first.create_time
    again = save(engine)
    assert again.create_time == again.update_time
    assert again.create_time >= tombstone.update_time
    assert save(engine).create_time == again.create_time


def test_update_time_never_decreases(engine: Engine) -> None:
    times = [save(engine).update_time for _ in range(5)]
    times.append(delete(engine).update_time)
    times.append(save(engine).update_time)
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_unusual_keys_are_all_different(engine: Engine) -> None:
    assert not [v for key in UNUSUAL_KEYS for v in key_violations(key, "key")]
    for n, key in enumerate(UNUSUAL_KEYS):
        assert save(engine, {"n": n}, key=key).version == 1
    found = engine.authority.read(UNUSUAL_KEYS, soon())
    assert {key: found[key].data for key in found} == {
        key: {"n": n} for n, key in enumerate(UNUSUAL_KEYS)
    }
    for n, key in enumerate(UNUSUAL_KEYS):
        assert (one := read(engine, key))
        assert (one.key, one.data) == (key, {"n": n})
    engine.elapse(7200)
    claimed = [row.key for row in engine.outbox.claim(100, soon())]
    assert set(claimed) == set(UNUSUAL_KEYS)


def exact(value: Any) -> Any:
    """Return a value whose equality also tells 1 from 1.0 and from True."""
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return (type(value), value)


@pytest.mark.parametrize("data", AWKWARD_DOCUMENTS, ids=lambda data: next(iter(data), "{}")[:20])
def test_awkward_documents_come_back_unchanged(engine: Engine, data: dict[str, Any]) -> None:
    assert not list(document_violations(data, "data"))
    save(engine, data)
    assert (found := read(engine))
    assert exact(found.data) == exact(data)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = st.floats(min_value=-(2**53), max_value=2**53, allow_nan=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example overwrites
)
@given(data=st.dictionaries(texts, values, max_size=5).map(normalized))
def test_every_document_comes_back_unchanged(engine: Engine, data: dict[str, Any]) -> None:
    save(engine, data)
    assert (found := read(engine))
    assert exact(found.data) == exact(data)


def test_versions_have_no_gaps_under_concurrent_writers(engine: Engine) -> None:
    """C3: each version was really written, with the data that a read finds with it."""
    rounds = 25
    barrier = threading.Barrier(THREADS)

    def writer(name: int) -> list[Entity]:
        barrier.wait()
        return [save(engine, {"by": name, "n": n}) for n in range(rounds)]

    with ThreadPoolExecutor(THREADS) as pool:
        by_writer = list(pool.map(writer, range(THREADS)))
    for own in by_writer:
        assert [e.version for e in own] == sorted(e.version for e in own)
    written = sorted((e for own in by_writer for e in own), key=lambda e: e.version)
    assert [e.version for e in written] == list(range(1, THREADS * rounds + 1))
    assert [e.update_time for e in written] == sorted(e.update_time for e in written)
    assert {e.create_time for e in written} == {written[0].create_time}
    assert read(engine) == written[-1]


def test_of_concurrent_writers_one_meets_the_version(engine: Engine) -> None:
    save(engine)
    barrier = threading.Barrier(THREADS)

    def increment(_: int) -> list[VersionMismatchError]:
        """Do what an application does that must lose no update."""
        refused = []
        barrier.wait()
        while True:
            current = read(engine)
            assert current is not None
            assert current.data is not None
            try:
                save(engine, {"a": current.data["a"] + 1}, IfVersion(current.version))
            except VersionMismatchError as mismatch:
                refused.append(mismatch)
            else:
                return refused

    with ThreadPoolExecutor(THREADS) as pool:
        refused = [mismatch for own in pool.map(increment, range(THREADS)) for mismatch in own]
    assert (found := read(engine))
    assert found.data == {"a": 1 + THREADS}
    assert found.version == 1 + THREADS
    # No refusal contradicts what the writer had read.
    assert all(mismatch.version > mismatch.expected for mismatch in refused)


def test_of_concurrent_creators_one_finds_it_absent(engine: Engine) -> None:
    for n in range(20):
        key = replace(KEY, id=f"p-{n}")
        barrier = threading.Barrier(THREADS)

        def create(
            name: int, key: EntityKey = key, barrier: threading.Barrier = barrier
        ) -> EntityExistsError | None:
            barrier.wait()
            try:
                save(engine, {"by": name}, IfAbsent(), key=key)
            except EntityExistsError as exists:
                return exists
            return None

        with ThreadPoolExecutor(THREADS) as pool:
            refused = list(pool.map(create, range(THREADS)))
        assert [refusal.version for refusal in refused if refusal] == [1] * (THREADS - 1)
        assert (found := read(engine, key))
        assert found.data == {"by": refused.index(None)}


def test_a_deadline_that_passed_stops_a_call_before_it_begins(engine: Engine) -> None:
    for deadline in (Deadline.after(0), Deadline.after(10, cancelled=lambda: True)):
        with pytest.raises(DeadlineExceededError):
            engine.authority.read([KEY], deadline)
        with pytest.raises(DeadlineExceededError):
            engine.authority.write(write_of(Change(KEY, {}, None, LATER)), deadline)
    assert read(engine) is None
