"""Processes that start a server and are killed before they can stop it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path


def orphan(create: str, *, temp: Path) -> psutil.Process:
    """Return the process of a server just after its owner was killed by SIGKILL.

    ``create`` is Python source that leaves an unstarted server in ``server``; temporary
    files go below ``temp``, since nobody is left to remove them.
    """
    program = f"""
import sys
{create}
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temp)},
    ) as owner:
        assert owner.stdout is not None
        server = psutil.Process(int(owner.stdout.readline()))
        assert server.is_running()
        owner.kill()
    return server


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended; init need not have taken note of it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
