"""Messages made of stored bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server import codec
from duostore_server.domain.entities import Entity, Reading
from duostore_server.domain.errors import AnswerTooLargeError, InvalidRequestError, Store
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode
from duostore_server.rpc import converters

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LATER = datetime(2026, 11, 23, 13, tzinfo=UTC)


def key(number: int) -> EntityKey:
    return EntityKey("t", "proposal", str(number))


def payload(number: int, size: int = 0) -> bytes:
    return codec.encode(Entity(key(number), 3, {"text": "x" * size}, NOON, LATER))


@pytest.mark.parametrize("size", [0, 30, 100, 127, 128, 300, 16_500, 3_000_000])
def test_the_stored_bytes_are_the_response(size: int) -> None:
    stored = payload(1, size)
    raw = converters.get_response(Reading(3, stored, Store.CACHE, NOON))
    assert stored in raw
    response = data_access_pb2.GetResponse.FromString(raw)
    assert response.entity == entity_pb2.Entity.FromString(stored)
    assert response.receipt.served_from == entity_pb2.STORE_CACHE
    assert response.receipt.cached_time.ToDatetime(UTC) == NOON


def test_only_the_cache_tells_when_it_was_filled() -> None:
    raw = converters.get_response(Reading(3, payload(1), Store.DYNAMODB))
    receipt = data_access_pb2.GetResponse.FromString(raw).receipt
    assert receipt == entity_pb2.Receipt(served_from=entity_pb2.STORE_DYNAMODB)


def test_a_batch_keeps_the_order_of_the_request() -> None:
    keys = [key(number) for number in (5, 1, 4, 2)]
    readings = {
        key(1): Reading(0, None, Store.AURORA),
        key(2): Reading(3, payload(2), Store.CACHE, LATER),
        key(4): Reading(3, payload(4), Store.CACHE, NOON),
        key(5): Reading(3, payload(5), Store.DYNAMODB),
    }
    response = data_access_pb2.BatchGetResponse.FromString(
        converters.batch_get_response(keys, readings, max_bytes=10_000)
    )
    assert [entity.key.id for entity in response.entities] == ["5", "4", "2"]
    assert [missing.id for missing in response.missing] == ["1"]
    assert response.receipt.served_from == entity_pb2.STORE_AURORA


def test_a_batch_from_the_cache_is_as_old_as_its_oldest_entry() -> None:
    readings = {
        key(1): Reading(3, payload(1), Store.CACHE, LATER),
        key(2): Reading(3, payload(2), Store.CACHE, NOON),
    }
    response = data_access_pb2.BatchGetResponse.FromString(
        converters.batch_get_response([key(1), key(2)], readings, max_bytes=10_000)
    )
    assert response.receipt.cached_time.ToDatetime(UTC) == NOON


@pytest.mark.parametrize("size", [0, 100, 120, 200, 20_000])
def test_an_answer_may_be_as_large_as_its_limit_and_no_larger(size: int) -> None:
    keys = [key(number) for number in range(5)]
    readings = {k: Reading(3, payload(n, size), Store.DYNAMODB) for n, k in enumerate(keys[:4])}
    readings[keys[4]] = Reading(0, None, Store.AURORA)
    whole = converters.batch_get_response(keys, readings, max_bytes=10**6)
    assert converters.batch_get_response(keys, readings, max_bytes=len(whole)) == whole
    with pytest.raises(AnswerTooLargeError) as refused:
        converters.batch_get_response(keys, readings, max_bytes=len(whole) - 1)
    assert refused.value.metadata == {"size": str(len(whole)), "limit": str(len(whole) - 1)}


POLICIES = Policies(
    {"proposal": KindPolicy(60, 10, ProjectionMode.INLINE, max_bytes=len('{"a":[1,1,1]}'))}
)


def saving(data: dict[str, Any], kind: str = "proposal") -> data_access_pb2.SaveRequest:
    request = data_access_pb2.SaveRequest(key=entity_pb2.EntityKey(kind=kind, id="1"))
    request.data.update(data)
    return request


def test_what_its_kind_may_allow_is_converted() -> None:
    assert converters.content_of(saving({"a": [1, 1, 1]}), POLICIES) == {"a": [1.0, 1.0, 1.0]}
    assert converters.content_of(data_access_pb2.SaveRequest(), POLICIES) is None


def test_what_its_kind_cannot_allow_is_refused_unseen() -> None:
    with pytest.raises(
        InvalidRequestError, match="data: has more bytes as compact JSON than its kind allows, 13"
    ):
        converters.content_of(saving({"a": [1] * 9}), POLICIES)
    # Refused for its kind: see Checks.
    assert converters.content_of(saving({"a": [1] * 9}, kind="other"), POLICIES) == {}


def test_too_many_keys_are_refused_unseen() -> None:
    request = data_access_pb2.BatchGetRequest(keys=[entity_pb2.EntityKey(id="1")] * 501)
    with pytest.raises(InvalidRequestError, match="keys: has 501 keys; 1 to 500 are allowed"):
        converters.keys_of(request)
    del request.keys[500]
    assert converters.keys_of(request) == [EntityKey("", "", "1")] * 500
