"""What every engine of the entities promises."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.types.numeric import Int8

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.authority import AuroraAuthority
from duostore_server.storage.aurora.entities import _PAGE, _SAVED, AuroraEntities
from tests.support.authority_engines import empty, migrated_pool, soon, write_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import LiteralString

    from duostore_server.domain.entities import Entity
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
# Ends where the first page would begin.
_FIRST: dict[str, Any] = {"tenant": "", "id": "", "until_tenant": None, "until_id": None}
# How a page would be asked for without going from tenant to tenant.
_PLAIN: LiteralString = """
SELECT tenant, id, version, data::text, create_time, update_time
FROM duostore.entity
WHERE kind = %(kind)s AND (tenant, id) > (%(tenant)s, %(id)s)
ORDER BY tenant, id
LIMIT %(limit)s
"""


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture
def dsn(database: tuple[str, AuroraPool]) -> str:
    dsn, _ = database
    empty(dsn)
    return dsn


@pytest.fixture
def pool(dsn: str, database: tuple[str, AuroraPool]) -> AuroraPool:
    assert dsn
    return database[1]


@pytest.fixture
def entities(pool: AuroraPool) -> AuroraEntities:
    return AuroraEntities(pool)


def key(tenant: str, id_: object, kind: str = "a") -> EntityKey:
    return EntityKey(tenant, kind, str(id_))


def put(dsn: str, keys: Iterable[EntityKey], size: int = 0) -> None:
    """Write entities with documents of so many bytes and a few."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        rows = [(each.tenant, each.kind, each.id, size) for each in keys]
        cursor.execute(
            "INSERT INTO duostore.entity"
            " SELECT tenant, kind, id, 1, jsonb_build_object('text', repeat('x', size)), 1, false,"
            " now(), now()"
            " FROM unnest(%s::text[], %s::text[], %s::text[], %s::int[]) AS k (tenant, kind, id,"
            " size)",
            [list(column) for column in zip(*rows, strict=True)],
        )


def fill(dsn: str, kind: str, tenants: int, ids: int) -> None:
    """Write entities of a kind: so many tenants, t1 and on, with so many ids each."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO duostore.entity"
            " SELECT 't' || t, %s, 'i' || n, 1, '{}', 1, false, now(), now()"
            " FROM generate_series(1, %s) AS t, generate_series(1, %s) AS n",
            (kind, tenants, ids),
        )


def walk(
    entities: AuroraEntities,
    kind: str,
    limit: int,
    after: EntityKey | None = None,
    until: EntityKey | None = None,
) -> Iterator[Sequence[Entity]]:
    """Yield all pages of a part."""
    while True:
        page = entities.page(kind, after, until, limit, soon())
        assert len(page.entities) <= limit
        yield page.entities
        if page.last is None:
            return
        assert after is None or (after.tenant, after.id) < (page.last.tenant, page.last.id)
        after = page.last


def walked(
    entities: AuroraEntities,
    kind: str,
    limit: int,
    after: EntityKey | None = None,
    until: EntityKey | None = None,
) -> list[EntityKey]:
    return [each.key for page in walk(entities, kind, limit, after, until) for each in page]


def cost(dsn: str, query: LiteralString, params: object) -> int:
    """Return how many blocks a statement looks at."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        (((plan,),),) = connection.execute(
            b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query.encode(),
            params,  # type: ignore[arg-type]  # of any statement
        ).fetchall()
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def page_cost(dsn: str, query: LiteralString, limit: int) -> int:
    bounds = {"limit": Int8(limit), "tenants": Int8(2000), "bytes": Int8(2**22)}
    return cost(dsn, query, {**_FIRST, "kind": "a", **bounds})


def test_there_is_nothing_at_first(entities: AuroraEntities) -> None:
    page = entities.page("a", None, None, 10, soon())
    assert (page.entities, page.last) == ([], None)
    assert list(entities.sample("a", 10, soon())) == list(entities.sample("", 10, soon())) == []
    assert entities.estimate("a", soon()) == entities.estimate("", soon()) == 0
    assert entities.saved(NOON, NOON + timedelta(days=99999), 10, soon()) == []


