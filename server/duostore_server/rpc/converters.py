"""Messages of callers as values of the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from duostore.v1 import data_access_pb2
from duostore_server.access.checks import batch_size_violation, mutations_violation
from duostore_server.codec import plain
from duostore_server.domain.documents import most_struct_bytes
from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.quotas import CounterKey, Mode
from duostore_server.domain.transactions import (
    Check,
    Delete,
    FromSnapshot,
    IfAbsent,
    IfVersion,
    Save,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from duostore.v1 import entity_pb2
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.transactions import Precondition, Request

_Save: TypeAlias = data_access_pb2.SaveRequest | data_access_pb2.SaveMutation
_Delete: TypeAlias = data_access_pb2.DeleteRequest | data_access_pb2.DeleteMutation
_Query: TypeAlias = data_access_pb2.QueryRequest | data_access_pb2.ExportRequest
_WithData: TypeAlias = _Save | data_access_pb2.SnapshotRequest

# Enough for lists as long as they may be. To convert what is there takes time: up to half
# a second for a MiB.
_MAX_PARAMS_BYTES: Final = 1024 * 1024

_MODES: Final = {
    data_access_pb2.MODE_UNSPECIFIED: Mode.CONSUME,
    data_access_pb2.MODE_CONSUME: Mode.CONSUME,
    data_access_pb2.MODE_PEEK: Mode.PEEK,
    data_access_pb2.MODE_RESERVE: Mode.RESERVE,
}


def key_of(message: entity_pb2.EntityKey) -> EntityKey:
    """Return the key that a message names."""
    return EntityKey(message.tenant, message.kind, message.id)


def keys_of(request: data_access_pb2.BatchGetRequest) -> list[EntityKey]:
    """Return the keys of a batch; refused before they are read if they are too many."""
    if (violation := batch_size_violation(len(request.keys))) is not None:
        raise InvalidRequestError([violation])
    return [key_of(key) for key in request.keys]


def save_of(request: data_access_pb2.SaveRequest, policies: Policies) -> Save:
    """Return what a Save asks for, the numbers of its document as floats.

    A document that certainly is too large for its kind is refused before it is converted,
    which takes seconds for some requests of a few MiB. That of a kind which is not
    configured, and will be refused for that, is not looked at.
    """
    _refuse(_save_violations(request, policies, ""))
    return _save(request, policies)


def delete_of(message: _Delete) -> Delete:
    """Return what a Delete asks for."""
    precondition = IfVersion(message.if_version) if message.HasField("if_version") else None
    return Delete(key_of(message.key), precondition)


def requests_of(request: data_access_pb2.TransactRequest, policies: Policies) -> list[Request]:
    """Return what a Transact asks for.

    Refused before any document is converted if the mutations are too many, do nothing, or
    hold what Save would refuse unseen.
    """
    if (violation := mutations_violation(len(request.mutations))) is not None:
        raise InvalidRequestError([violation])
    _refuse(
        violation
        for index, mutation in enumerate(request.mutations)
        for violation in _mutation_violations(mutation, policies, f"mutations[{index}]")
    )
    return [_request(mutation, policies) for mutation in request.mutations]


def document_of(request: data_access_pb2.SnapshotRequest, policies: Policies) -> JsonObject | None:
    """Return the document of a snapshot, as ``save_of`` does; None if there is none."""
    _refuse(_size_violations(request, policies, ""))
    return _document(request, policies)


def counter_key_of(request: data_access_pb2.QuotaRequest) -> CounterKey:
    """Return the counter that a Quota is about."""
    return CounterKey(request.tenant, request.quota, request.subject)


def mode_of(request: data_access_pb2.QuotaRequest) -> Mode:
    """Return what a Quota wants; refused if it is a mode newer than this server."""
    if (mode := _MODES.get(request.mode)) is None:
        text = f"is {request.mode}, of which this server does not know"
        raise InvalidRequestError([FieldViolation("mode", text)])
    return mode


def params_of(request: _Query) -> JsonObject:
    """Return the parameters of a query as they were given; refused unseen if they are too large."""
    size = request.params.ByteSize()
    if size > _MAX_PARAMS_BYTES:
        text = f"has {size} bytes as protobuf; at most {_MAX_PARAMS_BYTES} are allowed"
        raise InvalidRequestError([FieldViolation("params", text)])
    return plain(request.params)


def _request(mutation: data_access_pb2.Mutation, policies: Policies) -> Request:
    match mutation.WhichOneof("mutation"):
        case "save":
            return _save(mutation.save, policies)
        case "delete":
            return delete_of(mutation.delete)
        case _:
            return Check(key_of(mutation.check.key), mutation.check.if_version)


def _save(message: _Save, policies: Policies) -> Save:
    return Save(key_of(message.key), _content(message, policies), _precondition(message))


def _content(message: _Save, policies: Policies) -> JsonObject | FromSnapshot | None:
    if message.HasField("from_snapshot"):
        return FromSnapshot(message.from_snapshot)
    return _document(message, policies)


def _document(message: _WithData, policies: Policies) -> JsonObject | None:
    if not message.HasField("data"):
        return None
    return plain(message.data) if policies.find(key_of(message.key)) else {}


def _precondition(message: _Save) -> Precondition:
    match message.WhichOneof("precondition"):
        case "if_version":
            return IfVersion(message.if_version)
        case "if_absent":
            return IfAbsent()
        case _:
            return None


def _mutation_violations(
    mutation: data_access_pb2.Mutation, policies: Policies, at: str
) -> Iterator[FieldViolation]:
    match mutation.WhichOneof("mutation"):
        case "save":
            yield from _save_violations(mutation.save, policies, f"{at}.save.")
        case None:
            yield FieldViolation(at, "must have one of save, delete and check")


def _save_violations(message: _Save, policies: Policies, at: str) -> Iterator[FieldViolation]:
    yield from _size_violations(message, policies, at)
    if message.HasField("if_absent") and not message.if_absent:
        yield FieldViolation(f"{at}if_absent", "must be true if set")


def _size_violations(message: _WithData, policies: Policies, at: str) -> Iterator[FieldViolation]:
    policy = policies.find(key_of(message.key))
    if policy is None or not message.HasField("data"):
        return
    if message.data.ByteSize() > most_struct_bytes(policy.max_bytes):
        yield FieldViolation(
            f"{at}data",
            f"has more bytes as compact JSON than its kind allows, {policy.max_bytes}",
        )


def _refuse(violations: Iterable[FieldViolation]) -> None:
    if listed := [*violations]:
        raise InvalidRequestError(listed)
