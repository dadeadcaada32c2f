"""`duostore serve`: the supervisor of a service. Imports neither grpc nor a driver."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client import CollectorRegistry

from duostore_server.cli.addresses import check_free
from duostore_server.cli.handover import handed_over
from duostore_server.config import objectives
from duostore_server.stopping import stop_on_signals
from duostore_server.supervisor import Role, Supervisor
from duostore_server.telemetry.exposition import Counts, exposed
from duostore_server.telemetry.figures_file import write_figures
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.slo import EVERY_SECONDS, SloWatch
from duostore_server.workers.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.config import Settings

# What a process needs beyond the drain of its calls: its stores are closed, too.
_CLOSING_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


def supervise(settings: Settings, *, background: bool) -> int:
    """Run the processes of a service until a signal ends them; return the exit code."""
    stop = threading.Event()
    check_free(settings.server.address)
    with ExitStack() as stack:
        # Each run has a folder of its own: nothing is left of the counts of the last.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="duostore-metrics-"))
        handed = stack.enter_context(handed_over(settings))
        counts = Counts(folder)
        supervisor = Supervisor(
            _roles(settings, handed, background=background),
            environment={**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder},
            drain_timeout=settings.server.drain_timeout + _CLOSING_SECONDS,
            ended=counts.forget,
            inherited=(handed,),
        )

        def at_once() -> None:
            supervisor.kill()
            shutil.rmtree(folder, ignore_errors=True)

        stop_on_signals(stop, at_once=at_once)
        registry = counts.registry()
        stack.enter_context(_watching(settings, counts, folder, registry))
        if settings.metrics.address is not None:
            check_free(settings.metrics.address)
            address = settings.metrics.address
            stack.enter_context(exposed(address.host, address.port, registry))
        code = stack.enter_context(supervisor).run(stop)
        _log.info("stopping")
    return code


@contextmanager
def _watching(
    settings: Settings, counts: Counts, folder: str, shown: CollectorRegistry
) -> Iterator[None]:
    """Evaluate the objectives while the block runs: for ``shown``, and the processes by a file.

    Here, where no counts are moved while they are read, and none of those who count has to be
    well.
    """
    metrics = Metrics(CollectorRegistry())
    for gauge in (metrics.slo_good_ratio, metrics.slo_burn_rate, metrics.slo_holds):
        shown.register(gauge)
    watch = SloWatch(objectives(settings), counts.registry(), shown=metrics.slo)

    def evaluate() -> bool:
        more = watch.look()
        write_figures(folder, watch.figures())
        return more

    with Loop("objectives", evaluate, rest=EVERY_SECONDS, jitter=random.random, observer=metrics):
        yield


def _roles(settings: Settings, handed: int, *, background: bool) -> list[Role]:
    command = [sys.executable, "-m", "duostore_server.cli.main"]
    names = [f"worker-{number}" for number in range(1, settings.server.workers + 1)]
    roles = [
        Role(name, [*command, "worker", "--settings", str(handed), "--name", name])
        for name in names
    ]
    if background:
        roles.append(Role("background", [*command, "background", "--settings", str(handed)]))
    return roles
