"""The one place where an error becomes a status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from duostore_server.domain.errors import (
    DuostoreError,
    InvalidRequestError,
    MinVersionNotReachedError,
    Reason,
    StoreOverloadedError,
    StoreUnavailableError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.message import Message

DOMAIN: Final = "duostore"

CODES: Final[Mapping[Reason, grpc.StatusCode]] = {
    Reason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.ENTITY_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ENTITY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.VERSION_MISMATCH: grpc.StatusCode.ABORTED,
    Reason.MIN_VERSION_NOT_REACHED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.WRITE_OUTCOME_UNKNOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
}

# A status travels in the trailers, of which clients take 8 KiB by default.
_MAX_VIOLATION_BYTES: Final = 3072
_MAX_FIELD: Final = 200
_MAX_MESSAGE: Final = 300

# Long enough for a failed-over writer to be found, short enough for a person.
_RETRY_SECONDS: Final = 1


def status_of(error: Exception, request_id: str) -> tuple[grpc.StatusCode, grpc.Status]:
    """Return what the caller is told of an error.

    Of an error that is not ours nothing is told but the request id, under which the
    log holds the rest.
    """
    if isinstance(error, DuostoreError):
        reason, metadata = error.reason, dict(error.metadata)
        message = _bounded(str(error), _MAX_MESSAGE)
    else:
        reason = Reason.INTERNAL
        message = f"a fault of the server; its log holds the detail under {request_id}"
        metadata = {"request_id": request_id}
    code = CODES[reason]
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.append(
        _packed(error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata=metadata))
    )
    status.details.extend(_packed(detail) for detail in _details(error))
    status.details.append(_packed(error_details_pb2.RequestInfo(request_id=request_id)))
    return code, rpc_status.to_status(status)


def _details(error: Exception) -> Iterator[Message]:
    if isinstance(error, InvalidRequestError):
        yield _bad_request(error)
    elif isinstance(error, StoreUnavailableError | StoreOverloadedError):
        yield error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=_RETRY_SECONDS))
    elif isinstance(error, VersionMismatchError | MinVersionNotReachedError):
        yield error_details_pb2.PreconditionFailure(
            violations=[
                error_details_pb2.PreconditionFailure.Violation(
                    type=error.reason.value, subject="key", description=str(error)
                )
            ]
        )


def _bad_request(error: InvalidRequestError) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for count, violation in enumerate(error.violations):
        if bad.ByteSize() > _MAX_VIOLATION_BYTES:
            left = len(error.violations) - count
            bad.field_violations.add(description=f"and {left} more violations")
            break
        bad.field_violations.add(
            field=_bounded(violation.field, _MAX_FIELD), description=violation.description
        )
    return bad


def _bounded(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
