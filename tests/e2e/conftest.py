"""Services over the shared stores of the run, and over private ones that a test may break."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString
from urllib.parse import urlsplit

import boto3
import psycopg
import pytest

from tests.support.gate import Gate
from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer, running
from tests.support.service import Caller, Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient


@pytest.fixture(scope="module")
def service(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """A service of two workers over the stores of the run. Do not stop those."""
    with Service(
        tmp_path_factory.mktemp("service"),
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
    ) as running_service:
        yield running_service


@pytest.fixture
def caller(service: Service) -> Iterator[Caller]:
    """Somebody who calls the shared service."""
    with service.channel() as channel:
        yield Caller(channel)


@pytest.fixture(scope="session")
def dynamodb_client(dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    """boto3's client of the DynamoDB of the run, for what happens behind a service's back."""
    client = boto3.client(
        "dynamodb",
        region_name="local",
        endpoint_url=dynamodb.endpoint_url,
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )
    try:
        yield client
    finally:
        client.close()


@dataclass(frozen=True)
class Breakable:
    """A service over stores that nobody else uses."""

    service: Service
    postgres: PostgresServer
    dynamodb: DynamoDBLocal
    memcached: MemcachedServer
    # Stands between the service and DynamoDB.
    gate: Gate


@contextmanager
def breaking(
    folders: pytest.TempPathFactory, *, tables: LiteralString = "", **options: Any
) -> Iterator[Breakable]:
    """Run a service of two workers over stores of its own, in which ``tables`` are made first.

    ``options`` are those of ``Service``.
    """
    with ExitStack() as stack:
        postgres = stack.enter_context(running(PostgresServer()))
        dynamodb = stack.enter_context(running(DynamoDBLocal(data_dir=folders.mktemp("dynamodb"))))
        memcached = stack.enter_context(running(MemcachedServer()))
        port = urlsplit(dynamodb.endpoint_url).port
        assert port is not None
        gate = stack.enter_context(Gate(port))
        dsn = postgres.create_database()
        with psycopg.connect(dsn) as connection:
            connection.execute(tables)
        service = stack.enter_context(
            Service(
                folders.mktemp("breakable"),
                dsn=dsn,
                endpoint_url=f"http://127.0.0.1:{gate.port}",
                prefix="breakable_",
                node=memcached.address,
                **options,
            )
        )
        yield Breakable(service, postgres, dynamodb, memcached, gate)


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Breakable]:
    """A service of two workers whose stores may be stopped; leave them running."""
    with breaking(tmp_path_factory) as made:
        yield made
