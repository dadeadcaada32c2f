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
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import LiteralString

    from duostore_server.domain.entities import Entity
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


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


def cost(dsn: str, query: LiteralString, params: Sequence[Any] | Mapping[str, Any]) -> int:
    """Return how many blocks a statement looks at."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        explain = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query.encode()
        (((plan,),),) = connection.execute(explain, params).fetchall()
    return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])


def page_cost(dsn: str, after: EntityKey, limit: int) -> int:
    params = {
        "kind": after.kind,
        "tenant": after.tenant,
        "id": after.id,
        "until_tenant": None,
        "until_id": None,
        "limit": Int8(limit),
        "tenants": Int8(2000),
        "bytes": Int8(2**22),
    }
    return cost(dsn, _PAGE, params)


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
        {"text": "\N{GRINNING FACE} '\"{},\\", "none": None, "list": [1, 0.5, 2**53, True]},
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
    bounds: list[EntityKey | None] = [None, *keys, None]
    for begin in range(len(bounds) - 1):
        for end in range(max(begin, 1), len(bounds)):
            found = walked(entities, "a", 4, bounds[begin], bounds[end])
            assert found == keys[begin:end]
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
    with migrated_pool(postgres_dsn) as pool:
        fill(postgres_dsn, "a", 5, 200)
        fill(postgres_dsn, "b", 5, 200)
        begin, last_of_a_tenant, end = key("", ""), key("t2", "i99"), key("t5", "i99")
        before = [page_cost(postgres_dsn, after, 100) for after in (begin, last_of_a_tenant, end)]
        # Before, between and behind.
        for kind in ("Z", "z"):
            fill(postgres_dsn, kind, 5, 10_000)
        fill(postgres_dsn, "aa", 2, 50_000)
        if analyzed:
            with psycopg.connect(postgres_dsn, autocommit=True) as connection:
                connection.execute("ANALYZE duostore.entity")
        after = [page_cost(postgres_dsn, after, 100) for after in (begin, last_of_a_tenant, end)]
        # Of each look into the index, one level more.
        assert all(now <= then + 110 for now, then in zip(after, before, strict=True))
        assert max(after) < 600
        assert after[-1] < 20
        assert len(walked(AuroraEntities(pool), "a", 500)) == 1000


def test_a_page_of_a_hundred_thousand_tenants_costs_its_share(postgres_dsn: str) -> None:
    with migrated_pool(postgres_dsn) as pool:
        fill(postgres_dsn, "z", 100_000, 1)
        put(postgres_dsn, [key("t99999", 1)])
        assert page_cost(postgres_dsn, key("", ""), 500) < 2000 * 12
        entities = AuroraEntities(pool)
        assert walked(entities, "a", 500) == [key("t99999", 1)]


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
    """It is read on from where it was met."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO duostore.entity"
            " SELECT 't' || n % 20, CASE n % 167 WHEN 0 THEN 'a' ELSE 'z' END, n, 1, '{}', 1,"
            " false, now(), now() FROM generate_series(1, 100000) AS n"
        )
    entities = AuroraEntities(pool, blocks=64, few=160)
    met = entities.sample("a", 64, soon())
    assert len(met) == len(set(met)) == 64
    samples = [entities.sample("a", 64, soon()) for _ in range(10)]
    assert {len(sample) for sample in samples} == {64}
    assert {each.kind for sample in samples for each in sample} == {"a"}
    assert len({each for sample in samples for each in sample}) > 300


def test_of_a_kind_that_is_not_met_the_first_are_found(dsn: str, pool: AuroraPool) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO duostore.entity"
            " SELECT 't' || n % 20, CASE WHEN n > 99900 THEN 'a' ELSE 'z' END, n, 1, '{}', 1,"
            " false, now(), now() FROM generate_series(1, 100000) AS n"
        )
    entities = AuroraEntities(pool, blocks=1, few=50)
    for _ in range(10):
        sample = entities.sample("a", 8, soon())
        assert len(sample) == len(set(sample)) == 8
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


def test_saves_of_a_second_are_found_by_the_index_of_time(dsn: str) -> None:
    """Although the statistics are of what was there before."""

    def save(begin: int, end: int) -> None:
        connection.execute(
            "INSERT INTO duostore.audit"
            " SELECT 't', 'a', n, 1, 'save', '', 'request-' || n,"
            " %s::timestamptz + n * interval '1 ms' FROM generate_series(%s, %s) AS n",
            (NOON, begin, end),
        )

    with psycopg.connect(dsn, autocommit=True) as connection:
        save(1, 200_000)
        connection.execute("ANALYZE duostore.audit")
        save(200_001, 300_000)
        connection.execute("SELECT brin_summarize_new_values('duostore.audit_time')")
        ((blocks,),) = connection.execute(
            "SELECT pg_relation_size('duostore.audit') / current_setting('block_size')::int"
        )
    for second in (100, 250, 299):
        since = NOON + second * SECOND
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


@pytest.mark.parametrize(
    "call",
    [
        lambda entities: entities.page("a", None, None, 1, soon()),
        lambda entities: entities.sample("a", 1, soon()),
        lambda entities: entities.estimate("a", soon()),
        lambda entities: entities.saved(NOON, NOON, 1, soon()),
    ],
)
def test_a_writer_that_was_demoted_is_not_believed(
    dsn: str, call: Callable[[AuroraEntities], object]
) -> None:
    put(dsn, [key("", 1)])
    with migrated_pool(dsn, max_size=1) as pool:
        entities = AuroraEntities(pool)
        pool.execute("SET default_transaction_read_only = on", (), soon())
        with pytest.raises(StoreUnavailableError):
            call(entities)
        assert walked(entities, "a", 1) == [key("", 1)]
