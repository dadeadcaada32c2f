"""The stores as fixtures: one server of each for a whole run, and room of its own for a test."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import pytest
import structlog

from duostore_server.embedded.process import EmbeddedStoreError
from tests.support.installed import MissingProgramError
from tests.support.servers import (
    DynamoDBLocal,
    MemcachedServer,
    PostgresServer,
    Server,
    running,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ServerT = TypeVar("ServerT", bound=Server)


@contextmanager
def _required(server: ServerT) -> Iterator[ServerT]:
    """Run a server; end the whole run, and let it fail, if it is not installed."""
    try:
        with running(server):
            yield server
    except (MissingProgramError, EmbeddedStoreError) as error:
        pytest.exit(
            f"a store that the tests need is missing.\n{error}", pytest.ExitCode.USAGE_ERROR
        )


@pytest.fixture(scope="session", autouse=True)
def _logs_are_pytests() -> None:
    """Hand the events of this process to logging, where pytest shows those of a failed test."""
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The PostgreSQL of this run. Shared: do not stop it, take a private one for that."""
    with _required(PostgresServer()) as server:
        yield server


@pytest.fixture(scope="session")
def dynamodb() -> Iterator[DynamoDBLocal]:
    """The DynamoDB Local of this run. Shared: do not stop it, take a private one for that."""
    with _required(DynamoDBLocal()) as server:
        yield server


@pytest.fixture(scope="session")
def memcached() -> Iterator[MemcachedServer]:
    """The memcached of this run. Shared: do not stop it, take a private one for that."""
    with _required(MemcachedServer()) as server:
        yield server


@pytest.fixture
def postgres_dsn(postgres: PostgresServer) -> str:
    """The connection string of an empty database of the test's own."""
    return postgres.create_database()


@pytest.fixture
def table_prefix() -> str:
    """A prefix for the names of the test's own DynamoDB tables."""
    return f"t{secrets.token_hex(4)}_"