def test_a_page_is_of_one_kind_in_the_order_of_tenant_and_id(
    dsn: str, entities: AuroraEntities
) -> None:
    # By their bytes, which no language's rules sort so.
    names = ["", "A", "B", "a", "b", "\u00e4", "\uffee", "\N{GRINNING FACE}"]
    keys = [key(tenant, id_) for tenant in names for id_ in ("#", *names[1:])]
    others = [key(tenant, id_, kind) for kind in ("A", "aa") for tenant in names for id_ in "1Zz"]
    shuffled = [*keys, *others]
    random.Random(1).shuffle(shuffled)
    put(dsn, shuffled)
    assert walked(entities, "a", 100) == keys
    assert walked(entities, "a", 3) == keys
    assert len(walked(entities, "aa", 100)) == 3 * len(names)
    assert walked(entities, "b", 100) == []


def test_entities_are_as_the_authority_has_them(pool: AuroraPool, entities: AuroraEntities) -> None:
    authority = AuroraAuthority(pool)
    documents: list[Any] = [
        {"text": "\N{GRINNING FACE} '\"{},\\", "none": None, "list": [1, 0.5, -0.0, 1e300, True]},
        {},
        None,
    ]
    keys = [key("", n) for n in range(len(documents))]
    for name, data in zip(keys, documents, strict=True):
        authority.write(write_of(Change(name, {"n": 1}, None, timedelta())), soon())
        authority.write(write_of(Change(name, data, None, timedelta())), soon())
    page = entities.page("a", None, None, 10, soon())
    assert {each.key: each for each in page.entities} == authority.read(keys, soon())
    assert [each.data for each in page.entities] == documents
    assert [each.version for each in page.entities] == [2, 2, 2]
    # Each page sees what was committed before it.
    authority.write(write_of(Change(keys[1], {"n": 2}, None, timedelta())), soon())
    (entity,) = entities.page("a", keys[0], keys[1], 10, soon()).entities
    assert (entity.version, entity.data) == (3, {"n": 2})


def test_a_part_is_after_one_key_and_up_to_another(dsn: str, entities: AuroraEntities) -> None:
    keys = [key(tenant, id_) for tenant in ("", "s", "t") for id_ in range(5)]
    put(dsn, keys)
    put(dsn, [key("t", 9, "z")])
    for begin in range(-1, len(keys)):
        for end in range(begin, len(keys) + 1):
            after = keys[begin] if begin >= 0 else None
            until = keys[end] if end < len(keys) else None
            expected = keys[begin + 1 : end + 1]
            assert walked(entities, "a", 4, after, until) == expected if until != after else True
    # Of keys that are not there, too: before, between and behind those that are.
    assert walked(entities, "a", 4, key("", ""), key("", "3x")) == keys[:4]
    assert walked(entities, "a", 4, key("", "9"), key("t", "")) == keys[5:10]
    assert walked(entities, "a", 4, key("s", ""), key("s", "")) == []
    assert walked(entities, "a", 4, key("t", "9"), key("u", "9")) == []


def test_parts_and_pages_leave_nothing_out_and_nothing_twice(dsn: str, pool: AuroraPool) -> None:
    rng = random.Random(7)
    tenants = ["", *(f"t{n}" for n in range(12))]
    every = {
        EntityKey(rng.choice(tenants), rng.choice("aabz"), str(rng.randrange(400)))
        for _ in range(900)
    }
    put(dsn, every)
    for kind in "abzc":
        expected = sorted(
            (each for each in every if each.kind == kind), key=lambda k: (k.tenant, k.id)
        )
        for page_tenants in (1, 2, 5, 100):
            entities = AuroraEntities(pool, page_tenants=page_tenants)
            cuts: list[EntityKey | None] = [
                key(rng.choice(tenants), rng.choice(["", "2", "399x"]), kind) for _ in range(4)
            ]
            cuts.sort(key=lambda k: (k.tenant, k.id) if k else ("", ""))
            parts = zip([None, *cuts], [*cuts, None], strict=True)
            found = [
                each
                for after, until in parts
                for each in walked(entities, kind, rng.choice([1, 7, 1000]), after, until)
            ]
            assert found == expected


