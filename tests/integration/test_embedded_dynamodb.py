from __future__ import annotations

import http.client
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.embedded.dynamodb_server import Server
from duostore_server.embedded.process import EmbeddedStoreError
from tests.support.owners import is_gone, orphan
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from wsgiref.types import StartResponse, WSGIEnvironment

    from types_boto3_dynamodb import DynamoDBClient

THREADS = 8
ROUNDS = 25


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedDynamoDB]:
    with EmbeddedDynamoDB() as server:
        yield server


def client_of(server: EmbeddedDynamoDB) -> DynamoDBClient:
    return boto3.client(
        "dynamodb",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, max_pool_connections=THREADS),
    )


def create_table(client: DynamoDBClient, name: str) -> None:
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def test_concurrent_conditional_writes_are_exact(
    embedded: EmbeddedDynamoDB, table_prefix: str
) -> None:
    client = client_of(embedded)
    table = f"{table_prefix}once"
    create_table(client, table)

    def claim(claimant: int) -> list[int]:
        won = []
        for key in range(ROUNDS):
            try:
                client.put_item(
                    TableName=table,
                    Item={"pk": {"S": str(key)}, "owner": {"N": str(claimant)}},
                    ConditionExpression="attribute_not_exists(pk)",
                )
            except client.exceptions.ConditionalCheckFailedException:
                continue
            won.append(key)
        return won

    with ThreadPoolExecutor(THREADS) as pool:
        won = list(pool.map(claim, range(THREADS)))
    assert sorted(key for keys in won for key in keys) == list(range(ROUNDS))
    for claimant, keys in enumerate(won):
        for key in keys:
            item = client.get_item(TableName=table, Key={"pk": {"S": str(key)}})["Item"]
            assert item["owner"] == {"N": str(claimant)}
    client.close()


def test_concurrent_counts_are_exact(embedded: EmbeddedDynamoDB, table_prefix: str) -> None:
    client = client_of(embedded)
    table = f"{table_prefix}count"
    create_table(client, table)

    def count(_: int) -> list[int]:
        return [
            int(
                client.update_item(
                    TableName=table,
                    Key={"pk": {"S": "k"}},
                    UpdateExpression="ADD n :one",
                    ExpressionAttributeValues={":one": {"N": "1"}},
                    ReturnValues="UPDATED_NEW",
                )["Attributes"]["n"]["N"]
            )
            for _ in range(ROUNDS)
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        seen = [number for numbers in pool.map(count, range(THREADS)) for number in numbers]
    assert sorted(seen) == list(range(1, THREADS * ROUNDS + 1))
    client.close()


def test_no_two_requests_are_worked_on_at_once() -> None:
    meeting = threading.Barrier(2)

    def app(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=0.5)
            start_response("200 OK", [])
            return [b"met"]
        start_response("200 OK", [])
        return [b"alone"]

    def ask(_: int) -> bytes:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.request("POST", "/", b"")
        body = connection.getresponse().read()
        connection.close()
        return body

    listening = socket.create_server(("127.0.0.1", 0))
    host, port = listening.getsockname()
    with Server(listening, app) as server, ThreadPoolExecutor(3) as pool:
        pool.submit(server.serve_forever, poll_interval=0.01)
        try:
            assert list(pool.map(ask, range(2))) == [b"alone", b"alone"]
        finally:
            server.shutdown()


def test_a_connection_serves_many_requests(embedded: EmbeddedDynamoDB) -> None:
    host, port = embedded.endpoint_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    own_addresses = set()
    for _ in range(3):
        connection.request("GET", "/")
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"healthy")
        assert isinstance(connection.sock, socket.socket)
        own_addresses.add(connection.sock.getsockname())
    connection.close()
    assert len(own_addresses) == 1


def test_what_moto_cannot_do_is_answered_as_an_error_that_can_be_repeated(
    embedded: EmbeddedDynamoDB,
) -> None:
    host, port = embedded.endpoint_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("POST", "/", b"no JSON", {"X-Amz-Target": "DynamoDB_20120810.GetItem"})
    response = connection.getresponse()
    assert response.status == 500
    assert b"InternalServerError" in response.read()
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    connection.close()


def test_it_comes_back_empty_at_the_same_address() -> None:
    with EmbeddedDynamoDB() as server:
        client = client_of(server)
        create_table(client, "things")
        server.stop()
        server.start()
        assert client.list_tables()["TableNames"] == []
        client.close()


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedStoreError, match=rf"127\.0\.0\.1:{port}: Address already in"):
            EmbeddedDynamoDB(port).start()


def test_a_missing_table_is_dynamodbs_own_error(embedded: EmbeddedDynamoDB) -> None:
    client = client_of(embedded)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        client.get_item(TableName="none", Key={"pk": {"S": "k"}})
    client.close()


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    server = orphan(
        "from duostore_server.embedded.dynamodb import EmbeddedDynamoDB as DynamoDB\n"
        "server = DynamoDB()",
        temp=tmp_path,
    )
    eventually(lambda: is_gone(server), within=15, what="the server is gone")
