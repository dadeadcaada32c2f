"""`duostore serve`: the supervisor of a service. Imports neither grpc nor a driver."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import structlog

from duostore_server.cli.addresses import check_free
from duostore_server.cli.handover import handed_over
from duostore_server.stopping import stop_on_signals
from duostore_server.supervisor import Role, Supervisor
from duostore_server.telemetry.exposition import Counts, exposed

if TYPE_CHECKING:
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
        if settings.metrics.address is not None:
            check_free(settings.metrics.address)
            address = settings.metrics.address
            stack.enter_context(exposed(address.host, address.port, counts.registry()))
        code = stack.enter_context(supervisor).run(stop)
        _log.info("stopping")
    return code


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
