"""What every engine of the projections promises.

Otherwise, by engine: ``embedded`` has no PartiQL, so that its writes travel one by one, as
they do on ``single_puts``; and it counts the base64 of a payload, so that the largest item
that DynamoDB takes is kept there as a stub.
"""

from __future__ import annotations

import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import (
    DeadlineExceededError,
    Store,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.errors import ErrorEdge
from duostore_server.storage.dynamodb.items import encode
from duostore_server.storage.dynamodb.probe import open_probe
from duostore_server.storage.dynamodb.projections import direct_projections
from duostore_server.storage.dynamodb.table import ProjectionTable
from duostore_server.storage.dynamodb.tables import (
    create_tables,
    missing_tables,
)
from tests.support.dynamodb_engines import never, patient_client
from tests.support.dynamodb_traffic import Traffic
from tests.support.projection_engines import (
    COMPRESS_ABOVE,
    ENGINES,
    KEY,
    TEXT,
    UNREADABLE,
    Engine,
    direct,
    engine_named,
    key_of,
    soon,
    value,
)
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal

TABLES = ("projection", "snapshot", "idempotency", "counter")
# An item has 409,600 bytes; so much of them is not payload.
OVERHEAD = 100


@pytest.fixture(scope="module")
def dynamodb_client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with patient_client(dynamodb.endpoint_url) as client:
        yield client


@pytest.fixture(scope="module")
def embedded_client() -> Iterator[DynamoDBClient]:
    with EmbeddedDynamoDB() as server, patient_client(server.endpoint_url) as client:
        yield client


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, table_prefix: str) -> Iterator[Engine]:
    with engine_named(request.param, request, table_prefix) as engine:
        yield engine


@pytest.mark.parametrize(
    "projection",
    [
        value(1),
        value(7, TEXT),
        value(1, bytes(range(256))),
        Projection(1, Form.TOMBSTONE),
        Projection(2, Form.TOMBSTONE),
        Projection(3, Form.STUB),
        value(2**53 + 1),
    ],
    ids=["first", "compressed", "binary", "first deleted", "deleted", "stub", "old"],
)
def test_what_is_put_is_read(engine: Engine, projection: Projection) -> None:
    assert engine.put(projection) == projection
    assert engine.read(KEY) == projection
    assert engine.unreadable == []


def test_what_was_never_put_is_missing(engine: Engine) -> None:
    engine.put(value(1))
    assert engine.projections.read((key_of(2), KEY), soon()) == {KEY: value(1)}
    assert engine.projections.read((), soon()) == {}


def test_a_newer_version_replaces_an_older_one_entirely(engine: Engine) -> None:
    history = [
        value(1, TEXT),
        Projection(2, Form.TOMBSTONE),
        value(3, b"again"),
        value(5, TEXT),
        value(6, b"small"),
        Projection(9, Form.STUB),
        value(10, TEXT),
    ]
    attributes = {Form.VALUE: {"pk", "version", "form", "payload", "crc"}}
    for projection in history:
        assert engine.put(projection) == projection
        assert engine.read(KEY) == projection
        expected = attributes.get(projection.form, {"pk", "version", "form"})
        if projection.payload == TEXT:
            expected = {*expected, "encoding"}
        assert engine.item().keys() == expected


@pytest.mark.parametrize("held", [value(5, TEXT), Projection(5, Form.TOMBSTONE)])
@pytest.mark.parametrize("version", [1, 2, 4])
def test_an_older_version_never_replaces_a_newer_one(
    engine: Engine, held: Projection, version: int
) -> None:
    engine.put(held)
    assert engine.put(value(version, b"the past")) == held
    assert engine.put(Projection(version, Form.TOMBSTONE)) == held
    assert engine.read(KEY) == held


@pytest.mark.parametrize("version", [1, 4])
def test_an_equal_version_is_done(engine: Engine, version: int) -> None:
    held = value(version, TEXT)
    assert engine.put(held) == held
    assert engine.put(held) == held
    assert engine.put(value(version, b"an impossible other")) == held
    assert engine.read(KEY) == held


