"""Answers Prometheus at /metrics."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def exposed(host: str, port: int, registry: CollectorRegistry) -> Iterator[None]:
    """Serve the metrics of a registry on a thread while the block runs."""
    httpd, thread = start_http_server(port, host, registry)
    try:
        yield
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def summed(folder: str) -> CollectorRegistry:
    """Return a registry that adds up what the processes of a service wrote to a folder."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]  # untyped there
    return registry


def forget(pid: int, folder: str) -> None:
    """Drop what a process that has ended says of the present; its counts stay."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]  # untyped there
