"""`duostore readonly` and `duostore flag`: what is set while the service runs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

import typer
from google.protobuf.struct_pb2 import Value
from rich.text import Text

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import flag_shown, flag_value, read_only_shown
from duostore_server.cli.controls_display import flags_view, read_only_lines
from duostore_server.cli.one_call import complain, print_json
from duostore_server.cli.remote_admin import SAFE_TO_REPEAT, run_admin
from duostore_server.cli.terminal import console_on
from duostore_server.cli.wording import printable, whose

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore.v1.admin_pb2_grpc import AdminStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target

_SOON: Final = "in force within two seconds"
_OWN_PROVIDER: Final = "duostore"


def set_read_only(
    target: Target, kind: str, reason: str | None, *, as_json: bool, timeout: float
) -> int:
    """Refuse writes for a reason, or take them again if it is None; return the exit code."""
    request = admin_pb2.SetReadOnlyRequest(
        kind=kind, read_only=reason is not None, reason=reason or ""
    )

    def work(stub: AdminStub, metadata: Metadata) -> None:
        answer = stub.SetReadOnly(request, timeout=timeout, metadata=metadata)
        if as_json:
            _print_read_only(answer.read_only, as_json=True)
            return
        now = "read-only" if request.read_only else "no longer read-only"
        typer.echo(f"{whose(kind)}: {now}, {_SOON}")
        others = [found for found in answer.read_only if found.kind != kind]
        if others:
            typer.echo("Also read-only:" if request.read_only else "Still read-only:")
            for line in read_only_lines(others, time.time()):
                typer.echo(f"  {line}")

    return run_admin(target, work, in_doubt=SAFE_TO_REPEAT)


def show_read_only(target: Target, *, as_json: bool, timeout: float) -> int:
    """Print what is read-only, and return the exit code."""

    def work(stub: AdminStub, metadata: Metadata) -> None:
        request = admin_pb2.GetStatusRequest()
        answer = stub.GetStatus(request, timeout=timeout, metadata=metadata)
        _print_read_only(answer.read_only, as_json=as_json)

    return run_admin(target, work)


def list_flags(target: Target, *, as_json: bool, timeout: float) -> int:
    """Print the flags, and return the exit code."""

    def work(stub: AdminStub, metadata: Metadata) -> None:
        request = admin_pb2.ListFlagsRequest()
        answer = stub.ListFlags(request, timeout=timeout, metadata=metadata)
        if as_json:
            flags = [flag_shown(flag) for flag in answer.flags]
            print_json({"provider": answer.provider, "flags": flags})
        elif answer.flags:
            console_on(sys.stdout).print(flags_view(answer.flags, time.time()))
        else:
            typer.echo("no kind of the configuration has flags, and none are set")
        if answer.provider != _OWN_PROVIDER and not as_json:
            complain(f"What they are says {printable(answer.provider)}: set them there.")

    return run_admin(target, work)


def set_flag(target: Target, name: str, value: str | int | None, *, timeout: float) -> int:
    """Set a flag, or forget what is set of it if ``value`` is None; return the exit code."""
    request = admin_pb2.SetFlagRequest(name=name)
    if isinstance(value, int):
        request.value.CopyFrom(Value(number_value=value))
    elif value is not None:
        request.value.CopyFrom(Value(string_value=value))

    def work(stub: AdminStub, metadata: Metadata) -> None:
        flag = stub.SetFlag(request, timeout=timeout, metadata=metadata).flag
        if not flag.HasField("value"):
            typer.echo(f"{printable(name)}: no longer set, and nobody asks for it")
            return
        default = flag_value(flag.default_value)
        told = f", its default is {printable(str(default))}" if flag.set else ", its default"
        typer.echo(f"{printable(name)}: {printable(str(flag_value(flag.value)))}{told}, {_SOON}")

    return run_admin(target, work, in_doubt=SAFE_TO_REPEAT)


def _print_read_only(found: Sequence[admin_pb2.ReadOnly], *, as_json: bool) -> None:
    if as_json:
        print_json({"read_only": [read_only_shown(each) for each in found]})
        return
    if not found:
        typer.echo("nothing is read-only")
    for line in read_only_lines(found, time.time()):
        console_on(sys.stdout).print(Text(line), soft_wrap=True)