def test_concurrent_puts_in_any_order_end_with_the_newest(engine: Engine) -> None:
    for seed in range(3):
        key = key_of(seed)
        versions = list(range(1, 51))
        random.Random(seed).shuffle(versions)
        seen = [0]

        def put(version: int, key: EntityKey = key) -> None:
            held = engine.put(value(version, b"%d" % version), key)
            assert held.version >= version
            assert held.payload == b"%d" % held.version

        def watch(key: EntityKey = key, seen: list[int] = seen) -> None:
            while seen[-1] < 50:
                found = engine.read(key)
                seen.append(found.version if found else 0)

        with ThreadPoolExecutor(9) as pool:
            watching = pool.submit(watch)
            list(pool.map(put, versions))
            watching.result()
        assert engine.read(key) == value(50, b"50")
        assert seen == sorted(seen)


def test_concurrent_puts_of_many_keys_do_not_mix(engine: Engine) -> None:
    """Batches hold versions of many keys, and several of one."""

    def put(number: int) -> None:
        for version in (1, 2, 3, 2):
            for key in (key_of(number), KEY):
                held = engine.put(value(version, f"{key} {version}".encode()), key)
                assert held.version >= version
                assert held.payload == f"{key} {held.version}".encode()

    numbers = range(2, 26)
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(put, numbers))
    keys = [KEY, *map(key_of, numbers)]
    assert engine.projections.read(keys, soon()) == {
        key: value(3, f"{key} 3".encode()) for key in keys
    }


def test_500_keys_are_read_in_one_call(engine: Engine) -> None:
    keys = [key_of(number) for number in range(500)]
    stored = keys[::3]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: engine.put(value(1, str(key).encode()), key), stored))
    assert engine.projections.read([*keys, *keys[:50]], soon()) == {
        key: value(1, str(key).encode()) for key in stored
    }


def test_all_are_put_as_each_would_be(engine: Engine) -> None:
    noise = random.Random(1).randbytes(400 * 1024)
    for number, version in ((1, 1), (2, 5), (3, 7)):
        engine.put(value(version, b"held"), key_of(number))
    puts = {
        key_of(0): value(1),
        key_of(1): value(2, TEXT),
        key_of(2): value(5, b"an impossible other"),
        key_of(3): value(6, b"the past"),
        key_of(4): Projection(3, Form.TOMBSTONE),
        key_of(5): value(2, noise[: 100 * 1024]),
        key_of(6): value(1, noise),
    }
    held = puts | {
        key_of(2): value(5, b"held"),
        key_of(3): value(7, b"held"),
        key_of(6): Projection(1, Form.STUB),
    }
    assert engine.projections.put_all(puts, soon()) == held
    assert engine.projections.read(list(puts), soon()) == held
    assert engine.projections.put_all(puts, soon()) == held


def test_a_hundred_are_put_at_once(engine: Engine) -> None:
    puts = {key_of(number): value(1, b"%d" % number) for number in range(100)}
    assert engine.projections.put_all(puts, soon()) == puts
    assert engine.projections.read(list(puts), soon()) == puts
    assert engine.projections.put_all({}, soon()) == {}


@pytest.mark.parametrize("engine", ["dynamodb_local"], indirect=True)
def test_what_is_put_at_once_travels_together(engine: Engine) -> None:
    with Traffic(engine.client).watched() as traffic:
        puts = {key_of(number): value(1) for number in range(50)}
        assert engine.projections.put_all(puts, soon()) == puts
    assert traffic.sent == {"BatchExecuteStatement": 2}


def test_payloads_are_compressed_past_a_size(engine: Engine) -> None:
    engine.put(value(1, TEXT[:COMPRESS_ABOVE]))
    assert engine.item()["payload"] == {"B": TEXT[:COMPRESS_ABOVE]}
    engine.put(value(2, TEXT[: COMPRESS_ABOVE + 1]))
    item = engine.item()
    assert item["encoding"] == {"S": "zstd"}
    assert len(item["payload"]["B"]) < COMPRESS_ABOVE // 4
    assert engine.read(KEY) == value(2, TEXT[: COMPRESS_ABOVE + 1])


def test_what_is_too_large_for_an_item_becomes_a_stub(engine: Engine) -> None:
    noise = random.Random(1).randbytes(400 * 1024)
    for version in (1, 2):
        stub = Projection(version, Form.STUB)
        assert engine.put(value(version, noise)) == stub
        assert engine.read(KEY) == stub
    assert engine.put(value(3, b"small again")) == value(3, b"small again")


