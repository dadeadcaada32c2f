"""`duostore get`, `save`, `delete` and `health`: one call each, for people and scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from duostore.v1 import data_access_pb2
from duostore_server.cli.answers import entity_shown, name_shown, written_shown
from duostore_server.cli.channel import UnusableTargetError, connected
from duostore_server.cli.failure import FAILED, INTERRUPTED, explained, failure_of
from duostore_server.cli.json_document import DocumentError, parse_document
from duostore_server.cli.one_call import (
    complain,
    if_in_doubt,
    key_message,
    made_if_none,
    print_json,
    refused,
    run,
)
from duostore_server.domain.errors import Store

if TYPE_CHECKING:
    from duostore.v1.data_access_pb2_grpc import DataAccessStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target
    from duostore_server.domain.keys import EntityKey

# As the service names them in the gRPC health protocol; the whole has the empty name.
_WHOLE: Final = "duostore"
_STORES: Final = (Store.AURORA, Store.DYNAMODB, Store.CACHE)
_SERVING: Final = "SERVING"


def get(
    target: Target, key: EntityKey, *, min_version: int | None, strong: bool, timeout: float
) -> int:
    """Print an entity as JSON on standard output; return the exit code."""
    request = data_access_pb2.GetRequest(key=key_message(key))
    if min_version is not None:
        request.min_version = min_version
    elif strong:
        request.strong = True

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        print_json(entity_shown(stub.Get(request, timeout=timeout, metadata=metadata)))

    return run(target, work)


def save(
    target: Target,
    key: EntityKey,
    document: bytes,
    *,
    if_version: int | None,
    if_absent: bool,
    idempotency_key: str,
    timeout: float,
) -> int:
    """Save a document, given as JSON, and print what became of it; return the exit code."""
    try:
        data = parse_document(document)
    except DocumentError as error:
        return refused("the document", error.violations)
    request = data_access_pb2.SaveRequest(
        key=key_message(key), idempotency_key=made_if_none(idempotency_key)
    )
    # An empty document is a document, too.
    request.data.SetInParent()
    request.data.update(data)
    return send_save(target, request, if_version=if_version, if_absent=if_absent, timeout=timeout)


def send_save(
    target: Target,
    request: data_access_pb2.SaveRequest,
    *,
    if_version: int | None,
    if_absent: bool,
    timeout: float,
) -> int:
    """Send a Save with its precondition, print what became of it, and return the exit code."""
    if if_version is not None:
        request.if_version = if_version
    elif if_absent:
        request.if_absent = True

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        print_json(written_shown(stub.Save(request, timeout=timeout, metadata=metadata)))

    return run(target, work, in_doubt=if_in_doubt(request.idempotency_key))


def delete(
    target: Target,
    key: EntityKey,
    *,
    if_version: int | None,
    idempotency_key: str,
    timeout: float,
) -> int:
    """Delete an entity and print what became of it; return the exit code."""
    request = data_access_pb2.DeleteRequest(
        key=key_message(key), idempotency_key=made_if_none(idempotency_key)
    )
    if if_version is not None:
        request.if_version = if_version

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        print_json(written_shown(stub.Delete(request, timeout=timeout, metadata=metadata)))

    return run(target, work, in_doubt=if_in_doubt(request.idempotency_key))


def health(target: Target, *, service: str | None, timeout: float) -> int:
    """Print the health of a service and its stores, a line each; return 0 if it serves, else 1.

    ``service`` asks for that one alone, by its name in the gRPC health protocol.
    """
    names = [service] if service is not None else ["", *(store.value for store in _STORES)]
    width = max(len(name or _WHOLE) for name in names)
    try:
        with connected(target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answers = []
            for name in names:
                answers.append(_health(stub, name, timeout, target.metadata))
                typer.echo(f"{name or _WHOLE:{width}}  {answers[-1]}")
    except grpc.RpcError as error:
        for line in explained(failure_of(error), target.address, in_doubt=""):
            complain(line)
        return FAILED
    except UnusableTargetError as error:
        complain(str(error))
        return FAILED
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    return 0 if answers[0] == _SERVING else FAILED


def _health(stub: Any, name: str, timeout: float, metadata: Metadata) -> str:  # noqa: ANN401 - has no types
    request = health_pb2.HealthCheckRequest(service=name)
    try:
        answer = stub.Check(request, timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        if failure_of(error).code is grpc.StatusCode.NOT_FOUND:
            return "SERVICE_UNKNOWN"
        raise
    return name_shown(health_pb2.HealthCheckResponse.ServingStatus, answer.status)
