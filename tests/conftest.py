"""The stores as fixtures: one server of each for a whole run, and room of its own for a test."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

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

    from xdist.remote import Producer

ServerT = TypeVar("ServerT", bound=Server)


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist is shipped without types
    """Gives each worker of pytest-xdist whole files, and to one of them all of ``tests/e2e``.

    Every worker has stores of its own. Two of the services of ``tests/e2e`` at once are more
    than a small machine runs within the times that those tests allow.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "tests/e2e" if nodeid.startswith("tests/e2e/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByFile:
    return _ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        # What takes longest goes first, or a worker would be left alone with it.
        items.sort(key=lambda item: not item.nodeid.startswith("tests/e2e/"))


@contextmanager
def _required(server: ServerT, request: pytest.FixtureRequest) -> Iterator[ServerT]:
    """Run a server; end the whole run, and let it fail, if it is not installed."""
    try:
        with running(server):
            yield server
    except (MissingProgramError, EmbeddedStoreError) as error:
        # Unlike pytest.exit, this is heard from a worker of pytest-xdist too.
        why = f"a store that the tests need is missing.\n{error}"
        request.session.shouldfail = why
        raise pytest.fail.Exception(why, pytrace=False) from None


@pytest.fixture(scope="session", autouse=True)
def _logs_are_pytests() -> None:
    """Hand the events of this process to logging, where pytest shows those of a failed test."""
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The PostgreSQL of this run. Shared: do not stop it, take a private one for that."""
    with _required(PostgresServer(), request) as server:
        yield server


@pytest.fixture(scope="session")
def dynamodb(request: pytest.FixtureRequest) -> Iterator[DynamoDBLocal]:
    """The DynamoDB Local of this run. Shared: do not stop it, take a private one for that."""
    with _required(DynamoDBLocal(), request) as server:
        yield server


@pytest.fixture(scope="session")
def memcached(request: pytest.FixtureRequest) -> Iterator[MemcachedServer]:
    """The memcached of this run. Shared: do not stop it, take a private one for that."""
    with _required(MemcachedServer(), request) as server:
        yield server


@pytest.fixture
def postgres_dsn(postgres: PostgresServer) -> str:
    """The connection string of an empty database of the test's own."""
    return postgres.create_database()


@pytest.fixture
def table_prefix() -> str:
    """A prefix for the names of the test's own DynamoDB tables."""
    return f"t{secrets.token_hex(4)}_"
