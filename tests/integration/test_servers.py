from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import boto3
import psutil
import psycopg
import pytest
from botocore.config import Config
from pymemcache.client.base import Client  # type: ignore[import-untyped]

from tests.support.owners import is_gone, orphan
from tests.support.servers import (
    DynamoDBLocal,
    MemcachedServer,
    PostgresServer,
    Server,
    running,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from types_boto3_dynamodb import DynamoDBClient


def cache_client(server: MemcachedServer, timeout: float = 5.0) -> Client:
    return Client(server.address, timeout=timeout, connect_timeout=timeout, default_noreply=False)


def dynamodb_client(server: DynamoDBLocal) -> DynamoDBClient:
    return boto3.client(
        "dynamodb",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}),
    )


def create_table(client: DynamoDBClient, name: str) -> None:
    client.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def test_memcached_comes_back_empty_at_the_same_address() -> None:
    with running(MemcachedServer()) as server:
        address = server.address
        with closing(cache_client(server)) as client:
            client.set("k", b"v")
        server.stop()
        with closing(cache_client(server)) as client, pytest.raises(ConnectionRefusedError):
            client.get("k")
        server.start()
        assert server.address == address
        with closing(cache_client(server)) as client:
            assert client.get("k") is None


def test_flush_empties_memcached(memcached: MemcachedServer) -> None:
    with closing(cache_client(memcached)) as client:
        client.set("k", b"v")
        memcached.flush()
        assert client.get("k") is None
        client.set("k", b"w")
        assert client.get("k") == b"w"


def test_a_paused_memcached_is_silent_and_then_goes_on() -> None:
    with running(MemcachedServer()) as server:
        with closing(cache_client(server)) as client:
            client.set("k", b"v")
        server.pause()
        with closing(cache_client(server, timeout=0.2)) as client, pytest.raises(TimeoutError):
            client.get("k")
        server.resume()
        with closing(cache_client(server)) as client:
            assert client.get("k") == b"v"


def test_dynamodb_keeps_its_data_over_a_kill_only_in_a_folder(tmp_path: Path) -> None:
    for data_dir, kept in ((tmp_path, True), (None, False)):
        with running(DynamoDBLocal(data_dir=data_dir)) as server:
            client = dynamodb_client(server)
            create_table(client, "things")
            client.put_item(TableName="things", Item={"pk": {"S": "a"}})
            server.kill()
            server.start()
            assert client.list_tables()["TableNames"] == (["things"] if kept else [])
            if kept:
                assert "Item" in client.get_item(TableName="things", Key={"pk": {"S": "a"}})
            client.close()


def test_postgres_comes_back_with_its_commits_under_the_same_dsn() -> None:
    with running(PostgresServer()) as server:
        dsn = server.create_database()
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE commits AS SELECT 1 AS n")
        for end in (server.kill, server.stop):
            end()
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(dsn)
            server.start()
            with psycopg.connect(dsn) as connection:
                connection.execute("INSERT INTO commits VALUES (1)")
        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM commits").fetchone() == (3,)


def test_a_paused_postgres_is_silent_and_then_goes_on() -> None:
    with running(PostgresServer()) as server, psycopg.connect(server.dsn()) as connection:
        server.pause()
        suspended = [server.pid, connection.info.backend_pid]
        assert {psutil.Process(pid).status() for pid in suspended} == {psutil.STATUS_STOPPED}
        server.resume()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_each_test_has_a_database_of_its_own(postgres: PostgresServer, postgres_dsn: str) -> None:
    assert postgres.create_database() != postgres_dsn
    with psycopg.connect(postgres_dsn) as connection:
        tables = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
        assert tables == (0,)


@pytest.mark.parametrize("kind", [MemcachedServer, DynamoDBLocal])
def test_a_server_dies_with_the_process_that_started_it(kind: type[Server], tmp_path: Path) -> None:
    server = orphan(
        f"from {kind.__module__} import {kind.__name__} as Kind\nserver = Kind()", temp=tmp_path
    )
    eventually(lambda: is_gone(server), within=15, what="the server is gone")
