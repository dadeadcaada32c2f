"""The serialized entity, snapshot and result."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.struct_pb2 import ListValue, Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server import codec
from duostore_server.domain.documents import normalized
from duostore_server.domain.entities import Entity
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.queries import Column, Result
from duostore_server.domain.snapshots import Head
from tests.unit.test_documents import acceptable

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.domain.queries import Row

KEY = EntityKey("acme", "proposal", "ü#1")
MESSAGE = entity_pb2.EntityKey(tenant=KEY.tenant, kind=KEY.kind, id=KEY.id)
CREATED = datetime(2024, 2, 29, 12, 0, 0, 123456, UTC)
UPDATED = datetime(2026, 11, 23, 9, 30, 1, tzinfo=UTC)


def entity(data: dict[str, Any], version: int = 7) -> Entity:
    return Entity(KEY, version, data, CREATED, UPDATED)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
documents = st.dictionaries(names, acceptable)
numbers = st.integers(1, 2**63 - 1)


@settings(deadline=None)
@given(documents, numbers)
def test_an_entity_comes_back_as_it_went_in(data: dict[str, Any], version: int) -> None:
    whole = entity(normalized(data), version)
    assert codec.decode(codec.encode(whole)) == whole


def test_the_payload_is_the_public_message() -> None:
    message = entity_pb2.Entity.FromString(codec.encode(entity({"a": [1, None, "x"]})))
    assert message.key == MESSAGE
    assert message.version == 7
    assert message.update_time.ToDatetime(UTC) == UPDATED
    assert codec.plain(message.data) == {"a": [1.0, None, "x"]}


def test_what_is_no_payload_is_refused() -> None:
    for read in (codec.decode, codec.document_of):
        with pytest.raises(ValueError, match="not a serialized"):
            read(b"\xff\xff")


def test_an_empty_document_is_one_all_the_same() -> None:
    for payload in (codec.encode(entity({})), codec.encode_head(KEY, {})):
        assert entity_pb2.Entity.FromString(payload).HasField("data")
    snapshot = entity_pb2.EntitySnapshot.FromString(codec.encode_snapshot(KEY, {}, CREATED))
    assert snapshot.HasField("data")


@settings(deadline=None)
@given(documents, numbers)
def test_a_head_becomes_the_entity_once_its_version_is_known(
    data: dict[str, Any], version: int
) -> None:
    payload = codec.encode_head(KEY, normalized(data))
    head = Head(version, payload, CREATED, UPDATED, expire_time=None)
    whole = codec.head_entity(payload, head)
    assert codec.decode(whole) == entity(normalized(data), version)
    assert codec.document_of(payload) == codec.document_of(whole) == normalized(data)


def test_a_head_has_neither_version_nor_times_of_its_own() -> None:
    message = entity_pb2.Entity.FromString(codec.encode_head(KEY, {"a": 1}))
    assert {field.name for field, _ in message.ListFields()} == {"key", "data"}


@settings(deadline=None)
@given(documents, numbers)
def test_a_snapshot_is_whole_once_its_sequence_is_known(
    data: dict[str, Any], sequence: int
) -> None:
    payload = codec.encode_snapshot(KEY, normalized(data), UPDATED)
    whole = codec.numbered(payload, sequence)
    assert codec.document_of(payload) == codec.document_of(whole) == normalized(data)
    message = entity_pb2.EntitySnapshot.FromString(whole)
    assert message.key == MESSAGE
    assert message.sequence == sequence
    assert message.snapshot_time.ToDatetime(UTC) == UPDATED
    assert entity_pb2.EntitySnapshot.FromString(payload).sequence == 0


@pytest.mark.parametrize(
    "encode",
    [
        lambda data: codec.encode(entity(data)),
        lambda data: codec.encode_head(KEY, data),
        lambda data: codec.encode_snapshot(KEY, data, UPDATED),
    ],
    ids=["entity", "head", "snapshot"],
)
def test_the_same_document_gives_the_same_bytes(encode: Callable[[Any], bytes]) -> None:
    inner = [(str(n), n) for n in range(200)]
    one = {"x": dict(inner), **dict(inner)}
    other = {**dict(inner[::-1]), "x": dict(inner[::-1])}
    assert encode(one) == encode(other)


def test_a_struct_with_values_that_json_lacks_is_read_all_the_same() -> None:
    struct = Struct()
    struct.fields["nan"].number_value = float("nan")
    struct.fields["unset"].SetInParent()
    plain = codec.plain(struct)
    assert plain["nan"] != plain["nan"]
    assert plain["unset"] is None


texts = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["x" * size for size in (121, 122, 123, 124, 125, 126, 127, 128, 16_380, 16_384, 70_000)]
)
cells = (
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats() | texts
) | acceptable
rows = st.lists(st.lists(cells, max_size=8), max_size=8)


def result(found: list[Row], *names: str) -> Result:
    return Result(tuple(Column(name, f"type of {name}") for name in names), found, UPDATED)


def by_protobuf(row: Row) -> bytes:
    values = ListValue()
    values.extend(row)
    return data_access_pb2.QueryResponse(rows=[values]).SerializeToString(deterministic=True)


@settings(deadline=None)
@given(st.lists(cells, max_size=8))
def test_a_row_is_what_protobuf_makes_of_it(row: Row) -> None:
    encoded = codec.encode_row(row)
    assert encoded == by_protobuf(row)
    assert codec.row_bytes(row) == len(encoded)
    exported = data_access_pb2.ExportResponse.FromString(encoded)
    assert exported.rows == data_access_pb2.QueryResponse.FromString(encoded).rows
    assert len(exported.rows) == 1


@settings(deadline=None)
@given(rows)
def test_a_result_is_the_public_message_without_what_is_of_one_answer(found: list[Row]) -> None:
    payload = codec.encode_result(result(found, "a", "b"))
    message = data_access_pb2.QueryResponse.FromString(payload)
    assert list(message.columns) == ["a", "b"]
    assert list(message.column_types) == ["type of a", "type of b"]
    assert message.as_of.ToDatetime(UTC) == UPDATED
    assert b"".join(map(by_protobuf, found)) in payload
    assert len(message.rows) == len(found)
    assert not message.HasField("receipt")
    assert message.next_page_token == ""


@settings(deadline=None)
@given(rows, st.integers(0, 9), st.integers(1, 9))
def test_a_page_is_a_slice_of_its_result(found: list[Row], offset: int, size: int) -> None:
    whole = codec.encode_result(result(found, "a"))
    page, total = codec.page_of(whole, offset, size)
    assert total == len(found)
    part = codec.encode_result(result(found[offset : offset + size], "a"))
    message = data_access_pb2.QueryResponse.FromString(page)
    assert message.SerializeToString(
        deterministic=True
    ) == data_access_pb2.QueryResponse.FromString(part).SerializeToString(deterministic=True)


def test_the_same_rows_give_the_same_bytes_whatever_the_order_of_names_in_them() -> None:
    inner = {str(n): n for n in range(200)}
    other = dict(reversed(inner.items()))
    assert codec.encode_row([inner, [inner]]) == codec.encode_row([other, [other]])


@pytest.mark.parametrize("value", [1j, b"x", (1,), UPDATED])
def test_what_is_no_json_value_is_not_taken_for_another(value: Any) -> None:
    with pytest.raises(KeyError):
        codec.encode_row([value])
