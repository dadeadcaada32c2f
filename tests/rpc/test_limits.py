"""What the service refuses for its size, as clients with gRPC's own limits see it."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import grpc
import pytest

from duostore import Client, Key
from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server import codec
from tests.rpc.test_data_access import refused
from tests.rpc.test_snapshots import listed, snapshot
from tests.support.in_process import in_process
from tests.support.service import CALL_SECONDS, Caller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.in_process import InProcess
    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

LIMIT = 64 * 1024
CONFIG = """
[server]
max_answer_bytes = "64KiB"
max_message_bytes = "64KiB"
[kinds.note]
max_bytes = "11KiB"
snapshots = {}
"""


@pytest.fixture(scope="module")
def limited(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[InProcess]:
    file = tmp_path_factory.mktemp("limited") / "duostore.toml"
    file.write_text(CONFIG)
    with in_process(
        file,
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
    ) as running:
        yield running


@pytest.fixture
def callers(limited: InProcess) -> Iterator[Caller]:
    """Somebody who connects as gRPC does by default."""
    with grpc.insecure_channel(limited.target) as channel:
        yield Caller(channel, kind="note")


@pytest.mark.parametrize("letter", ["k", "é", "😀"])
def test_a_kind_of_any_length_is_refused_for_what_it_is(callers: Caller, letter: str) -> None:
    key = entity_pb2.EntityKey(kind=letter * 10_000, id="1")
    with refused() as refusal:
        callers.stub.Get(data_access_pb2.GetRequest(key=key), timeout=CALL_SECONDS)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert "at most 64" in refusal.fields["key.kind"]


def test_the_largest_document_can_be_sent_and_answered_with(callers: Caller, id_: str) -> None:
    document = {"a": [1] * ((11 * 1024 - len('{"a":[]}') + 1) // 2)}
    callers.save(id_, document)
    for strong in ({"strong": True}, {}, {}):
        assert codec.plain(callers.get(id_, **strong).entity.data) == document
    assert callers.stub.BatchGet(
        data_access_pb2.BatchGetRequest(keys=[callers.key(id_)]), timeout=CALL_SECONDS
    ).entities
    with refused() as refusal:
        callers.save(id_, {"a": [1] * (11 * 1024 // 2)})
    assert list(refusal.fields) == ["data"]


def test_a_batch_that_is_too_large_is_refused_and_the_client_asks_for_fewer(
    limited: InProcess, callers: Caller, id_: str
) -> None:
    ids = [f"{id_}-{n}" for n in range(20)]
    texts = {name: secrets.token_hex(5000) for name in ids}
    for name, text in texts.items():
        callers.save(name, {"text": text})
    request = data_access_pb2.BatchGetRequest(keys=map(callers.key, ids))
    for _ in range(2):
        with refused() as refusal:
            callers.stub.BatchGet(request, timeout=CALL_SECONDS)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "ANSWER_TOO_LARGE",
        )
        assert int(refusal.metadata["size"]) > 20 * 10_000
        assert refusal.metadata["limit"] == str(LIMIT)
    with Client(limited.target) as client:
        found = client.batch_get(Key("note", name) for name in [*ids, f"{id_}-absent"])
    assert {key.id: entity.data["text"] for key, entity in found.items()} == texts
    assert [key.id for key in found] == ids


def test_a_page_of_snapshots_holds_no_more_than_may_be_sent(callers: Caller, id_: str) -> None:
    texts = [secrets.token_hex(5000) for _ in range(20)]
    taken = {snapshot(callers, id_, {"text": text}).sequence: text for text in texts}
    assert len(taken) == 20
    found: dict[int, str] = {}
    token, pages = "", 0
    while token or not pages:
        page = listed(callers, id_, page_size=100, page_token=token)
        assert page.ByteSize() <= LIMIT
        assert len(page.snapshots) > 1
        found.update((s.sequence, codec.plain(s.data)["text"]) for s in page.snapshots)
        token, pages = page.next_page_token, pages + 1
    assert found == taken
    assert list(found) == sorted(taken, reverse=True)
    assert pages > 1
