"""What the processes of a service counted is added up, also of those that have ended."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest

from duostore_server.telemetry.exposition import Counts

if TYPE_CHECKING:
    from pathlib import Path

# Counts two reads, and says that the outbox holds as many rows as it is told.
PROCESS = """
import os, sys
from prometheus_client import CollectorRegistry
from duostore_server.domain.entities import Backlog
from duostore_server.domain.errors import Store
from duostore_server.telemetry.metrics import Metrics
metrics = Metrics(CollectorRegistry())
metrics.served("proposal", Store.CACHE)
metrics.served("proposal", Store.CACHE)
metrics.rpc_seconds.labels("Get", "OK").observe(0.003)
metrics.rpcs_in_flight.inc()
metrics.backlog(Backlog(int(sys.argv[1]), 0.5))
print(os.getpid())
"""


def process(folder: Path, depth: int) -> int:
    """Run a process that counts; return its id."""
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS, str(depth)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return int(ended.stdout)


def shown(counts: Counts) -> dict[str, float]:
    """Return what Prometheus is answered, by name and labels."""
    lines = generate_latest(counts.registry()).decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


READS = 'duostore_reads_total{kind="proposal",served_from="cache"}'
RELEASE = version("duostore-server")
CALLS = 'duostore_rpc_duration_seconds_bucket{code="OK",le="0.005",method="Get"}'


def test_counts_stay_when_their_process_has_ended_and_their_files_do_not(tmp_path: Path) -> None:
    counts = Counts(str(tmp_path))
    present = ("duostore_rpcs_in_flight", f'duostore_build_info{{release="{RELEASE}"}}')
    names = set()
    for n in range(1, 4):
        pid = process(tmp_path, depth=n)
        before = shown(counts)
        assert (before[READS], before[CALLS], before["duostore_outbox_depth"]) == (2 * n, n, n)
        assert [before.pop(name) for name in present] == [1, 1]
        counts.forget(pid)
        after = shown(counts)
        assert [after.pop(name, 0) for name in present] == [0, 0]
        assert after == before
        names.add(tuple(sorted(file.name for file in tmp_path.iterdir())))
    assert names == {("counter_ended.db", "gauge_mostrecent_ended.db", "histogram_ended.db")}


@pytest.mark.parametrize("content", [b"", b"\xff\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00"])
def test_what_a_process_left_half_written_spoils_no_answer(tmp_path: Path, content: bytes) -> None:
    counts = Counts(str(tmp_path))
    process(tmp_path, depth=1)
    before = shown(counts)
    (tmp_path / "counter_1.db").write_bytes(content)
    counts.forget(1)
    assert shown(counts) == before
