"""What of DynamoDB and the cache is not what it should be, in the light of Aurora alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from duostore_server import codec
from duostore_server.access.judging import Judge
from duostore_server.access.shapes import Shapes
from duostore_server.domain.admin_ports import HeldItem
from duostore_server.domain.drift import Drift
from duostore_server.domain.entities import Cached, Entity, Form, Lease, Peeked, Projection
from duostore_server.domain.policies import Policies, TransformError
from duostore_server.domain.snapshots import Head
from tests.support.tier_stack import KEY, NOON, POLICIES, READ, WRITE, key, kind

if TYPE_CHECKING:
    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.drift import Finding
    from duostore_server.domain.keys import EntityKey

Told: TypeAlias = tuple[str, int, int]

ROW = Entity(KEY, 7, {"a": 1, "b": {"c": "text"}}, NOON, NOON)
GONE = replace(ROW, data=None)
PAYLOAD = codec.encode(ROW)
UPPER = codec.encode(replace(ROW, data={"A": 1, "B": {"c": "text"}}))


def fits_two(_key: EntityKey, projection: Projection) -> bool:
    """As if two shapes of the row, at most, fitted into an item."""
    return sum(len(projection.in_shape(n) or b"") for n in projection.shapes) <= len(
        PAYLOAD + UPPER
    )


def judge(write: str = "old", read: int = 0, policies: Policies = POLICIES) -> Judge:
    flags: dict[str, FlagValue] = {WRITE: write, READ: read}
    shapes = Shapes(policies, codec.encode, flags.__getitem__)
    return Judge(shapes, codec.decode, codec.head_entity, fits_two)


def item(version: int = 7, *payloads: bytes, form: Form = Form.VALUE, fault: str = "") -> HeldItem:
    later = tuple(enumerate(payloads[1:], 2))
    projection = Projection(version, form, payloads[0] if payloads else None, later)
    return HeldItem(KEY, projection, fault, 100, {})


def entry(version: int, payload: bytes | None, shape: int = 1) -> Peeked:
    return Peeked(Cached(version, payload, NOON, shape=shape), 100)


def told(findings: tuple[Finding, ...]) -> list[Told]:
    return [(each.drift.value, each.expected_version, each.found_version) for each in findings]


def of_item(row: Entity | None, held: HeldItem | None, **options: Any) -> list[Told]:
    return told(judge(**options).findings(KEY, row, item=held, entry=None))


def of_entry(row: Entity | None, found: Peeked | None, **options: Any) -> list[Any]:
    right = None if row is None else item(7, PAYLOAD)
    if row is GONE:
        right = item(form=Form.TOMBSTONE)
    return told(judge(**options).findings(KEY, row, item=right, entry=found))


def paths(row: Entity | None, held: HeldItem | None, found: Peeked | None = None) -> list[str]:
    (finding,) = judge().findings(KEY, row, item=held, entry=found)
    return [f"{each.path} {each.departure.value}" for each in finding.differences]


def test_what_agrees_is_not_told() -> None:
    assert of_item(ROW, item(7, PAYLOAD)) == []
    assert of_item(GONE, item(form=Form.TOMBSTONE)) == []
    assert of_item(None, None) == []
    for row, found in ((ROW, entry(7, PAYLOAD)), (GONE, entry(7, None)), (None, entry(0, None))):
        assert of_entry(row, found) == []
        assert of_entry(row, None) == []


LARGE = replace(ROW, data={"a": "x" * len(PAYLOAD)})


def test_a_stub_of_what_does_not_fit_sends_readers_to_aurora_and_is_right() -> None:
    stub = item(form=Form.STUB)
    assert of_item(replace(LARGE, data={"a": "x" * 1000}), stub) == []
    assert of_item(LARGE, stub, write="both") == []


def test_a_stub_of_what_cannot_be_made_is_right() -> None:
    assert of_item(ROW, item(form=Form.STUB), write="new", policies=UNFIT) == []


def test_a_stub_in_the_place_of_what_fits_is_as_good_as_nothing() -> None:
    stub = item(form=Form.STUB)
    missing = [("projection_missing", 7, 7)]
    assert of_item(ROW, stub) == missing
    assert of_item(GONE, stub) == missing
    # It was too large in two shapes, or its transform was mended.
    assert of_item(LARGE, stub, write="new") == missing
    assert of_item(ROW, stub, write="both") == missing


def test_a_lease_is_nobodys_answer_and_is_right() -> None:
    for row in (ROW, GONE, None):
        assert of_entry(row, Peeked(Lease(b"0" * 16), 32)) == []


@pytest.mark.parametrize("row", [ROW, GONE])
def test_an_item_of_another_version_is_older_or_newer(row: Entity) -> None:
    for form in Form:
        payloads = (PAYLOAD,) if form is Form.VALUE else ()
        older = "projection_missing" if form is Form.STUB else "projection_older"
        assert of_item(row, item(6, *payloads, form=form)) == [(older, 7, 6)]
        assert of_item(row, item(8, *payloads, form=form)) == [("projection_newer", 7, 8)]


@pytest.mark.parametrize("row", [ROW, GONE])
def test_no_item_of_an_entity_is_a_missing_one(row: Entity) -> None:
    assert of_item(row, None) == [("projection_missing", 7, 0)]


def test_an_item_of_what_aurora_never_had_is_an_orphan() -> None:
    assert of_item(None, item(3, PAYLOAD)) == [("projection_orphan", 0, 3)]
    assert of_item(None, item(3, form=Form.TOMBSTONE)) == [("projection_orphan", 0, 3)]


def test_what_cannot_be_read_is_told_whatever_its_version() -> None:
    for version in (0, 6, 7, 8):
        held = item(version, form=Form.STUB, fault="unknown form 'x'")
        assert of_item(ROW, held) == [("projection_unreadable", 7, version)]
    assert of_item(None, item(3, form=Form.STUB, fault="x")) == [("projection_unreadable", 0, 3)]
    assert of_entry(ROW, Peeked(None, 7)) == [("cache_unreadable", 7, 0)]


def changed(**data: Any) -> bytes:
    assert ROW.data is not None
    return codec.encode(replace(ROW, data={**ROW.data, **data}))


@pytest.mark.parametrize(
    ("payload", "differences"),
    [
        (changed(x=1), ["x extra"]),
        (changed(a=2), ["a value"]),
        (changed(a="1"), ["a type"]),
        (changed(b={}), ["b.c missing"]),
        (codec.encode(replace(ROW, version=6)), ["@version value"]),
        (codec.encode(replace(ROW, key=key("other"))), ["@key value"]),
        (codec.encode(replace(ROW, update_time=NOON + timedelta(1))), ["@update_time value"]),
        (b"\xff\xff\xff", ["@document type"]),
        # A time that no calendar has.
        (PAYLOAD + b"\x2a\x0a\x08" + b"\xff" * 8 + b"\x7f", ["@document type"]),
        (b"", ["@key value", "@version value", "@create_time value", "@update_time value"]),
    ],
)
def test_the_right_version_of_another_content_is_found_in_each_tier(
    payload: bytes, differences: list[str]
) -> None:
    assert of_item(ROW, item(7, payload)) == [("projection_content", 7, 7)]
    assert paths(ROW, item(7, payload))[: len(differences)] == differences
    assert of_entry(ROW, entry(7, payload)) == [("cache_content", 7, 7)]
    assert paths(ROW, item(7, PAYLOAD), entry(7, payload))[: len(differences)] == differences


def test_a_document_in_the_place_of_a_tombstone_is_another_content() -> None:
    assert paths(GONE, item(7, PAYLOAD)) == ["@document extra"]
    assert paths(ROW, item(form=Form.TOMBSTONE)) == ["@document missing"]
    assert paths(GONE, item(form=Form.TOMBSTONE), entry(7, PAYLOAD)) == ["@document extra"]
    assert paths(ROW, item(7, PAYLOAD), entry(7, None)) == ["@document missing"]


def test_other_bytes_of_the_same_document_are_right() -> None:
    # As a release writes them that knows a field more.
    other = PAYLOAD + b"\xaa\x06\x01x"
    assert codec.decode(other) == codec.decode(PAYLOAD)
    assert of_item(ROW, item(7, other)) == []
    assert of_entry(ROW, entry(7, other)) == []


def test_cached_absence_is_older_than_any_version() -> None:
    assert of_entry(ROW, entry(0, None)) == [("cache_older", 7, 0)]
    assert of_entry(GONE, entry(0, None)) == [("cache_older", 7, 0)]


def test_a_cached_version_is_older_or_newer_than_aurora() -> None:
    for row in (ROW, GONE):
        assert of_entry(row, entry(6, PAYLOAD)) == [("cache_older", 7, 6)]
        assert of_entry(row, entry(6, None)) == [("cache_older", 7, 6)]
        assert of_entry(row, entry(8, PAYLOAD)) == [("cache_newer", 7, 8)]
    assert of_entry(None, entry(3, PAYLOAD)) == [("cache_newer", 0, 3)]
    assert of_entry(None, entry(3, None)) == [("cache_newer", 0, 3)]


def test_each_shape_is_held_against_its_own_document() -> None:
    assert of_item(ROW, item(7, PAYLOAD, UPPER)) == []
    assert of_item(ROW, item(7, PAYLOAD, PAYLOAD)) == [("projection_content", 7, 7)]
    assert of_item(ROW, item(7, UPPER, UPPER)) == [("projection_content", 7, 7)]
    for read in (0, 100):
        assert of_entry(ROW, entry(7, UPPER, 2), read=read) == []
        assert of_entry(ROW, entry(7, PAYLOAD, 1), read=read) == []
        assert of_entry(ROW, entry(7, PAYLOAD, 2), read=read) == [("cache_content", 7, 7)]


def test_a_shape_that_is_to_be_written_may_be_missing() -> None:
    assert of_item(ROW, item(7, PAYLOAD), write="both") == [("projection_version_missing", 7, 7)]
    assert of_item(ROW, item(7, PAYLOAD), write="new") == [("projection_version_missing", 7, 7)]
    assert of_item(ROW, item(7, PAYLOAD, UPPER), write="both") == []
    # Nothing is written of a tombstone.
    assert of_item(GONE, item(form=Form.TOMBSTONE), write="both") == []


def test_wrong_content_counts_for_more_than_a_missing_shape() -> None:
    found = of_item(ROW, item(7, changed(x=1)), write="both")
    assert found == [("projection_content", 7, 7)]


def refuse(_document: JsonObject) -> JsonObject:
    raise TransformError("there is no id")


UNFIT = Policies({"proposal": kind(projection_version=2, transforms={2: refuse})})


def test_a_shape_for_which_there_is_no_room_is_not_missed() -> None:
    payload = codec.encode(LARGE)
    assert of_item(LARGE, item(7, payload), write="both") == []
    assert of_item(LARGE, item(7, payload), write="new") == [("projection_version_missing", 7, 7)]


def test_a_shape_that_cannot_be_made_is_not_missed() -> None:
    assert of_item(ROW, item(7, PAYLOAD), write="both", policies=UNFIT) == []


def test_a_shape_that_cannot_be_made_is_wrong_only_if_readers_get_it() -> None:
    assert of_item(ROW, item(7, PAYLOAD, UPPER), policies=UNFIT) == []
    assert of_item(ROW, item(7, PAYLOAD, UPPER), read=100, policies=UNFIT) == [
        ("projection_content", 7, 7)
    ]
    # Of a projection version that is configured no more.
    assert of_item(ROW, item(7, PAYLOAD, UPPER, UPPER)) == []


HEAD = Head(4, codec.encode_head(KEY, {"a": 1}), NOON, NOON, NOON + timedelta(hours=1))
WHOLE = codec.head_entity(HEAD.payload or b"", HEAD)


def of_head(head: Head | None, found: Peeked | None, hours: float = 0) -> Drift | None:
    finding = judge().head_finding(KEY, head, found, NOON + timedelta(hours=hours))
    return None if finding is None else finding.drift


def test_the_cache_is_held_against_a_head() -> None:
    assert of_head(HEAD, None) is None
    assert of_head(HEAD, entry(4, WHOLE)) is None
    assert of_head(HEAD, entry(3, WHOLE)) is Drift.CACHE_OLDER
    assert of_head(HEAD, entry(5, WHOLE)) is Drift.CACHE_NEWER
    assert of_head(HEAD, entry(4, b"\xff")) is Drift.CACHE_CONTENT
    assert of_head(HEAD, entry(4, None)) is Drift.CACHE_CONTENT
    assert of_head(HEAD, Peeked(None, 3)) is Drift.CACHE_UNREADABLE
    assert of_head(None, entry(4, WHOLE)) is Drift.CACHE_NEWER


def test_what_has_expired_is_absent_in_both() -> None:
    expiring = Peeked(Cached(4, WHOLE, NOON, HEAD.expire_time), 100)
    assert of_head(HEAD, expiring) is None
    assert of_head(HEAD, expiring, hours=2) is None
    assert of_head(HEAD, entry(4, WHOLE), hours=2) is Drift.CACHE_CONTENT
    # The head was swept.
    assert of_head(None, expiring, hours=2) is None
    assert of_head(None, entry(0, None)) is None
