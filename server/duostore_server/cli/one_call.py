"""A command that calls the service: what it prints, what it says of failures, its exit code."""

from __future__ import annotations

import json
import shlex
import uuid
from typing import TYPE_CHECKING, Any

import grpc
import typer

from duostore.v1 import data_access_pb2_grpc, entity_pb2
from duostore_server.cli.channel import UnusableTargetError, connected
from duostore_server.cli.failure import (
    INTERRUPTED,
    NO_ADVICE,
    UNUSABLE,
    explained,
    failure_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias

    from duostore_server.cli.target import Target
    from duostore_server.domain.errors import FieldViolation, Reason
    from duostore_server.domain.keys import EntityKey

    Metadata: TypeAlias = tuple[tuple[str, str], ...]
    Work: TypeAlias = Callable[[data_access_pb2_grpc.DataAccessStub, Metadata], None]
    ChannelWork: TypeAlias = Callable[[grpc.Channel, Metadata], None]


def made_if_none(idempotency_key: str) -> str:
    """Return the key of a write, a new one if it was given none: it can be repeated then."""
    return idempotency_key or uuid.uuid4().hex


def if_in_doubt(idempotency_key: str) -> str:
    """Return what to do about a write with this key that may have been applied."""
    key = shlex.quote(idempotency_key)
    return f"repeat the command with --idempotency-key {key}, and it is applied once."


def complain(line: str) -> None:
    """Tell the person who runs the command."""
    typer.echo(line, err=True)


def run(
    target: Target,
    work: Work,
    *,
    in_doubt: str = "",
    advice: Mapping[Reason, str] = NO_ADVICE,
    tell: Callable[[str], None] = complain,
) -> int:
    """Do work that calls DataAccess, and return the exit code: as ``run_on``."""

    def with_stub(channel: grpc.Channel, metadata: Metadata) -> None:
        work(data_access_pb2_grpc.DataAccessStub(channel), metadata)

    return run_on(target, with_stub, in_doubt=in_doubt, advice=advice, tell=tell)


def run_on(
    target: Target,
    work: ChannelWork,
    *,
    in_doubt: str = "",
    advice: Mapping[Reason, str] = NO_ADVICE,
    tell: Callable[[str], None] = complain,
) -> int:
    """Do work that calls the service on a channel, and return the exit code.

    ``in_doubt`` is what to do if a call that failed may have been applied; empty if it
    changes nothing. ``advice`` is as for ``explained``. What goes wrong is told a line at
    a time.
    """
    try:
        with connected(target) as channel:
            work(channel, (("x-request-id", uuid.uuid4().hex), *target.metadata))
    except grpc.RpcError as error:
        failure = failure_of(error)
        for line in explained(failure, target.address, in_doubt=in_doubt, advice=advice):
            tell(line)
        return failure.exit_code
    except KeyboardInterrupt:
        doubt = f": it may or may not have been applied: {in_doubt}" if in_doubt else ""
        tell(f"interrupted{doubt}")
        return INTERRUPTED
    except UnusableTargetError as error:
        tell(str(error))
        return UNUSABLE
    return 0


def refused(
    what: str, violations: Iterable[FieldViolation], *, tell: Callable[[str], None] = complain
) -> int:
    """Say why something was not sent, and return the exit code."""
    tell(f"{what} cannot be saved as it is; nothing was sent")
    for violation in violations:
        tell(f"  {violation.field}: {violation.description}")
    return UNUSABLE


def print_json(answer: dict[str, Any]) -> None:
    """Print an answer for people and scripts."""
    # JSON is UTF-8, whatever the terminal's language.
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False, allow_nan=False).encode())


def print_json_line(answer: dict[str, Any]) -> None:
    """Print one of many answers, in a line of its own."""
    typer.echo(json.dumps(answer, ensure_ascii=False, allow_nan=False).encode())


def key_message(key: EntityKey) -> entity_pb2.EntityKey:
    """Return a key as it is sent."""
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)