def test_a_page_ends_with_so_many_bytes_and_has_one_at_least(dsn: str, pool: AuroraPool) -> None:
    put(dsn, [key("", n) for n in range(10)], size=1000)
    put(dsn, [key("t", 0)], size=100_000)
    put(dsn, [key("u", n) for n in range(2)], size=10)
    entities = AuroraEntities(pool, page_bytes=4000)
    sizes = [len(page) for page in walk(entities, "a", 100)]
    assert sizes == [4, 4, 3, 2]
    assert [len(page) for page in walk(AuroraEntities(pool, page_bytes=1), "a", 5)][:13] == [1] * 13


def test_tenants_that_have_none_are_passed_over_so_many_a_page(dsn: str, pool: AuroraPool) -> None:
    fill(dsn, "z", 40, 2)
    last = key("t9", 1)
    put(dsn, [last])
    entities = AuroraEntities(pool, page_tenants=10)
    pages = list(walk(entities, "a", 100))
    assert [len(page) for page in pages] == [0, 0, 0, 0, 1][-len(pages) :]
    assert len(pages) == 5
    first = entities.page("a", None, None, 100, soon())
    assert first.last is not None
    assert (first.last.kind, first.last.id) == ("a", "")


@pytest.mark.parametrize("analyzed", [False, True])
def test_a_page_costs_what_it_returns_however_much_there_is_of_others(
    postgres_dsn: str, *, analyzed: bool
) -> None:
    """And a plain statement would read all of it."""
    with migrated_pool(postgres_dsn):
        pass
    dsn = postgres_dsn
    fill(dsn, "a", 5, 200)
    fill(dsn, "b", 5, 200)
    before = page_cost(dsn, _PAGE, 500)
    # Between, before and behind.
    fill(dsn, "z", 5, 10_000)
    fill(dsn, "Z", 5, 10_000)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO duostore.entity"
            " SELECT 't2', 'z', 'j' || n, 1, '{}', 1, false, now(), now()"
            " FROM generate_series(1, 100000) AS n"
        )
        if analyzed:
            connection.execute("ANALYZE duostore.entity")
    after = page_cost(dsn, _PAGE, 500)
    # A level of the index, and what an entity's look into it takes.
    assert after <= before + 1000
    assert after < 5 * 500
    assert page_cost(dsn, _PLAIN, 500) > after
    # The end of the kind in its last tenant is no further than any other page's.
    end = {**_FIRST, "kind": "a", "tenant": "t5", "id": "i99"}
    bounds = {"limit": Int8(500), "tenants": Int8(2000), "bytes": Int8(2**22)}
    assert cost(dsn, _PAGE, {**end, **bounds}) < 20
    assert cost(dsn, _PLAIN, {**end, "limit": Int8(500)}) > 1000 or not analyzed


def test_a_page_of_a_hundred_thousand_tenants_costs_its_share(postgres_dsn: str) -> None:
    with migrated_pool(postgres_dsn) as pool:
        fill(postgres_dsn, "z", 100_000, 1)
        put(postgres_dsn, [key("t99999", 1)])
        assert page_cost(postgres_dsn, _PAGE, 500) < 2000 * 12
        entities = AuroraEntities(pool)
        pages = [page.last for page in [entities.page("a", None, None, 500, soon())]]
        assert pages[0] is not None
        assert walked(entities, "a", 500) == [key("t99999", 1)]
        # To sample it and to count it is not to go through them all.
        assert entities.sample("a", 10, Deadline.after(2)) in ([], [key("t99999", 1)])
        assert entities.estimate("a", Deadline.after(2)) < 10_000


