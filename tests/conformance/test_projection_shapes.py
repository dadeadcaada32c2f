"""What every engine of the projections promises of shapes: one item, one version, all of them."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from duostore_server.domain.entities import Form, Projection
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.items import encode
from duostore_server.storage.dynamodb.statements import statement
from tests.support.dynamodb_engines import patient_client
from tests.support.dynamodb_traffic import Traffic
from tests.support.projection_engines import (
    COMPRESS_ABOVE,
    ENGINES,
    KEY,
    TEXT,
    Engine,
    direct,
    engine_named,
    key_of,
    shaped,
    soon,
    value,
)
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.keys import EntityKey
    from tests.support.servers import DynamoDBLocal

LONG = b"%d: " + TEXT
NOISE = random.Random(1).randbytes(400 * 1024)


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


def put_together(engine: Engine, projection: Projection) -> Projection:
    """Put a projection beside another one, so that it travels in a statement if there are any."""
    beside = {KEY: projection, key_of(2): value(10**9 + projection.version)}
    return engine.projections.put_all(beside, soon())[KEY]


PUTS = [Engine.put, put_together]
both_ways = pytest.mark.parametrize("put", PUTS, ids=["alone", "together"])


# What the mutants at the end are shown to fail.


def check_a_shape_that_is_lacking_is_added(engine: Engine) -> None:
    for version in (1, 4):
        for key, held, put in [
            (key_of(10), value(version), shaped(version, 1, 2)),
            (key_of(11), value(version), shaped(version, 2)),
            (key_of(12), shaped(version, 2), value(version)),
            (key_of(13), shaped(version, 2), shaped(version, 2, 3)),
            (key_of(14), shaped(version, 1, 2), shaped(version, 2, 3)),
        ]:
            engine.put(held, key)
            assert engine.put(put, key) == put
            assert engine.read(key) == put


def check_a_shape_that_was_left_behind_is_not_there(engine: Engine) -> None:
    engine.put(shaped(3, 1, 2))
    engine.raise_version(4, b"by an older release")
    assert engine.read() == value(4, b"by an older release")
    # And is put again, with the version that it has missed.
    assert engine.put(shaped(4, 1, 2)) == shaped(4, 1, 2)
    assert engine.read() == shaped(4, 1, 2)


@both_ways
@pytest.mark.parametrize(
    "projection",
    [
        shaped(1, 2),
        shaped(7, 2),
        shaped(1, 1, 2),
        shaped(7, 1, 2, of=LONG),
        shaped(7, 2, 3, of=LONG),
        shaped(7, 99, 100),
        Projection(7, Form.VALUE, b"short", ((2, TEXT),)),
        Projection(7, Form.VALUE, TEXT, ((2, b"short"),)),
    ],
    ids=str,
)
def test_what_is_put_is_read(
    engine: Engine, put: Callable[[Engine, Projection], Projection], projection: Projection
) -> None:
    assert put(engine, projection) == projection
    assert engine.read() == projection
    assert engine.unreadable == []


def test_each_payload_is_compressed_on_its_own(engine: Engine) -> None:
    engine.put(Projection(1, Form.VALUE, b"short", ((2, TEXT), (3, TEXT[:COMPRESS_ABOVE]))))
    item = engine.item()
    assert item["payload"] == {"B": b"short"}
    assert len(item["payload_2"]["B"]) < COMPRESS_ABOVE // 4
    assert item["payload_3"] == {"B": TEXT[:COMPRESS_ABOVE]}
    assert item["encoding_2"] == {"S": "zstd"}
    assert item.keys() & {"encoding", "encoding_3"} == set()
    assert {item[f"version_{shape}"]["N"] for shape in (2, 3)} == {"1"}


@both_ways
def test_a_newer_version_has_the_shapes_that_it_was_put_in(
    engine: Engine, put: Callable[[Engine, Projection], Projection]
) -> None:
    forth = [shaped(2, 1, 2, of=LONG), shaped(3, 2, of=LONG), shaped(4, 2, 3), shaped(5, 3)]
    back = [shaped(6, 2, 3, of=LONG), shaped(7, 2), shaped(8, 1, 2), value(9)]
    for projection in [value(1), *forth, *back]:
        assert put(engine, projection) == projection
        assert engine.read() == projection
    assert engine.unreadable == []


def test_other_shapes_of_a_version_leave_nothing_of_those_before(engine: Engine) -> None:
    for projection in [shaped(1, 1, 2, of=LONG), shaped(1, 3), shaped(1, 1), shaped(1, 1, 2)]:
        assert engine.put(projection) == projection
        assert engine.item() == encode(KEY, projection, compress_above=COMPRESS_ABOVE).item


def test_going_forth_together_leaves_no_shape_behind(engine: Engine) -> None:
    for projection in [value(1, TEXT), shaped(2, 1, 2, of=LONG), shaped(3, 2), shaped(4, 3)]:
        assert put_together(engine, projection) == projection
        assert engine.item() == encode(KEY, projection, compress_above=COMPRESS_ABOVE).item


def test_one_step_back_leaves_no_shape_behind_but_beside_the_first(engine: Engine) -> None:
    for projection in [shaped(1, 2, 3, of=LONG), shaped(2, 2)]:
        assert put_together(engine, projection) == projection
        assert engine.item() == encode(KEY, projection, compress_above=COMPRESS_ABOVE).item
    put_together(engine, shaped(3, 1, 2))
    assert put_together(engine, value(4)) == value(4)
    left = {"payload_2", "crc_2", "version_2"} if "version_2" in engine.item() else set()
    assert engine.item().keys() == {"pk", "version", "form", "payload", "crc"} | left
    assert engine.read() == value(4)


@both_ways
@pytest.mark.parametrize("form", [Form.TOMBSTONE, Form.STUB])
def test_of_what_is_deleted_nothing_stays(
    engine: Engine, put: Callable[[Engine, Projection], Projection], form: Form
) -> None:
    engine.put(shaped(3, 1, 2, 7, of=LONG))
    gone = Projection(4, form)
    assert put(engine, gone) == gone
    assert engine.read() == gone
    assert engine.item().keys() == {"pk", "version", "form"}


def test_a_shape_that_is_lacking_is_added(engine: Engine) -> None:
    check_a_shape_that_is_lacking_is_added(engine)


@both_ways
@pytest.mark.parametrize("version", [1, 4])
@pytest.mark.parametrize("shapes", [(1,), (2,), (1, 2)])
def test_a_version_in_all_of_these_shapes_is_done(
    engine: Engine,
    put: Callable[[Engine, Projection], Projection],
    version: int,
    shapes: tuple[int, ...],
) -> None:
    held = shaped(version, 1, 2)
    engine.put(held)
    assert put(engine, shaped(version, *shapes, of=b"an impossible %d")) == held
    assert engine.read() == held


def test_an_older_version_adds_no_shape(engine: Engine) -> None:
    for held in (value(5), shaped(5, 1, 2), Projection(5, Form.TOMBSTONE)):
        key = key_of(len(held.shapes))
        engine.put(held, key)
        assert engine.put(shaped(4, 1, 2, 3), key) == held
        assert engine.read(key) == held


@pytest.mark.parametrize("version", [1, 4])
def test_a_tombstone_lacks_no_shape(engine: Engine, version: int) -> None:
    held = Projection(version, Form.TOMBSTONE)
    engine.put(held)
    assert engine.put(shaped(version, 1, 2)) == held
    assert engine.put(Projection(version, Form.STUB)) == held
    assert engine.read() == held


@both_ways
@pytest.mark.parametrize("version", [1, 4])
@pytest.mark.parametrize("form", [Form.VALUE, Form.TOMBSTONE])
def test_a_stub_gives_way_to_what_its_version_has(
    engine: Engine, put: Callable[[Engine, Projection], Projection], form: Form, version: int
) -> None:
    """A document fits again, or what could not be made of it is made by now."""
    engine.put(Projection(version, Form.STUB))
    projection = shaped(version, 1, 2) if form is Form.VALUE else Projection(version, form)
    put(engine, projection)
    assert engine.read() == projection
    # And it stays, whoever finds it too large.
    put(engine, Projection(version, Form.STUB))
    assert engine.read() == projection
    engine.put(Projection(version + 1, Form.STUB))
    assert engine.put(projection) == Projection(version + 1, Form.STUB)


@pytest.mark.parametrize("version", [1, 4])
def test_shapes_that_are_too_large_together_are_a_stub(engine: Engine, version: int) -> None:
    half = len(NOISE) // 2
    stub = Projection(version, Form.STUB)
    assert engine.put(Projection(version, Form.VALUE, NOISE[:half], ((2, NOISE[half:]),))) == stub
    assert engine.read() == stub
    assert engine.put(value(version + 1, NOISE[:half])) == value(version + 1, NOISE[:half])


def test_no_stub_is_written_in_the_place_of_a_stub() -> None:
    """What is too large stays so, and each put of it would cost a write."""
    dynamodb = SimulatedDynamoDB()
    engine = direct(dynamodb.client)
    engine.put(Projection(4, Form.STUB))
    # As no stub is: whoever wrote it anew would take this away.
    engine.damage(KEY, version={"N": "4"}, form={"S": "stub"}, mark={"S": "there"})
    large = value(4, NOISE + NOISE)
    assert engine.put(large) == Projection(4, Form.STUB)
    assert put_together(engine, large) == Projection(4, Form.STUB)
    assert engine.item()["mark"] == {"S": "there"}


def test_a_shape_that_was_left_behind_is_not_there(engine: Engine) -> None:
    check_a_shape_that_was_left_behind_is_not_there(engine)


@pytest.mark.parametrize("version", [{"S": "7"}, {"N": "6"}, {"N": "8"}, None], ids=str)
def test_a_shape_of_no_version_is_not_there(engine: Engine, version: Any) -> None:
    item = encode(KEY, shaped(7, 1, 2), compress_above=COMPRESS_ABOVE).item
    later = {} if version is None else {"version_2": version}
    del item["pk"], item["version_2"]
    engine.damage(KEY, **item, **later)
    assert engine.read() == shaped(7, 1)
    assert engine.put(shaped(7, 1)) == shaped(7, 1)
    assert engine.put(shaped(7, 1, 2)) == shaped(7, 1, 2)
    assert engine.read() == shaped(7, 1, 2)
    assert engine.unreadable == []


def test_a_version_of_no_shape_is_not_there(engine: Engine) -> None:
    item = encode(KEY, shaped(7, 1, 2), compress_above=COMPRESS_ABOVE).item
    del item["pk"], item["payload_2"]
    engine.damage(KEY, **item)
    assert engine.read() == shaped(7, 1)
    assert engine.put(shaped(7, 1, 2)) == shaped(7, 1, 2)
    assert engine.read() == shaped(7, 1, 2)


def test_other_attributes_are_no_shapes(engine: Engine) -> None:
    item = encode(KEY, shaped(7, 1, 2), compress_above=COMPRESS_ABOVE).item
    del item["pk"]
    for name in ("0", "1", "01", "02", "1000", "x", ""):
        item |= {f"payload_{name}": {"B": b"of another"}, f"version_{name}": {"N": "7"}}
    engine.damage(KEY, **item)
    assert engine.read() == shaped(7, 1, 2)


def test_writes_of_one_call_do_not_mix_their_shapes(engine: Engine) -> None:
    shapes = [(1,), (2,), (1, 2), (2, 3)]
    for version in (1, 2, 3):
        puts = {
            key_of(number): shaped(
                version, *shapes[(number + version) % 4], of=b"%%d of %d" % number
            )
            for number in range(40)
        }
        assert engine.projections.put_all(puts, soon()) == puts
        assert engine.projections.read(list(puts), soon()) == puts


@pytest.mark.parametrize("engine", ["dynamodb_local"], indirect=True)
def test_shapes_travel_together_as_one_does(engine: Engine) -> None:
    with Traffic(engine.client).watched() as traffic:
        for version in (1, 2):
            puts = {key_of(number): shaped(version, 1, 2) for number in range(50)}
            assert engine.projections.put_all(puts, soon()) == puts
    assert traffic.sent == {"BatchExecuteStatement": 4}


def test_the_first_shape_alone_is_stored_as_if_there_were_no_other() -> None:
    write = encode(KEY, value(2), compress_above=COMPRESS_ABOVE)
    assert write.item == {
        "pk": {"S": "acme#proposal#p-1"},
        "version": {"N": "2"},
        "form": {"S": "value"},
        "payload": {"B": b"payload"},
        "crc": {"N": "3886658694"},
    }
    assert statement("table", write) == {
        "Statement": 'UPDATE "table" SET "version"=? SET "form"=? SET "payload"=? '
        'SET "crc"=? REMOVE "encoding" WHERE "pk"=? AND "version"<?',
        "Parameters": [
            {"N": "2"},
            {"S": "value"},
            {"B": b"payload"},
            {"N": "3886658694"},
            {"S": "acme#proposal#p-1"},
            {"N": "2"},
        ],
    }


def test_a_statement_of_the_last_shapes_is_one_that_dynamodb_takes() -> None:
    write = encode(KEY, shaped(2, 99, 100, of=LONG), compress_above=COMPRESS_ABOVE)
    assert len(statement("t" * 255, write)["Statement"]) <= 8192


EXAMPLES = itertools.count()
PROJECTIONS = st.one_of(
    st.builds(
        lambda version, shapes, of: shaped(version, *sorted(shapes), of=of),
        st.integers(1, 4),
        st.sets(st.integers(1, 3), min_size=1),
        st.sampled_from([b"in shape %d", LONG]),
    ),
    st.builds(Projection, st.integers(1, 4), st.sampled_from([Form.TOMBSTONE, Form.STUB])),
)
OPERATIONS = st.lists(st.tuples(st.sampled_from(PUTS), PROJECTIONS), max_size=12)


@settings(
    max_examples=25,
    deadline=None,
    # Each example has a key of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=OPERATIONS)
def test_any_sequence_of_puts_leaves_the_newest_in_its_shapes(
    engine: Engine,
    operations: list[tuple[Callable[[Engine, Projection], Projection], Projection]],
) -> None:
    key: EntityKey = key_of(1000 + next(EXAMPLES))
    held: Projection | None = None
    for put, projection in operations:
        if (
            held is None
            or held.version < projection.version
            or held == Projection(projection.version, Form.STUB)
        ):
            held = projection
        elif held.version == projection.version and held.form is projection.form is Form.VALUE:
            held = held if projection.shapes <= held.shapes else projection
        if put is put_together:
            others = {key_of(2): value(10**9 + next(EXAMPLES))}
            assert engine.projections.put_all({key: projection, **others}, soon())[key] == held
        else:
            assert engine.put(projection, key) == held
        assert engine.read(key) == held


# The guards, each shown to be missed when it is left out.


class TakesWhatIsLeftBehind(SimulatedDynamoDB):
    """As if a later shape counted whatever its version."""

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        answer = super().batch_get_item(**request)
        for items in answer["Responses"].values():
            for item in items:
                if "version_2" in item:
                    item["version_2"] = item["version"]
        return answer


class AsksForVersionsAlone(SimulatedDynamoDB):
    """As if a put replaced what is older, and nothing else."""

    def put_item(self, **request: Any) -> dict[str, Any]:
        before, _, _ = request["ConditionExpression"].partition(" OR (version = ")
        values = dict(request["ExpressionAttributeValues"])
        for unused in (":value", ":stub"):
            values.pop(unused, None)
        changed = {"ConditionExpression": before, "ExpressionAttributeValues": values}
        return super().put_item(**{**request, **changed})


class AsksForPayloadsAlone(SimulatedDynamoDB):
    """As if a shape were lacking only if there is no payload of it."""

    def put_item(self, **request: Any) -> dict[str, Any]:
        condition = request["ConditionExpression"]
        for shape in range(2, 5):
            condition = condition.replace(f" OR NOT version_{shape} = :version", "")
        return super().put_item(**{**request, "ConditionExpression": condition})


@pytest.mark.parametrize("statements", [True, False])
@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (TakesWhatIsLeftBehind, check_a_shape_that_was_left_behind_is_not_there),
        (AsksForVersionsAlone, check_a_shape_that_is_lacking_is_added),
        (AsksForPayloadsAlone, check_a_shape_that_was_left_behind_is_not_there),
    ],
)
def test_a_guard_that_is_left_out_is_missed(
    mutant: type[SimulatedDynamoDB],
    check: Callable[[Engine], None],
    *,
    statements: bool,
) -> None:
    check(direct(SimulatedDynamoDB().client, statements=statements))
    with pytest.raises(AssertionError):
        check(direct(mutant().client, statements=statements))
