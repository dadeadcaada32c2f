"""Answers Prometheus at /metrics."""

from __future__ import annotations

import struct
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

_log = structlog.get_logger(__name__)


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


class Counts:
    """What the processes of a service count, each in files of its own in one folder.

    What a process counted stays when it has ended, in files that are one for all of those:
    however often processes die, the folder does not grow.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        # What moves from one file to another is to be counted once.
        self._moving = threading.Lock()

    def registry(self) -> CollectorRegistry:
        """Return a registry that adds up what all processes counted."""
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def describe(self) -> Iterator[Metric]:
        """Name no metric beforehand: which there are is known from the files."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return the sums, as a registry asks for them."""
        sums = MultiProcessCollector(None, path=str(self._folder))  # type: ignore[no-untyped-call]  # untyped there
        with self._moving:
            return iter(list(sums.collect()))  # type: ignore[no-untyped-call]  # untyped there

    def forget(self, pid: int) -> None:
        """Drop what a process that has ended says of the present; its counts stay."""
        with self._moving:
            mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]  # untyped there
            for file in self._folder.glob(f"*_{pid}.db"):
                try:
                    _add(file, file.with_name(file.name.replace(f"_{pid}.db", "_ended.db")))
                except (RuntimeError, struct.error):
                    # It died while it wrote; to be read on, it would break all answers.
                    _log.warning("counts of a process are lost", file=file.name, exc_info=True)
                file.unlink()


def _add(source: Path, target: Path) -> None:
    """Add the values of a file to those of another; of gauges the newest stays."""
    values = list(MmapedDict.read_all_values_from_file(source))  # type: ignore[no-untyped-call]  # untyped there
    sums = MmapedDict(target)  # type: ignore[no-untyped-call]  # untyped there
    try:
        for key, value, timestamp, _ in values:
            before, since = sums.read_value(key)  # type: ignore[no-untyped-call]  # untyped there
            if not source.name.startswith("gauge_"):
                sums.write_value(key, before + value, 0.0)  # type: ignore[no-untyped-call]  # untyped there
            elif timestamp > since:
                sums.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]  # untyped there
    finally:
        sums.close()  # type: ignore[no-untyped-call]  # untyped there