def test_a_sample_is_all_of_a_few(dsn: str, entities: AuroraEntities) -> None:
    keys = {key(tenant, n) for tenant in ("", "t") for n in range(20)}
    others = {key("", n, "b") for n in range(20)}
    put(dsn, keys | others)
    for limit in (40, 41, 500):
        sample = entities.sample("a", limit, soon())
        assert len(sample) == 40
        assert set(sample) == keys
    assert set(entities.sample("", 100, soon())) == keys | others
    assert list(entities.sample("c", 100, soon())) == []


@pytest.mark.parametrize("kind", ["a", ""])
def test_a_sample_is_at_random(dsn: str, entities: AuroraEntities, kind: str) -> None:
    keys = {key("", n) for n in range(200)}
    put(dsn, keys)
    samples = [tuple(entities.sample(kind, 10, soon())) for _ in range(60)]
    for sample in samples:
        assert len(sample) == len(set(sample)) == 10
    assert len(set(samples)) == 60
    # All but one in a trillion times.
    assert len({each for sample in samples for each in sample}) > 150


def test_a_large_table_is_sampled_in_part(dsn: str, pool: AuroraPool) -> None:
    fill(dsn, "a", 20, 1000)
    entities = AuroraEntities(pool, blocks=16)
    seen: set[EntityKey] = set()
    for _ in range(20):
        sample = entities.sample("a", 50, soon())
        assert len(sample) == len(set(sample)) == 50
        assert {each.kind for each in sample} == {"a"}
        seen |= set(sample)
    assert len({each.tenant for each in seen}) == 20


def test_of_a_rare_kind_all_are_found(dsn: str, pool: AuroraPool) -> None:
    fill(dsn, "z", 20, 1000)
    keys = {key(f"t{n}", "rare") for n in range(1, 21)}
    put(dsn, keys)
    entities = AuroraEntities(pool, blocks=4)
    assert set(entities.sample("a", 20, soon())) == keys
    assert set(entities.sample("a", 100, soon())) == keys
    samples = [frozenset(entities.sample("a", 5, soon())) for _ in range(20)]
    assert {len(sample) for sample in samples} == {5}
    assert len(set(samples)) > 10
    assert entities.estimate("a", soon()) == 20


def test_of_a_kind_that_is_neither_rare_nor_common_as_many_are_found_as_are_wanted(
    dsn: str, pool: AuroraPool
) -> None:
    """It is read on from where it was met, or from its beginning."""
    fill(dsn, "z", 20, 1000)
    fill(dsn, "a", 20, 150)
    entities = AuroraEntities(pool, blocks=64)
    for limit in (10, 500):
        sample = entities.sample("a", limit, soon())
        assert len(sample) == len(set(sample)) == limit
        assert {each.kind for each in sample} == {"a"}


def test_small_tables_are_counted(dsn: str, entities: AuroraEntities) -> None:
    fill(dsn, "a", 3, 100)
    fill(dsn, "b", 1, 7)
    assert [entities.estimate(kind, soon()) for kind in ("a", "b", "c", "")] == [300, 7, 0, 307]


def test_large_tables_are_estimated(dsn: str, pool: AuroraPool) -> None:
    fill(dsn, "a", 20, 1000)
    fill(dsn, "b", 20, 300)
    fill(dsn, "c", 1, 7)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("ANALYZE duostore.entity")
    entities = AuroraEntities(pool, blocks=16)
    # Often enough that the driver prepares it, and the server may make one plan for all kinds.
    for _ in range(12):
        assert entities.estimate("a", soon()) == pytest.approx(20_000, rel=0.2)
        assert entities.estimate("b", soon()) == pytest.approx(6000, rel=0.2)
        assert entities.estimate("", soon()) == pytest.approx(26_007, rel=0.2)
    assert entities.estimate("c", soon()) == 7
    assert entities.estimate("d", soon()) == 0


def audit(dsn: str, seconds: Sequence[float]) -> None:
    """Write versions of one entity, 1 and on, of these times after noon."""
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO duostore.audit VALUES ('t', 'a', 'i', %s, 'save', '', '', %s)",
            [(n, NOON + second * SECOND) for n, second in enumerate(seconds, 1)],
        )