def test_the_largest_item_is_taken(engine: Engine) -> None:
    noise = random.Random(1).randbytes(400 * 1024)
    longest = EntityKey("t" * 64, "k" * 64, "i" * 512)
    size = max(
        n
        for n in range(len(noise) - len(str(longest)) - OVERHEAD, len(noise))
        if encode(longest, value(9**9, noise[:n]), compress_above=0).projection.form is Form.VALUE
    )
    assert size > len(noise) - len(str(longest)) - OVERHEAD
    largest = value(9**9, noise[:size])
    held = Projection(9**9, Form.STUB) if engine.counts_base64 else largest
    assert engine.put(largest, longest) == held
    assert engine.read(longest) == held


def test_compression_comes_before_the_limit(engine: Engine) -> None:
    large = value(1, TEXT * 1000)
    assert engine.put(large) == large
    assert engine.read(KEY) == large


@pytest.mark.parametrize("damaged", UNREADABLE.values(), ids=UNREADABLE)
def test_an_item_that_cannot_be_read_is_a_stub(
    engine: Engine, damaged: tuple[dict[str, Any], int]
) -> None:
    attributes, version = damaged
    engine.put(value(1), key_of(2))
    engine.damage(KEY, **attributes)
    assert engine.projections.read((KEY, key_of(2)), soon()) == {
        KEY: Projection(version, Form.STUB),
        key_of(2): value(1),
    }
    ((key, shown, problem),) = engine.unreadable
    assert (key, shown) == (KEY, version)
    assert problem


@pytest.mark.parametrize("damaged", UNREADABLE.values(), ids=UNREADABLE)
def test_an_item_that_cannot_be_read_is_replaced_by_a_newer_version(
    engine: Engine, damaged: tuple[dict[str, Any], int]
) -> None:
    attributes, version = damaged
    engine.damage(KEY, **attributes)
    if version:
        assert engine.put(value(version - 1)) == Projection(version, Form.STUB)
    assert engine.put(value(version + 1)) == value(version + 1)
    assert engine.read(KEY) == value(version + 1)


UNUSUAL = [
    EntityKey("", "proposal", "p-1"),
    EntityKey("acme", "proposal", "a#b##c"),
    EntityKey("acme", "proposal", "#"),
    EntityKey("acme", "proposal", " leading and trailing "),
    EntityKey("acme", "proposal", "quotes ' \" ? :version \\"),
    EntityKey("acme", "proposal", "P-1"),
    EntityKey("acme", "proposal", "é"),
    EntityKey("acme", "proposal", "e\u0301"),
    EntityKey("日本", "種類", "🦆" * 128),
    EntityKey("t" * 64, "k" * 64, "i" * 512),
]


def test_unusual_keys_are_kept_apart(engine: Engine) -> None:
    keys = [KEY, *UNUSUAL]
    for version in (1, 2):
        for key in keys:
            assert engine.put(value(version, repr(key).encode()), key).version == version
    assert engine.projections.read(keys, soon()) == {
        key: value(2, repr(key).encode()) for key in keys
    }


def test_nothing_is_sent_after_the_deadline(engine: Engine) -> None:
    passed = Deadline.after(0)
    with pytest.raises(DeadlineExceededError):
        engine.projections.put(KEY, value(1), passed)
    with pytest.raises(DeadlineExceededError):
        engine.projections.put_all({KEY: value(1)}, passed)
    with pytest.raises(DeadlineExceededError):
        engine.projections.read((KEY,), passed)
    assert engine.read(KEY) is None


def test_a_missing_table_is_a_store_that_cannot_be_used(engine: Engine) -> None:
    projections = direct_projections(
        engine.client,
        prefix=f"{engine.prefix}other_",
        unreadable=lambda *_: None,
        pause=never,
        clock=time.monotonic,
    )
    with pytest.raises(StoreUnavailableError):
        projections.read((KEY,), soon())
    with pytest.raises(StoreUnavailableError):
        projections.put(KEY, value(1), soon())


def test_tables_are_created_once(engine: Engine) -> None:
    prefix = f"{engine.prefix}more_"
    names = [prefix + name for name in TABLES]
    seen: list[tuple[str, str]] = []
    assert missing_tables(engine.client, prefix=prefix) == names
    created = create_tables(
        engine.client,
        prefix=prefix,
        pause=time.sleep,
        progress=lambda table, status: seen.append((table, status)),
    )
    assert created == names
    assert {(name, "ACTIVE") for name in names} <= set(seen)
    assert create_tables(engine.client, prefix=prefix, pause=never) == []
    assert missing_tables(engine.client, prefix=prefix) == []


