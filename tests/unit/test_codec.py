"""The serialized entity."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from duostore.v1 import entity_pb2
from duostore_server import codec
from duostore_server.domain.documents import normalized
from duostore_server.domain.entities import Entity
from duostore_server.domain.keys import EntityKey
from tests.unit.test_documents import acceptable

CREATED = datetime(2024, 2, 29, 12, 0, 0, 123456, UTC)
UPDATED = datetime(2026, 11, 23, 9, 30, 1, tzinfo=UTC)


def entity(data: dict[str, Any], version: int = 7) -> Entity:
    return Entity(EntityKey("acme", "proposal", "ü#1"), version, data, CREATED, UPDATED)


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.dictionaries(names, acceptable), st.integers(1, 2**63 - 1))
def test_an_entity_comes_back_as_it_went_in(data: dict[str, Any], version: int) -> None:
    whole = entity(normalized(data), version)
    assert codec.decode(codec.encode(whole)) == whole


def test_the_same_entity_gives_the_same_bytes() -> None:
    one = entity({"a": 1, "b": 2, "c": {"d": 3, "e": 4}})
    other = entity({"c": {"e": 4, "d": 3}, "b": 2, "a": 1})
    assert codec.encode(one) == codec.encode(other)


def test_the_payload_is_the_public_message() -> None:
    message = entity_pb2.Entity.FromString(codec.encode(entity({"a": [1, None, "x"]})))
    assert message.key == entity_pb2.EntityKey(tenant="acme", kind="proposal", id="ü#1")
    assert message.version == 7
    assert message.update_time.ToDatetime(UTC) == UPDATED
    assert codec.plain(message.data) == {"a": [1.0, None, "x"]}


def test_what_is_no_payload_is_refused() -> None:
    with pytest.raises(DecodeError):
        codec.decode(b"\xff\xff")


def test_a_struct_with_values_that_json_lacks_is_read_all_the_same() -> None:
    struct = Struct()
    struct.fields["nan"].number_value = float("nan")
    struct.fields["unset"].SetInParent()
    plain = codec.plain(struct)
    assert plain["nan"] != plain["nan"]
    assert plain["unset"] is None