def test_saves_are_those_after_one_time_and_up_to_another(
    dsn: str, entities: AuroraEntities
) -> None:
    audit(dsn, [0, 1, 1.000001, 1.5, 2, 2.000001, 3])
    saved = entities.saved(NOON + SECOND, NOON + 2 * SECOND, 10, soon())
    assert sorted(each.version for each in saved) == [3, 4, 5]
    assert {each.key for each in saved} == {key("t", "i")}
    (third,) = (each for each in saved if each.version == 3)
    assert third.time == NOON + 1.000001 * SECOND
    assert third.time.tzinfo is UTC
    assert entities.saved(NOON + 3 * SECOND, NOON + 9 * SECOND, 10, soon()) == []


def test_saves_and_deletions_of_the_authority_are_found(
    pool: AuroraPool, entities: AuroraEntities
) -> None:
    authority = AuroraAuthority(pool)
    for data in ({"n": 1}, {"n": 2}, None):
        (written,) = authority.write(
            write_of(Change(key("", 1), data, None, timedelta())), soon()
        ).written
        entity = written.entity
        (saved,) = entities.saved(
            entity.update_time - timedelta(microseconds=1), entity.update_time, 10, soon()
        )
        assert (saved.key, saved.version, saved.time) == (
            entity.key,
            entity.version,
            entity.update_time,
        )


def test_saves_are_taken_at_random(dsn: str, entities: AuroraEntities) -> None:
    audit(dsn, [n / 1000 for n in range(500)])
    samples = [
        frozenset(each.version for each in entities.saved(NOON - SECOND, NOON + SECOND, 10, soon()))
        for _ in range(30)
    ]
    assert {len(sample) for sample in samples} == {10}
    assert len(set(samples)) == 30
    assert len({version for sample in samples for version in sample}) > 150


@pytest.mark.parametrize("analyzed", [False, True])
def test_saves_of_a_second_are_found_by_the_index_of_time(dsn: str, *, analyzed: bool) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO duostore.audit"
            " SELECT 't', 'a', n, 1, 'save', '', 'request-' || n, %s::timestamptz"
            " + n * interval '1 ms' FROM generate_series(1, 200000) AS n",
            (NOON,),
        )
        connection.execute("SELECT brin_summarize_new_values('duostore.audit_time')")
        if analyzed:
            connection.execute("ANALYZE duostore.audit")
        ((blocks,),) = connection.execute(
            "SELECT pg_relation_size('duostore.audit') / current_setting('block_size')::int"
        )
    since = NOON + 100 * SECOND
    params = (since, since + SECOND, Int8(20_000), Int8(10))
    assert cost(dsn, _SAVED, params) < blocks / 4


def test_the_index_of_time_is_kept_up_to_date(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        ((options,),) = connection.execute(
            "SELECT reloptions FROM pg_class WHERE oid = 'duostore.audit_time'::regclass"
        )
    assert options == ["autosummarize=on"]


def test_a_deadline_that_passed_stops_a_call_before_it_begins(entities: AuroraEntities) -> None:
    over = Deadline.after(0)
    for call in (
        lambda: entities.page("a", None, None, 1, over),
        lambda: entities.sample("a", 1, over),
        lambda: entities.estimate("a", over),
        lambda: entities.saved(NOON, NOON, 1, over),
    ):
        with pytest.raises(DeadlineExceededError):
            call()


def test_a_writer_that_was_demoted_is_not_believed(dsn: str) -> None:
    put(dsn, [key("", 1)])
    with migrated_pool(dsn, max_size=1) as pool:
        entities = AuroraEntities(pool)
        for call in (
            lambda: entities.page("a", None, None, 1, soon()),
            lambda: entities.sample("a", 1, soon()),
            lambda: entities.estimate("a", soon()),
            lambda: entities.saved(NOON, NOON, 1, soon()),
        ):
            pool.execute("SET default_transaction_read_only = on", (), soon())
            with pytest.raises(StoreUnavailableError):
                call()
            assert walked(entities, "a", 1) == [key("", 1)]