def test_the_probe_answers(engine: Engine) -> None:
    with open_probe(engine.client, prefix=engine.prefix, timeout=20) as probe:
        assert probe.store is Store.DYNAMODB
        probe.ping(soon())
        with pytest.raises(DeadlineExceededError):
            probe.ping(Deadline.after(0))
    with (
        open_probe(engine.client, prefix=f"{engine.prefix}other_", timeout=20) as probe,
        pytest.raises(StoreUnavailableError),
    ):
        probe.ping(soon())


def table_of(engine: Engine) -> ProjectionTable:
    return ProjectionTable(
        engine.client, table=engine.table, edge=ErrorEdge(), unreadable=lambda *_: None
    )


def test_writes_of_one_call_are_independent(engine: Engine) -> None:
    """On an engine without statements nothing is applied, and nothing is said to be."""
    for number, version in ((1, 1), (2, 2), (3, 3)):
        engine.put(value(version, b"held"), key_of(number))
    writes = [
        encode(key_of(number), value(version, b"mine"), compress_above=0)
        for number, version in ((0, 1), (1, 2), (2, 2), (3, 1), (3, 2), (4, 2), (5, 1), (5, 3))
    ]
    held = table_of(engine).put_together(writes)
    applied = [write for write in writes if held[write] is not None]
    assert all(held[write] == write.projection for write in applied)
    expected = {key_of(1): value(1, b"held"), key_of(2): value(2, b"held")}
    expected |= {key_of(3): value(3, b"held")} | {w.key: w.projection for w in applied}
    assert engine.projections.read([key_of(n) for n in range(6)], soon()) == expected
    if applied:
        # The first version of a key, and the next one of a key that is there. Of those
        # that were not applied nothing is known.
        assert applied == writes[:2]


EXAMPLES = itertools.count()
OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(1, 6),
        st.sampled_from([None, b"small", TEXT]),
    ),
    max_size=12,
)


@settings(
    max_examples=15,
    deadline=None,
    # Each example has keys of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=OPERATIONS)
def test_any_sequence_of_puts_leaves_the_newest(
    engine: Engine, operations: list[tuple[int, int, bytes | None]]
) -> None:
    example = f"example {next(EXAMPLES)}"
    model: dict[EntityKey, Projection] = {}
    for number, version, payload in operations:
        key = EntityKey(example, "proposal", str(number))
        mine = Projection(version, Form.VALUE if payload else Form.TOMBSTONE, payload)
        if key not in model or model[key].version < version:
            model[key] = mine
        assert engine.put(mine, key) == model[key]
        assert engine.projections.read(list(model), soon()) == model


# The guards of the simulation, each shown to be missed when it is left out.


class EventuallyConsistent(SimulatedDynamoDB):
    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        for reads in request["RequestItems"].values():
            del reads["ConsistentRead"]
        return super().batch_get_item(**request)


class Unconditional(SimulatedDynamoDB):
    def put_item(self, **request: Any) -> dict[str, Any]:
        del request["ConditionExpression"]
        return super().put_item(**request)


@pytest.mark.parametrize(
    ("kind", "seen"), [(SimulatedDynamoDB, value(2)), (EventuallyConsistent, None)]
)
def test_only_a_strongly_consistent_read_sees_the_newest(
    kind: type[SimulatedDynamoDB], seen: Projection | None
) -> None:
    engine = direct(kind(staleness=lambda *_: 0).client)
    engine.put(value(1))
    engine.put(value(2))
    assert engine.read(KEY) == seen


@pytest.mark.parametrize(("kind", "held"), [(SimulatedDynamoDB, 5), (Unconditional, 4)])
def test_only_a_conditional_put_keeps_the_newest(kind: type[SimulatedDynamoDB], held: int) -> None:
    engine = direct(kind().client, statements=False)
    engine.put(value(5))
    engine.put(value(4))
    assert engine.read(KEY) == value(held)


def test_timeouts_of_the_table_creation_are_errors() -> None:
    class Creating(SimulatedDynamoDB):
        def describe_table(self, **request: Any) -> dict[str, Any]:
            answer = super().describe_table(**request)
            answer["Table"]["TableStatus"] = "CREATING"
            return answer

    waited: list[float] = []
    with pytest.raises(StoreTimeoutError):
        create_tables(Creating().client, prefix="", pause=waited.append)
    assert sum(waited) == 120
    assert missing_tables(Creating().client, prefix="") == [*TABLES]
