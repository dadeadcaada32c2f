"""A command that calls the service: what it prints, what it says of failures, its exit code."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

import grpc
import typer

from duostore.v1 import data_access_pb2_grpc, entity_pb2
from duostore_server.cli.channel import UnusableTargetError, connected
from duostore_server.cli.failure import UNUSABLE, explained, failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from duostore_server.cli.target import Target
    from duostore_server.domain.errors import FieldViolation
    from duostore_server.domain.keys import EntityKey

    Metadata: TypeAlias = tuple[tuple[str, str], ...]
    Work: TypeAlias = Callable[[data_access_pb2_grpc.DataAccessStub, Metadata], None]

# What to do about a write that may have been applied.
_READ_FIRST: Final = "read it with `duostore get --strong`."
_KEYED: Final = "repeat the command as it is; its idempotency key lets it be applied once."


def if_in_doubt(idempotency_key: str, *, else_: str = _READ_FIRST) -> str:
    """Return what to do about a write that may have been applied, with this key or none."""
    return _KEYED if idempotency_key else else_


def complain(line: str) -> None:
    """Tell the person who runs the command."""
    typer.echo(line, err=True)


def run(
    target: Target, work: Work, *, in_doubt: str = "", tell: Callable[[str], None] = complain
) -> int:
    """Do work that calls the service, and return the exit code.

    ``in_doubt`` is what to do if a call that failed may have been applied; empty if it
    changes nothing. What goes wrong is told a line at a time.
    """
    try:
        with connected(target) as channel:
            stub = data_access_pb2_grpc.DataAccessStub(channel)
            work(stub, (("x-request-id", uuid.uuid4().hex),))
    except grpc.RpcError as error:
        failure = failure_of(error)
        for line in explained(failure, target.address, in_doubt=in_doubt):
            tell(line)
        return failure.exit_code
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


def key_message(key: EntityKey) -> entity_pb2.EntityKey:
    """Return a key as it is sent."""
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)
