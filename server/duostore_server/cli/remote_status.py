"""`duostore status`: how the service is, once or for as long as it is watched."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
from rich.console import Group
from rich.live import Live
from rich.text import Text

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import status_shown
from duostore_server.cli.failure import FAILED, UNUSABLE, failure_of
from duostore_server.cli.one_call import complain, print_json, print_json_line
from duostore_server.cli.output import UnusableOutputError, opened
from duostore_server.cli.picture import picture_of
from duostore_server.cli.remote_admin import run_admin
from duostore_server.cli.status_display import status_view, troubles
from duostore_server.cli.terminal import console_on

if TYPE_CHECKING:
    from collections.abc import Callable
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
        view = status_view(answer, target.address, time.time())
        console_on(sys.stdout).print(view)
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
    """Print how the service is every two seconds, until Ctrl-C; return the exit code.

    A service that does not answer for a while is waited for.
    """
    shows = _Lines(as_json) if as_json or not sys.stdout.isatty() else _Screen()
    looked = False

    def work(stub: AdminStub, metadata: Metadata) -> None:
        nonlocal looked
        with shows:
            while True:
                try:
                    request = admin_pb2.GetStatusRequest()
                    answer = stub.GetStatus(request, timeout=timeout, metadata=metadata)
                except grpc.RpcError as error:
                    failure = failure_of(error)
                    # What is wrong from the beginning is seldom a restart.
                    if not looked or not failure.may_pass:
                        raise
                    shows.fail(f"{target.address}: no answer: {failure}")
                else:
                    looked = True
                    shows.show(answer, target.address)
                wait(WATCH_SECONDS)

    def ended() -> int:
        code = run_admin(target, work)
        return code

    return ended()
