"""The service in the test's own process, over real stores."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from duostore_server import background_work, bootstrap
from duostore_server.config import load, read_models
from duostore_server.domain.status import Figures
from duostore_server.in_force import in_force
from duostore_server.storage.aurora import triggers
from duostore_server.storage.aurora.migrate import migrate
from duostore_server.storage.dynamodb.tables import create_tables
from duostore_server.telemetry.metrics import Metrics
from tests.support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duostore_server.bootstrap import Stores


@dataclass(frozen=True)
class InProcess:
    """A service that answers at ``target``; ``stores`` are its own, its Aurora is at ``dsn``."""

    target: str
    dsn: str
    stores: Stores
    registry: CollectorRegistry

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that have these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


@contextmanager
def in_process(
    config: Path, *, dsn: str, endpoint_url: str, prefix: str, node: str
) -> Iterator[InProcess]:
    """Run the service and its background work with a configuration file, on these stores."""
    port = free_port()
    settings = load(
        config,
        {
            "DUOSTORE__SERVER__ADDRESS": f"127.0.0.1:{port}",
            "DUOSTORE__AURORA__DSN": dsn,
            "DUOSTORE__DYNAMODB__REGION": "local",
            "DUOSTORE__DYNAMODB__ENDPOINT_URL": endpoint_url,
            "DUOSTORE__DYNAMODB__TABLE_PREFIX": prefix,
            "DUOSTORE__CACHE__NODES": node,
        },
        serving=True,
    )
    migrate(dsn, own=settings.aurora.own_migrations)
    triggers.install(dsn, read_models(settings))
    client = bootstrap.dynamodb_client(settings)
    create_tables(client, prefix=prefix, pause=threading.Event().wait)
    client.close()
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    with ExitStack() as stack:
        stores = stack.enter_context(bootstrap.open_stores(settings, metrics))
        now = in_force(settings, stores.controls, metrics)
        stack.enter_context(background_work.background(settings, stores, metrics, now))
        stack.enter_context(bootstrap.serving(settings, stores, metrics, now, Figures))
        yield InProcess(f"127.0.0.1:{port}", dsn, stores, registry)
