"""`duostore status`: how the service is, once or for as long as it is watched."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
from rich.console import Group
from rich.live import Live
from rich.text import Text

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import status_shown
from duostore_server.cli.failure import FAILED, UNUSABLE, failure_of
from duostore_server.cli.one_call import complain, print_json, print_json_line
from duostore_server.cli.output import UnusableOutputError, opened
from duostore_server.cli.picture import PICTURE_WIDTH, picture_of
from duostore_server.cli.remote_admin import run_admin
from duostore_server.cli.status_display import status_view, troubles
from duostore_server.cli.terminal import console_on

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from duostore.v1.admin_pb2_grpc import AdminStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target

WATCH_SECONDS: Final = 2.0


def status(target: Target, *, as_json: bool, picture: Path | None, timeout: float) -> int:
    """Print how the service is, into a picture too if it is named; return the exit code."""
    answers: list[admin_pb2.GetStatusResponse] = []

    def work(stub: AdminStub, metadata: Metadata) -> None:
        request = admin_pb2.GetStatusRequest()
        answers.append(stub.GetStatus(request, timeout=timeout, metadata=metadata))

    code = run_admin(target, work)
    if not answers:
        return code
    [answer] = answers
    if as_json:
        print_json(_shown(answer))
    else:
        console, now = console_on(sys.stdout), time.time()
        console.print(status_view(answer, target.address, now, width=console.width))
        view = status_view(answer, target.address, now, width=PICTURE_WIDTH)
        if picture is not None and not _drawn(view, picture):
            return UNUSABLE
    return FAILED if troubles(answer) else 0


def watch(
    target: Target,
    *,
    as_json: bool,
    timeout: float,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Print how the service is every two seconds until Ctrl-C, and return the exit code.

    Once it has answered, it is waited for when it does not for a while.
    """
    looked = False

    def work(stub: AdminStub, metadata: Metadata) -> None:
        nonlocal looked
        with _screen(as_json=as_json) as screen:
            while True:
                try:
                    request = admin_pb2.GetStatusRequest()
                    answer = stub.GetStatus(request, timeout=timeout, metadata=metadata)
                except grpc.RpcError as error:
                    failure = failure_of(error)
                    if not looked or not failure.may_pass:
                        raise
                    screen.fail(f"{target.address}: {failure}")
                else:
                    looked = True
                    screen.show(answer, target.address)
                wait(WATCH_SECONDS)

    def until_interrupted(stub: AdminStub, metadata: Metadata) -> None:
        try:
            work(stub, metadata)
        except KeyboardInterrupt:
            # How it is ended.
            if not looked:
                raise

    return run_admin(target, until_interrupted)


class _Screen(Protocol):
    """Shows one status after the other."""

    def show(self, answer: admin_pb2.GetStatusResponse, address: str) -> None: ...

    def fail(self, why: str) -> None: ...


class _Lines:
    """Prints each status below the one before."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def show(self, answer: admin_pb2.GetStatusResponse, address: str) -> None:
        if self._as_json:
            print_json_line(_shown(answer))
        else:
            console = console_on(sys.stdout)
            console.print(status_view(answer, address, time.time(), width=console.width))

    def fail(self, why: str) -> None:
        complain(why)


class _LiveScreen:
    """Shows each status in the place of the one before."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._view: RenderableType = ""

    def show(self, answer: admin_pb2.GetStatusResponse, address: str) -> None:
        width = self._live.console.width
        self._view = status_view(answer, address, time.time(), width=width)
        self._live.update(self._view, refresh=True)

    def fail(self, why: str) -> None:
        told = Text(f" No answer, this is how it was: {why}", style="bold red")
        self._live.update(Group(told, self._view), refresh=True)


@contextmanager
def _screen(*, as_json: bool) -> Iterator[_Screen]:
    if as_json or not sys.stdout.isatty():
        yield _Lines(as_json=as_json)
        return
    with Live(console=console_on(sys.stdout), auto_refresh=False) as live:
        yield _LiveScreen(live)


def _shown(answer: admin_pb2.GetStatusResponse) -> dict[str, Any]:
    return {"ok": not troubles(answer), **status_shown(answer)}


def _drawn(view: RenderableType, path: Path) -> bool:
    """Write a picture; tell why, and return False, if that cannot be."""
    try:
        with opened(path) as output:
            output.write(picture_of(view, "duostore status").encode())
    except (UnusableOutputError, OSError) as error:
        complain(str(error))
        return False
    return True
