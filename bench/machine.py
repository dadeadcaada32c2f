"""The machine that is measured on, and who may use which of its cores."""

from __future__ import annotations

import os
import platform
import re
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_PACKAGES: Final = ("grpcio", "protobuf", "pymemcache", "boto3", "psycopg")
# From this part of the cores on, what others do on the machine is seen in the figures.
_BUSY: Final = 0.5


def described() -> dict[str, str]:
    """Return what the machine and the software on it are, by name."""
    return {
        "processor": f"{_processor()}, {len(cores())} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    }


def busy() -> str | None:
    """Return a warning if others were using the machine in the last minute."""
    load = os.getloadavg()[0]
    if load <= _BUSY * len(cores()):
        return None
    return (
        f"the load average is {load:.1f} on {len(cores())} cores: others use this machine, and"
        " the figures are low and far apart; trust the ratios more, and repeat the run"
    )


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU that a process has used."""
    times = process.cpu_times()
    return times.user + times.system


def cores() -> list[int]:
    """Return the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def apart(servers: Collection[psutil.Process]) -> Iterator[bool]:
    """Give the first core to these processes, and the others to this one and what it starts.

    Yields whether that was done: it takes Linux and two cores. Stores run where they like.
    When the block ends, so do all.
    """
    every = cores()
    this = psutil.Process()
    if not hasattr(os, "sched_setaffinity") or len(every) == 1:
        yield False
        return
    try:
        for server in servers:
            _keep(server, every[:1])
        _keep(this, every[1:])
        yield True
    finally:
        for process in (this, *servers):
            _keep(process, every)


def _keep(process: psutil.Process, to: list[int]) -> None:
    """Bind every thread of a process; those that it will start inherit it."""
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, to)


def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"(?m)^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.machine()
