"""`duostore get`, `save`, `delete` and `health`: one call each, for people and scripts."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from duostore_server.cli.channel import UnusableTargetError, connected
from duostore_server.cli.failure import FAILED, UNUSABLE, explained, failure_of
from duostore_server.cli.json_document import DocumentError, parse_document
from duostore_server.codec import plain
from duostore_server.domain.documents import normalized
from duostore_server.domain.errors import Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from duostore_server.cli.target import Target
    from duostore_server.domain.keys import EntityKey

    Metadata: TypeAlias = tuple[tuple[str, str], ...]

# As the service names them in the gRPC health protocol; the whole has the empty name.
_WHOLE: Final = "duostore"
_STORES: Final = (Store.AURORA, Store.DYNAMODB, Store.CACHE)
_SERVING: Final = "SERVING"


def get(
    target: Target, key: EntityKey, *, min_version: int | None, strong: bool, timeout: float
) -> int:
    """Print an entity as JSON on standard output; return the exit code."""
    request = data_access_pb2.GetRequest(key=_message(key))
    if min_version is not None:
        request.min_version = min_version
    elif strong:
        request.strong = True

    def call(channel: grpc.Channel, metadata: Metadata) -> dict[str, Any]:
        stub = data_access_pb2_grpc.DataAccessStub(channel)
        return _got(stub.Get(request, timeout=timeout, metadata=metadata))

    return _run(target, call, writing=False)


def save(
    target: Target,
    key: EntityKey,
    document: bytes,
    *,
    if_version: int | None,
    if_absent: bool,
    timeout: float,
) -> int:
    """Save a document, given as JSON, and print what became of it; return the exit code."""
    try:
        data = parse_document(document)
    except DocumentError as error:
        _complain("the document cannot be saved as it is; nothing was sent")
        for violation in error.violations:
            _complain(f"  {violation.field}: {violation.description}")
        return UNUSABLE
    request = data_access_pb2.SaveRequest(key=_message(key))
    # An empty document is a document, too.
    request.data.SetInParent()
    request.data.update(data)
    if if_version is not None:
        request.if_version = if_version
    elif if_absent:
        request.if_absent = True

    def call(channel: grpc.Channel, metadata: Metadata) -> dict[str, Any]:
        stub = data_access_pb2_grpc.DataAccessStub(channel)
        return _written(stub.Save(request, timeout=timeout, metadata=metadata))

    return _run(target, call, writing=True)


def delete(target: Target, key: EntityKey, *, if_version: int | None, timeout: float) -> int:
    """Delete an entity and print what became of it; return the exit code."""
    request = data_access_pb2.DeleteRequest(key=_message(key))
    if if_version is not None:
        request.if_version = if_version

    def call(channel: grpc.Channel, metadata: Metadata) -> dict[str, Any]:
        stub = data_access_pb2_grpc.DataAccessStub(channel)
        return _written(stub.Delete(request, timeout=timeout, metadata=metadata))

    return _run(target, call, writing=True)


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
                answers.append(_health(stub, name, timeout))
                typer.echo(f"{name or _WHOLE:{width}}  {answers[-1]}")
    except grpc.RpcError as error:
        _explain(error, target, writing=False)
        return FAILED
    except UnusableTargetError as error:
        _complain(str(error))
        return FAILED
    return 0 if answers[0] == _SERVING else FAILED


def _health(stub: Any, name: str, timeout: float) -> str:  # noqa: ANN401 - has no types
    try:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=timeout)
    except grpc.RpcError as error:
        if failure_of(error).code is grpc.StatusCode.NOT_FOUND:
            return "SERVICE_UNKNOWN"
        raise
    return _name(health_pb2.HealthCheckResponse.ServingStatus, answer.status)


def _run(
    target: Target, call: Callable[[grpc.Channel, Metadata], dict[str, Any]], *, writing: bool
) -> int:
    try:
        with connected(target) as channel:
            answer = call(channel, (("x-request-id", uuid.uuid4().hex),))
    except grpc.RpcError as error:
        return _explain(error, target, writing=writing)
    except UnusableTargetError as error:
        _complain(str(error))
        return UNUSABLE
    # JSON is UTF-8, whatever the terminal's language.
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False, allow_nan=False).encode())
    return 0


def _explain(error: grpc.RpcError, target: Target, *, writing: bool) -> int:
    failure = failure_of(error)
    for line in explained(failure, target.address, writing=writing):
        _complain(line)
    return failure.exit_code


def _complain(line: str) -> None:
    typer.echo(line, err=True)


def _message(key: EntityKey) -> entity_pb2.EntityKey:
    return entity_pb2.EntityKey(tenant=key.tenant, kind=key.kind, id=key.id)


def _got(response: data_access_pb2.GetResponse) -> dict[str, Any]:
    entity, receipt = response.entity, response.receipt
    answer = {
        "key": _key(entity.key),
        "version": entity.version,
        "data": _in_order(normalized(plain(entity.data))),
        "create_time": entity.create_time.ToJsonString(),
        "update_time": entity.update_time.ToJsonString(),
        "served_from": _name(entity_pb2.Store, receipt.served_from).removeprefix("STORE_").lower(),
    }
    if receipt.HasField("cached_time"):
        answer["cached_time"] = receipt.cached_time.ToJsonString()
    return answer


def _written(
    response: data_access_pb2.SaveResponse | data_access_pb2.DeleteResponse,
) -> dict[str, Any]:
    projection = _name(entity_pb2.Projection, response.projection)
    return {
        "key": _key(response.key),
        "version": response.version,
        "update_time": response.update_time.ToJsonString(),
        "projection": projection.removeprefix("PROJECTION_").lower(),
    }


def _key(key: entity_pb2.EntityKey) -> dict[str, str]:
    return {"tenant": key.tenant, "kind": key.kind, "id": key.id}


def _in_order(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value with all names sorted: a Struct knows no order."""
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_in_order(item) for item in value]
    return value


def _name(enum: Any, number: int) -> str:  # noqa: ANN401 - protobuf's types are its own
    """Return the name of an enum's value, or its number if it is newer than this program."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return value.name if value is not None else str(number)
