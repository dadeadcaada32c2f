"""What every engine of the items of projections promises.

No emulator loses an answer: that is injected, below botocore's own repetitions.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.attributes import stored_bytes
from duostore_server.storage.dynamodb.items import encode
from duostore_server.storage.dynamodb.projection_items import DynamoProjectionItems
from tests.support.dynamodb_engines import patient_client
from tests.support.dynamodb_traffic import Traffic, lose_reply
from tests.support.projection_engines import (
    COMPRESS_ABOVE,
    KEY,
    TEXT,
    UNREADABLE,
    Engine,
    direct,
    key_of,
    shaped,
    soon,
    value,
)
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.admin_ports import HeldItem
    from tests.support.servers import DynamoDBLocal

NOISE = random.Random(1).randbytes(400 * 1024)


@pytest.fixture(scope="module")
def dynamodb_client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    with patient_client(dynamodb.endpoint_url) as client:
        yield client


@pytest.fixture(scope="module")
def embedded_client() -> Iterator[DynamoDBClient]:
    with EmbeddedDynamoDB() as server, patient_client(server.endpoint_url) as client:
        yield client


@pytest.fixture(params=["dynamodb_local", "embedded", "simulated"])
def engine(request: pytest.FixtureRequest, table_prefix: str) -> Engine:
    """Projections, whose items are looked at."""
    if request.param == "simulated":
        return direct(SimulatedDynamoDB().client, table_prefix)
    name = "embedded_client" if request.param == "embedded" else "dynamodb_client"
    statements = request.param == "dynamodb_local"
    return direct(request.getfixturevalue(name), table_prefix, statements=statements)


@pytest.fixture
def items(engine: Engine) -> DynamoProjectionItems:
    return items_of(engine)


def items_of(engine: Engine, seed: int = 1) -> DynamoProjectionItems:
    return DynamoProjectionItems(
        engine.client,
        prefix=engine.prefix,
        compress_above=COMPRESS_ABOVE,
        timeout=20,
        choose=random.Random(seed).randrange,
    )


def found(items: DynamoProjectionItems, key: EntityKey = KEY) -> HeldItem:
    return items.inspect((key,), soon())[key]


def test_what_is_held_is_told(engine: Engine, items: DynamoProjectionItems) -> None:
    projections = {
        key_of(2): shaped(7, 1, 2),
        key_of(3): value(1, TEXT),
        key_of(4): Projection(3, Form.TOMBSTONE),
        key_of(5): Projection(4, Form.STUB),
    }
    engine.projections.put_all(projections, soon())
    held = items.inspect([KEY, *projections, key_of(2)], soon())
    assert {key: item.projection for key, item in held.items()} == projections
    for key, item in held.items():
        assert item.key == key
        assert item.fault == ""
        assert item.raw == engine.item(key)
        assert item.stored_bytes == stored_bytes(item.raw)
    assert items.inspect((), soon()) == {}


def test_many_are_looked_at(engine: Engine, items: DynamoProjectionItems) -> None:
    puts = {key_of(number): value(1, b"%d" % number) for number in range(210)}
    engine.projections.put_all(puts, soon())
    held = items.inspect([*puts, *map(key_of, range(1000, 1050))], soon())
    assert {key: item.projection for key, item in held.items()} == puts


@pytest.mark.parametrize("damaged", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_told(
    engine: Engine, items: DynamoProjectionItems, damaged: tuple[dict[str, Any], int]
) -> None:
    attributes, version = damaged
    engine.damage(KEY, **attributes)
    held = found(items)
    assert held.projection.version == version
    assert held.fault
    # What can be read, and is not what was put, is there for whoever wants to know how it departs.
    assert (held.projection.form is not Form.STUB) == ("crc" in held.fault)
    assert held.raw == {"pk": {"S": str(KEY)}, **attributes}
    # What was read of it on purpose is no event.
    assert engine.unreadable == []


@pytest.mark.parametrize("damaged", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_replaced(
    engine: Engine, items: DynamoProjectionItems, damaged: tuple[dict[str, Any], int]
) -> None:
    engine.damage(KEY, **damaged[0])
    assert items.replace(found(items), shaped(7, 1, 2), soon())
    assert engine.read() == shaped(7, 1, 2)


@pytest.mark.parametrize(
    "by",
    [
        value(2),
        shaped(9, 2, of=b"%d: " + TEXT),
        shaped(5, 1, 2),
        Projection(1, Form.TOMBSTONE),
        Projection(9, Form.STUB),
    ],
    ids=str,
)
@pytest.mark.parametrize("held", [shaped(5, 1, 2), value(5, TEXT), Projection(5, Form.TOMBSTONE)])
def test_what_was_found_is_replaced_whatever_its_version(
    engine: Engine, items: DynamoProjectionItems, held: Projection, by: Projection
) -> None:
    engine.put(held)
    engine.put(held, key_of(2))
    assert items.replace(found(items), by, soon())
    assert engine.item() == encode(KEY, by, compress_above=COMPRESS_ABOVE).item
    assert engine.read(key_of(2)) == held


def test_what_was_found_is_removed(engine: Engine, items: DynamoProjectionItems) -> None:
    engine.put(shaped(5, 1, 2))
    engine.put(value(5), key_of(2))
    held = found(items)
    assert items.replace(held, None, soon())
    assert engine.read() is None
    assert engine.read(key_of(2)) == value(5)
    assert items.replace(held, None, soon())
    assert not items.replace(held, value(5), soon())
    assert engine.read() is None


def test_what_is_too_large_is_replaced_by_a_stub(
    engine: Engine, items: DynamoProjectionItems
) -> None:
    engine.put(value(5))
    assert items.replace(found(items), value(6, NOISE), soon())
    assert engine.read() == Projection(6, Form.STUB)


@pytest.mark.parametrize("size", [0, 1000, 290 * 1024, 400 * 1024])
def test_what_fits_is_what_a_put_holds(
    engine: Engine, items: DynamoProjectionItems, size: int
) -> None:
    projection = value(5, NOISE[:size])
    assert items.fits(KEY, projection) == (engine.put(projection) == projection)
    assert items.fits(KEY, Projection(5, Form.TOMBSTONE))


def test_an_item_as_large_as_can_be_is_replaced(
    engine: Engine, items: DynamoProjectionItems
) -> None:
    largest = value(5, NOISE[: 290 * 1024])
    assert engine.put(largest) == largest
    assert items.replace(found(items), value(5, NOISE[100:][: 290 * 1024]), soon())
    assert engine.read() == value(5, NOISE[100:][: 290 * 1024])


HELD = encode(KEY, Projection(5, Form.VALUE, TEXT, ((2, TEXT),)), compress_above=100).item
FIRST = encode(KEY, value(5), compress_above=100).item
SECOND = encode(KEY, shaped(5, 2), compress_above=100).item
GONE = encode(KEY, Projection(5, Form.TOMBSTONE), compress_above=100).item
# What is found, and what of it has changed by the time that it shall be replaced: None is
# an attribute that is gone.
CHANGES: list[tuple[Any, dict[str, Any]]] = [
    (HELD, {"version": {"N": "6"}}),
    (HELD, {"version": {"S": "5"}}),
    (HELD, {"form": {"S": "stub"}}),
    (HELD, {"payload": {"B": b"other"}}),
    (HELD, {"payload": None}),
    (HELD, {"encoding": {"S": "other"}}),
    (HELD, {"encoding": None}),
    (HELD, {"payload_2": {"B": b"other"}}),
    (HELD, {"encoding_2": None}),
    (HELD, {"version_2": {"N": "4"}}),
    (HELD, {"payload_3": {"B": b"more"}}),
    (HELD, {"version_3": {"N": "5"}}),
    (FIRST, {"encoding": {"S": "zstd"}}),
    (FIRST, {"payload_2": {"B": b"more"}}),
    (FIRST, {"encoding_2": {"S": "zstd"}}),
    (FIRST, {"version_2": {"N": "5"}}),
    (SECOND, {"payload": {"B": b"more"}}),
    (SECOND, {"encoding": {"S": "zstd"}}),
    (SECOND, {"payload_3": {"B": b"more"}}),
    (GONE, {"payload": {"B": b"more"}}),
    ({"pk": HELD["pk"], "other": {"S": "damaged"}}, {"other": {"S": "damaged anew"}}),
    ({"pk": HELD["pk"], "other": {"S": "damaged"}}, {"version": {"N": "5"}}),
    ({"pk": HELD["pk"], "other": {"S": "damaged"}}, {"form": {"S": "value"}}),
    ({"pk": HELD["pk"], "other": {"S": "damaged"}}, {"payload_7": {"B": b"more"}}),
]
REPLACEMENTS = [shaped(5, 1, 6), None]


def check_what_has_changed_is_left_alone(
    engine: Engine, before: dict[str, Any], change: dict[str, Any], by: Projection | None
) -> None:
    items = items_of(engine)
    after = {name: v for name, v in {**before, **change}.items() if v is not None}
    if by is None and "payload_7" in change:
        by = shaped(5, 7)
    engine.client.put_item(TableName=engine.table, Item=before)
    held = found(items)
    engine.client.put_item(TableName=engine.table, Item=after)
    assert not items.replace(held, by, soon())
    assert engine.item() == after


@pytest.mark.parametrize("by", REPLACEMENTS, ids=str)
@pytest.mark.parametrize(("before", "change"), CHANGES)
def test_what_has_changed_is_left_alone(
    engine: Engine, before: dict[str, Any], change: dict[str, Any], by: Projection | None
) -> None:
    check_what_has_changed_is_left_alone(engine, before, change, by)


def test_what_has_been_put_meanwhile_is_left_alone(
    engine: Engine, items: DynamoProjectionItems
) -> None:
    for before, put in [
        (value(5), shaped(5, 1, 2)),
        (shaped(5, 2), shaped(5, 2, 3)),
        (shaped(5, 2), shaped(5, 1, 2)),
        (shaped(5, 2), shaped(5, 3)),
        (value(5), value(6)),
        (value(5), Projection(6, Form.TOMBSTONE)),
    ]:
        for by in (value(5, b"what is right"), None):
            engine.client.delete_item(TableName=engine.table, Key={"pk": {"S": str(KEY)}})
            engine.put(before)
            held = found(items)
            engine.put(put)
            assert not items.replace(held, by, soon())
            assert engine.read() == put


def test_a_replacement_may_be_repeated(engine: Engine, items: DynamoProjectionItems) -> None:
    engine.put(shaped(5, 1, 2))
    held = found(items)
    assert items.replace(held, value(4, TEXT), soon())
    assert items.replace(held, value(4, TEXT), soon())
    assert not items.replace(held, value(4, TEXT + b"."), soon())
    assert not items.replace(held, None, soon())
    assert engine.read() == value(4, TEXT)


@pytest.mark.parametrize("engine", ["dynamodb_local"], indirect=True)
@pytest.mark.parametrize("by", [value(4, TEXT), shaped(4, 1, 2), None], ids=str)
def test_a_replacement_whose_reply_is_lost_is_recognised_as_done(
    engine: Engine, items: DynamoProjectionItems, by: Projection | None
) -> None:
    engine.put(value(5))
    held = found(items)
    conflicts = []
    lost: list[AWSPreparedRequest] = []

    def lose_the_first(request: AWSPreparedRequest) -> AWSResponse | None:
        lost.append(request)
        return lose_reply(request) if len(lost) == 1 else None

    with Traffic(engine.client).watched() as traffic:
        traffic.tamper = lose_the_first
        traffic.answered = lambda parsed: conflicts.append(parsed.get("Error", {}).get("Code"))
        assert items.replace(held, by, soon())
    assert len(lost) == 2
    assert conflicts == ["ConditionalCheckFailedException"]
    assert engine.read() == by


def walked(items: DynamoProjectionItems, limit: int) -> list[HeldItem]:
    walked: list[HeldItem] = []
    start = None
    while True:
        page = items.page(start, limit, soon())
        assert len(page.items) <= limit
        walked += page.items
        start = page.next
        if start is None:
            return walked


@pytest.mark.parametrize("limit", [1, 7, 40, 1000])
def test_pages_are_all_of_the_table(
    engine: Engine, items: DynamoProjectionItems, limit: int
) -> None:
    puts = {EntityKey("", "k", f"{n}#" * (n % 3 + 1)): shaped(n + 1, 1, 2) for n in range(40)}
    engine.projections.put_all(puts, soon())
    held = walked(items, limit)
    assert len(held) == len(puts)
    assert {item.key: item.projection for item in held} == puts
    assert all(item.raw == engine.item(item.key) for item in held)


def test_an_empty_table_has_no_items(engine: Engine, items: DynamoProjectionItems) -> None:
    assert walked(items, 10) == []
    assert items.sample(10, soon()) == []
    assert engine.unreadable == []


def test_items_that_cannot_be_read_are_on_the_pages(
    engine: Engine, items: DynamoProjectionItems
) -> None:
    engine.put(value(1))
    for number, (attributes, _) in enumerate(UNREADABLE.values(), start=2):
        engine.damage(key_of(number), **attributes)
    held = {item.key: item for item in walked(items, 5)}
    assert held.keys() == {KEY, *(key_of(n) for n in range(2, len(UNREADABLE) + 2))}
    assert [item.key for item in held.values() if not item.fault] == [KEY]
    assert items.inspect(list(held), soon()) == held


def test_items_whose_key_is_none_are_left_out(engine: Engine, items: DynamoProjectionItems) -> None:
    engine.put(value(1))
    for pk in ("x", "x#y", "##", "x##1", "x#y#", "#"):
        engine.client.put_item(TableName=engine.table, Item={**FIRST, "pk": {"S": pk}})
    for limit in (1, 10):
        assert [item.key for item in walked(items, limit)] == [KEY]
    assert [item.key for item in items.sample(10, soon())] == [KEY]


def test_a_page_begins_behind_an_item_that_is_gone(
    engine: Engine, items: DynamoProjectionItems
) -> None:
    engine.projections.put_all({key_of(n): value(1) for n in range(20)}, soon())
    order = [item.key for item in walked(items, 20)]
    page = items.page(None, 10, soon())
    assert page.next == str(order[9])
    assert items.replace(page.items[-1], None, soon())
    rest = items.page(page.next, 100, soon())
    assert [item.key for item in rest.items] == order[10:]


def test_a_sample_of_few_is_all_of_them(engine: Engine, items: DynamoProjectionItems) -> None:
    puts = {key_of(n): value(n + 1) for n in range(12)}
    engine.projections.put_all(puts, soon())
    sample = items.sample(12, soon())
    assert len(sample) == 12
    assert {item.key: item.projection for item in sample} == puts


def test_a_sample_comes_from_anywhere(engine: Engine) -> None:
    keys = [key_of(n) for n in range(120)]
    engine.projections.put_all(dict.fromkeys(keys, value(1)), soon())
    seen: set[EntityKey] = set()
    firsts: set[EntityKey] = set()
    items = items_of(engine, seed=7)
    for _ in range(60):
        sample = [item.key for item in items.sample(10, soon())]
        assert len(sample) == len(set(sample)) == 10
        seen.update(sample)
        firsts.add(sample[0])
    # 600 draws of 120: of a sample that is one of a few, there would be far fewer.
    assert len(seen) >= 110
    assert len(firsts) >= 30


def test_nothing_is_sent_after_the_deadline(engine: Engine, items: DynamoProjectionItems) -> None:
    engine.put(value(1))
    held = found(items)
    passed = Deadline.after(0)
    for call in (
        lambda: items.inspect((KEY,), passed),
        lambda: items.replace(held, value(2), passed),
        lambda: items.replace(held, None, passed),
        lambda: items.page(None, 1, passed),
        lambda: items.sample(1, passed),
    ):
        with pytest.raises(DeadlineExceededError):
            call()
    assert engine.read() == value(1)


def test_a_missing_table_is_a_store_that_cannot_be_used(
    engine: Engine, items: DynamoProjectionItems
) -> None:
    engine.put(value(1))
    held = found(items)
    nowhere = items_of(replace(engine, prefix=f"{engine.prefix}other_"))
    for call in (
        lambda: nowhere.inspect((KEY,), soon()),
        lambda: nowhere.replace(held, value(2), soon()),
        lambda: nowhere.replace(held, None, soon()),
        lambda: nowhere.page(None, 1, soon()),
        lambda: nowhere.sample(1, soon()),
    ):
        with pytest.raises(StoreUnavailableError):
            call()


# The guards, each shown to be missed when it is left out.


def looking_away_from(attribute: str) -> type[SimulatedDynamoDB]:
    """Return a database on which a condition asks nothing of an attribute."""

    class LooksAway(SimulatedDynamoDB):
        def put_item(self, **request: Any) -> dict[str, Any]:
            return super().put_item(**_without(request, attribute))

        def delete_item(self, **request: Any) -> dict[str, Any]:
            return super().delete_item(**_without(request, attribute))

    return LooksAway


def _without(request: dict[str, Any], attribute: str) -> dict[str, Any]:
    if "ExpressionAttributeNames" not in request:
        return request
    names = dict(request["ExpressionAttributeNames"])
    values = dict(request["ExpressionAttributeValues"])
    clauses = request["ConditionExpression"].split(" AND ")
    for token, name in list(names.items()):
        if name == attribute:
            del names[token]
            values.pop(token.replace("#", ":"), None)
            clauses = [c for c in clauses if token not in c.replace("(", " ").rstrip(")").split()]
    return {
        **request,
        "ConditionExpression": " AND ".join(clauses),
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }


@pytest.mark.parametrize("by", REPLACEMENTS, ids=str)
@pytest.mark.parametrize(("before", "change"), CHANGES)
def test_an_attribute_that_is_not_looked_at_is_missed(
    before: dict[str, Any], change: dict[str, Any], by: Projection | None
) -> None:
    (attribute,) = change
    with pytest.raises(AssertionError):
        check_what_has_changed_is_left_alone(
            direct(looking_away_from(attribute)().client), before, change, by
        )
