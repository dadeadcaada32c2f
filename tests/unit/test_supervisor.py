"""Processes that are kept running, and stopped all together."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from duostore_server.supervisor import Role, Supervisor
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

# Notes its process id and then waits for SIGTERM, or for the end of its standard input.
OBEDIENT = """
import os, sys, threading
from duostore_server.stopping import stop_with_supervisor
stop = threading.Event()
stop_with_supervisor(stop)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
stop.wait()
open(sys.argv[1], "a").write("drained\\n")
"""
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
while True:
    signal.pause()
"""
UNUSABLE = "raise SystemExit(2)"
OWNER = """
import sys, threading
from duostore_server.supervisor import Role, Supervisor
role = Role("child", [sys.executable, "-c", sys.argv[1], sys.argv[2]])
with Supervisor([role], environment={}, drain_timeout=5, ended=lambda pid: None) as supervisor:
    supervisor.run(threading.Event())
"""


def role(program: str, notes: Path) -> Role:
    return Role("child", [sys.executable, "-c", program, str(notes)])


def lines(notes: Path) -> list[str]:
    return notes.read_text().splitlines() if notes.exists() else []


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def supervisor(program: str, notes: Path, ended: list[int], drain: float = 10) -> Supervisor:
    return Supervisor(
        [role(program, notes)],
        environment=dict(os.environ),
        drain_timeout=drain,
        ended=ended.append,
    )


def test_a_child_that_dies_is_started_again_and_told_of(tmp_path: Path) -> None:
    notes, ended, stop = tmp_path / "notes", list[int](), threading.Event()
    with supervisor(OBEDIENT, notes, ended) as running, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(running.run, stop)
        [first] = eventually(lambda: lines(notes), within=20, what="the child starts")
        os.kill(int(first), signal.SIGKILL)
        second = eventually(lambda: lines(notes)[1:], within=20, what="it is started again")[0]
        assert second != first
        assert ended == [int(first)]
        stop.set()
        assert watching.result(10) == 0
    assert lines(notes) == [first, second, "drained"]
    assert ended == [int(first), int(second)]


def test_a_child_that_does_not_drain_is_killed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with supervisor(DEAF, notes, [], drain=0.2):
        [pid] = eventually(lambda: lines(notes), within=20, what="the child starts")
    assert not alive(int(pid))


def test_a_child_that_cannot_be_used_ends_the_service(tmp_path: Path) -> None:
    with supervisor(UNUSABLE, tmp_path / "notes", []) as running:
        assert running.run(threading.Event()) == 2


def test_children_drain_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    owner = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", OWNER, OBEDIENT, str(notes)],
        dict(os.environ),
    )
    try:
        [pid] = eventually(lambda: lines(notes), within=20, what="the child starts")
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
    eventually(lambda: "drained" in lines(notes), within=10, what="the child drains")
    eventually(lambda: not alive(int(pid)), within=10, what="the child ends")
