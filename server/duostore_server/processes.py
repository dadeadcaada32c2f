"""What each process of a service does between its start and its end."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import CollectorRegistry

from duostore_server import background_work, bootstrap
from duostore_server.config import objectives
from duostore_server.config import read_models as read_models_of
from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.embedded.postgres import EmbeddedPostgres
from duostore_server.in_force import CONTROLS_EVERY_SECONDS, in_force
from duostore_server.stopping import stop_on_signals, stop_with_supervisor
from duostore_server.storage.aurora import triggers
from duostore_server.storage.aurora.migrate import (
    MigrationError,
    ensure_current,
    forget_drafts,
    migrate,
)
from duostore_server.storage.dynamodb.tables import create_tables
from duostore_server.telemetry.causes import cause_of
from duostore_server.telemetry.exposition import exposed
from duostore_server.telemetry.figures_file import read_figures
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.slo import EVERY_SECONDS, SloWatch
from duostore_server.telemetry.tracing import traced

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

    from duostore_server.bootstrap import Stores
    from duostore_server.config import Settings
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import Probe

# How soon `duostore dev` notices that one of its stores has died.
_LOOK_SECONDS: Final = 0.5

_log = structlog.get_logger(__name__)


def check_schema(settings: Settings) -> bool:
    """Raise ``MigrationError`` if Aurora's schema is not the one of this release.

    Returns False if Aurora cannot be reached: then this is not known, and not waited
    for, since what is cached and projected can be served meanwhile.
    """
    try:
        _ensure_current(settings)
    except StoreUnavailableError as error:
        _log.warning("schema not checked, aurora cannot be reached", cause=cause_of(error))
        return False
    return True


def _ensure_current(settings: Settings) -> None:
    """Raise ``MigrationError`` if tables or triggers are not those that the settings need."""
    dsn = bootstrap.dsn_of(settings)
    ensure_current(dsn, own=settings.aurora.own_migrations)
    if problems := triggers.missing(dsn, read_models_of(settings)):
        raise MigrationError("; ".join(problems))


class SchemaProbe:
    """A ``Probe`` that finds Aurora down until its schema is the one of this release.

    For a process that began while Aurora was down. To end it is of no use: what does
    not need Aurora goes on, and the rest as soon as somebody has migrated.
    """

    store = Store.AURORA

    def __init__(self, aurora: Probe, ensure_current: Callable[[], None]) -> None:
        """``ensure_current`` raises ``MigrationError``, or what ``Probe.ping`` may raise."""
        self._aurora = aurora
        self._ensure_current = ensure_current
        self._is_current = False

    def ping(self, deadline: Deadline) -> None:
        self._aurora.ping(deadline)
        if self._is_current:
            return
        try:
            self._ensure_current()
        except MigrationError as error:
            raise StoreUnavailableError(Store.AURORA) from error
        self._is_current = True


def with_schema_probed(settings: Settings, stores: Stores) -> Stores:
    """Return the same stores, Aurora's probe checking the schema as well."""
    return replace(
        stores,
        probes=tuple(
            SchemaProbe(probe, partial(_ensure_current, settings))
            if probe.store is Store.AURORA
            else probe
            for probe in stores.probes
        ),
    )


def run_worker(settings: Settings) -> None:
    """Answer calls until the supervisor ends it."""
    stop = threading.Event()
    stop_with_supervisor(stop)
    checked = check_schema(settings)
    metrics = Metrics(CollectorRegistry())
    with ExitStack() as stack:
        stack.enter_context(traced("worker"))
        stores = stack.enter_context(bootstrap.open_stores(settings, metrics))
        if not checked:
            stores = with_schema_probed(settings, stores)
        now = in_force(settings, stores.controls, metrics)
        figures = partial(read_figures, os.environ["PROMETHEUS_MULTIPROC_DIR"])
        answering = stack.enter_context(bootstrap.serving(settings, stores, metrics, now, figures))
        _log.info("serving", address=str(settings.server.address), port=answering.port)
        stop.wait()
        _log.info("draining")


def run_background(settings: Settings) -> None:
    """Do the background work until the supervisor ends it."""
    stop = threading.Event()
    stop_with_supervisor(stop)
    check_schema(settings)
    metrics = Metrics(CollectorRegistry())
    with ExitStack() as stack:
        stack.enter_context(traced("background"))
        stores = stack.enter_context(bootstrap.open_stores(settings, metrics))
        now = in_force(settings, stores.controls, metrics)
        for name, work in now.works.items():
            stack.enter_context(background_work.loop(name, work, CONTROLS_EVERY_SECONDS, metrics))
        stack.enter_context(background_work.background(settings, stores, metrics, now))
        _log.info("projecting")
        stop.wait()


def run_dev(settings: Settings, data: Path, ready: Callable[[str], None]) -> signal.Signals:
    """Run a whole deployment in this process until a signal ends it, and return that.

    PostgreSQL keeps its data below ``data``; DynamoDB and the cache are in memory.
    ``ready`` is called once calls are answered, with the URL at which DynamoDB is. Raises
    ``EmbeddedStoreDiedError`` when one of the two servers has died.
    """
    stop = threading.Event()
    received: list[signal.Signals] = []
    stop_on_signals(stop, noted=received.append)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    with ExitStack() as stack:
        postgres = stack.enter_context(EmbeddedPostgres(data / "postgres"))
        dynamodb = stack.enter_context(EmbeddedDynamoDB())
        settings = settings.embedded(dsn=postgres.dsn(), endpoint_url=dynamodb.endpoint_url)
        migrate(postgres.dsn(), own=settings.aurora.own_migrations)
        triggers.install(postgres.dsn(), read_models_of(settings))
        # Of snapshots that the emulated DynamoDB, empty at each start, counts anew.
        forget_drafts(postgres.dsn())
        stack.enter_context(traced("dev"))
        client = bootstrap.dynamodb_client(settings)
        create_tables(client, prefix=settings.dynamodb.table_prefix, pause=stop.wait)
        client.close()
        if settings.metrics.address is not None:
            address = settings.metrics.address
            stack.enter_context(exposed(address.host, address.port, registry))
        stores = stack.enter_context(bootstrap.open_stores(settings, metrics))
        now = in_force(settings, stores.controls, metrics)
        watch = SloWatch(objectives(settings), registry, shown=metrics.slo)
        stack.enter_context(background_work.loop("objectives", watch.look, EVERY_SECONDS, metrics))
        stack.enter_context(background_work.background(settings, stores, metrics, now))
        stack.enter_context(bootstrap.serving(settings, stores, metrics, now, watch.figures))
        ready(dynamodb.endpoint_url)
        while not stop.wait(_LOOK_SECONDS):
            postgres.check()
            dynamodb.check()
    return received[0]
