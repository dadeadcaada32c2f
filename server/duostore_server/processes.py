"""What each process of a service does between its start and its end."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry

from duostore_server import bootstrap
from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.embedded.postgres import EmbeddedPostgres
from duostore_server.stopping import stop_on_signals, stop_with_supervisor
from duostore_server.storage.aurora.migrate import ensure_current, migrate
from duostore_server.storage.dynamodb.tables import create_tables
from duostore_server.telemetry.exposition import exposed
from duostore_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duostore_server.config import Settings

_log = structlog.get_logger(__name__)


def check_schema(settings: Settings) -> None:
    """Raise ``MigrationError`` if Aurora's schema is not the one of this release.

    If Aurora cannot be reached this is not known, and not waited for: what is cached
    and projected can be served meanwhile.
    """
    try:
        ensure_current(bootstrap.dsn_of(settings))
    except StoreUnavailableError:
        _log.warning("schema not checked, aurora cannot be reached")


def run_worker(settings: Settings) -> None:
    """Answer calls until the supervisor ends it."""
    stop = threading.Event()
    stop_with_supervisor(stop)
    check_schema(settings)
    metrics = Metrics(CollectorRegistry())
    with (
        bootstrap.open_stores(settings, metrics) as stores,
        bootstrap.serving(settings, stores, metrics) as answering,
    ):
        _log.info("serving", address=str(settings.server.address), port=answering.port)
        stop.wait()
        _log.info("draining")


def run_background(settings: Settings) -> None:
    """Do the background work until the supervisor ends it."""
    stop = threading.Event()
    stop_with_supervisor(stop)
    check_schema(settings)
    metrics = Metrics(CollectorRegistry())
    with (
        bootstrap.open_stores(settings, metrics) as stores,
        bootstrap.background(settings, stores, metrics),
    ):
        _log.info("projecting")
        stop.wait()


def run_dev(settings: Settings, data: Path, ready: Callable[[], None]) -> None:
    """Run a whole deployment in this process until a signal ends it.

    PostgreSQL keeps its data below ``data``; DynamoDB and the cache are in memory.
    ``ready`` is called once calls are answered.
    """
    stop = threading.Event()
    stop_on_signals(stop)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(data / "postgres"))
        dynamodb = stack.enter_context(EmbeddedDynamoDB())
        settings = settings.embedded(dsn=postgres.dsn(), endpoint_url=dynamodb.endpoint_url)
        migrate(postgres.dsn())
        client = bootstrap.dynamodb_client(settings)
        create_tables(client, prefix=settings.dynamodb.table_prefix, pause=stop.wait)
        client.close()
        if settings.metrics.address is not None:
            address = settings.metrics.address
            stack.enter_context(exposed(address.host, address.port, registry))
        stores = stack.enter_context(bootstrap.open_stores(settings, metrics))
        stack.enter_context(bootstrap.background(settings, stores, metrics))
        stack.enter_context(bootstrap.serving(settings, stores, metrics))
        ready()
        stop.wait()
