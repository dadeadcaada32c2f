"""Processes that are kept running, and stopped all together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from duostore_server.supervisor import Role, Supervisor
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
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
from duostore_server.stopping import stop_on_signals
from duostore_server.supervisor import Role, Supervisor
role = Role("child", [sys.executable, "-c", sys.argv[1], sys.argv[2]])
stop = threading.Event()
supervisor = Supervisor([role], environment={}, drain_timeout=60, ended=lambda pid: None)
stop_on_signals(stop, at_once=supervisor.kill)
with supervisor:
    supervisor.run(stop)
    open(sys.argv[2], "a").write("stopping\\n")
"""
# Has not come so far as to leave Ctrl-C to its supervisor.
STARTING = """
import signal, sys
notes = open(sys.argv[1], "a", buffering=1)
def note(signum, frame):
    notes.write(signal.Signals(signum).name + "\\n")
    sys.exit()
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
notes.write("started\\n")
while True:
    signal.pause()
"""
# Ends with 2 at its second start alone.
UNUSABLE_ONCE = """
import os, sys, threading
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
if len(open(sys.argv[1]).readlines()) == 2:
    raise SystemExit(2)
threading.Event().wait()
"""
# A signal arrives while the main thread holds the lock of the event that it waits for.
STOPPED_AT_THE_WORST = """
import os, signal, sys, threading, time
from duostore_server import stopping
stop = threading.Event()
getattr(stopping, sys.argv[1])(stop)
with stop._cond:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)
assert stop.wait(60)
print("stopped")
"""
# What a supervisor and an operator send may both arrive.
STOPPED_TWICE = """
import os, signal, sys, threading
from duostore_server.stopping import stop_with_supervisor
stop = threading.Event()
stop_with_supervisor(stop)
for _ in range(3):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wait(60)
threading.Event().wait(0.2)
print("drained")
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


def supervisor(
    program: str, notes: Path, ended: list[int], drain: float = 10, stable: float = 30
) -> Supervisor:
    return Supervisor(
        [role(program, notes)],
        environment=dict(os.environ),
        drain_timeout=drain,
        ended=ended.append,
        stable=stable,
    )


@contextmanager
def owned(program: str, notes: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that supervises one, in a group of its own as a terminal would."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, program, str(notes)], start_new_session=True
    )
    try:
        yield owner
    finally:
        owner.kill()
        owner.wait(10)


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


def test_a_child_of_a_role_that_ran_well_is_started_again_whatever_it_says(tmp_path: Path) -> None:
    notes, stop = tmp_path / "notes", threading.Event()
    with (
        supervisor(UNUSABLE_ONCE, notes, [], stable=0) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        watching = pool.submit(running.run, stop)
        [first] = eventually(lambda: lines(notes), within=20, what="the child starts")
        os.kill(int(first), signal.SIGKILL)
        third = eventually(lambda: lines(notes)[2:], within=20, what="it is started twice more")[0]
        stop.set()
        assert watching.result(10) == 0
    assert not alive(int(third))


def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    program, notes, stop = tmp_path / "program", tmp_path / "notes", threading.Event()
    running = Supervisor(
        [Role("child", [str(program)]), role(OBEDIENT, notes)],
        environment=dict(os.environ),
        drain_timeout=10,
        ended=lambda _: None,
    )
    with running, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(running.run, stop)
        eventually(lambda: lines(notes), within=20, what="the other child starts")
        (tmp_path / "new").write_text(f"#!/bin/sh\necho started >> {notes}\nexec sleep 60\n")
        (tmp_path / "new").chmod(0o700)
        (tmp_path / "new").rename(program)
        eventually(lambda: "started" in lines(notes), within=20, what="the child starts")
        stop.set()
        assert watching.result(10) == 0


def test_a_second_signal_kills_the_children_too(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with owned(DEAF, notes) as owner:
        [pid] = eventually(lambda: lines(notes), within=20, what="the child starts")
        owner.terminate()
        eventually(lambda: "stopping" in lines(notes), within=20, what="it is stopping")
        owner.terminate()
        assert owner.wait(20) == 128 + signal.SIGTERM
        assert not alive(int(pid))


def test_a_ctrl_c_reaches_the_supervisor_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with owned(STARTING, notes) as owner:
        eventually(lambda: lines(notes), within=20, what="the child starts")
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.wait(20) == 0
    assert sorted(lines(notes)) == ["SIGTERM", "started", "stopping"]


@pytest.mark.parametrize("how", ["stop_on_signals", "stop_with_supervisor"])
def test_no_moment_is_a_bad_one_for_a_signal(how: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_THE_WORST, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        check=True,
        timeout=20,
    )
    assert ended.stdout == b"stopped\n"


def test_a_child_goes_on_draining_at_a_second_signal() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED_TWICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.read() == b"drained\n"
    assert child.returncode == 0


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
