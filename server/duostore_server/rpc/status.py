"""The one place where an error becomes a status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from duostore_server.domain.errors import (
    ConstraintViolatedError,
    DuostoreError,
    DuplicateInProgressError,
    FieldViolation,
    FlagsElsewhereError,
    IdempotencyKeyReusedError,
    InvalidRequestError,
    MinVersionNotReachedError,
    ProjectionFailedError,
    QueryFailedError,
    ReadOnlyError,
    Reason,
    RefusalError,
    ReservationSettledError,
    ResultChangedError,
    ResultTooLargeError,
    StoreOverloadedError,
    StoreUnavailableError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from google.protobuf.message import Message

DOMAIN: Final = "duostore"

CODES: Final[Mapping[Reason, grpc.StatusCode]] = {
    Reason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.ENTITY_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ENTITY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.VERSION_MISMATCH: grpc.StatusCode.ABORTED,
    Reason.MIN_VERSION_NOT_REACHED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    # Not UNAVAILABLE, which clients and meshes repeat by themselves.
    Reason.WRITE_OUTCOME_UNKNOWN: grpc.StatusCode.UNKNOWN,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    # Not RESOURCE_EXHAUSTED, which is answered by trying again.
    Reason.ANSWER_TOO_LARGE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.SNAPSHOT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.IDEMPOTENCY_KEY_REUSED: grpc.StatusCode.INVALID_ARGUMENT,
    # As a mismatch is: the transaction may be tried again, from its beginning.
    Reason.DUPLICATE_IN_PROGRESS: grpc.StatusCode.ABORTED,
    Reason.RESERVATION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.RESERVATION_SETTLED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CONSTRAINT_VIOLATED: grpc.StatusCode.FAILED_PRECONDITION,
    # As ANSWER_TOO_LARGE.
    Reason.RESULT_TOO_LARGE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.RESULT_CHANGED: grpc.StatusCode.ABORTED,
    Reason.QUERY_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
    # As WRITE_OUTCOME_UNKNOWN: repeated at once it would be as slow, and load the database.
    Reason.QUERY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    # Not UNAVAILABLE, for which clients and meshes go to another server: it is the same there.
    Reason.READ_ONLY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PROJECTION_FAILED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.FLAGS_ELSEWHERE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.BACKFILL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
}

# A status travels in the trailers, of which clients take 8 KiB by default: what is larger
# arrives as RESOURCE_EXHAUSTED and says nothing. All limits are bytes of UTF-8. The message
# is percent-encoded there, which triples what is not ASCII, and the details are in base64.
_MAX_BAD_REQUEST: Final = 3072
_MAX_FIELD: Final = 200
_MAX_DESCRIPTION: Final = 300
_MAX_MESSAGE: Final = 300
_MAX_METADATA: Final = 100
_ELLIPSIS: Final = "…"

# Long enough for a failed-over writer to be found, short enough for a person.
_RETRY_SECONDS: Final = 1
# A person has to end it.
_READ_ONLY_SECONDS: Final = 5


class ServerStoppingError(Exception):
    """A stream is ended, for the server is told to stop; another server can be asked."""

    def __init__(self) -> None:
        super().__init__("the server stops; ask again, and another one answers")


def status_of(error: Exception, request_id: str) -> tuple[grpc.StatusCode, grpc.Status]:
    """Return what the caller is told of an error.

    Of an error that is not ours nothing is told but the request id, under which the
    log holds the rest.
    """
    request = error_details_pb2.RequestInfo(request_id=request_id)
    if isinstance(error, ServerStoppingError):
        # As of a connection that breaks: a reason of ours would say more than there is to do.
        code = grpc.StatusCode.UNAVAILABLE
        return code, _with_details(code, str(error), _retry(), request)
    if isinstance(error, DuostoreError):
        reason = error.reason
        metadata = {name: _bounded(text, _MAX_METADATA) for name, text in error.metadata.items()}
        message = _bounded(str(error), _MAX_MESSAGE)
    else:
        reason = Reason.INTERNAL
        message = f"a fault of the server; its log holds the detail under {request_id}"
        metadata = {"request_id": request_id}
    return CODES[reason], _status(reason, message, metadata, *_details(error), request)


def overloaded(message: str) -> grpc.Status:
    """Return what the caller is told of a call that was not let in: it may come again."""
    return _status(Reason.OVERLOADED, message, {}, _retry())


def _status(
    reason: Reason, message: str, metadata: Mapping[str, str], *details: Message
) -> grpc.Status:
    info = error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata=metadata)
    return _with_details(CODES[reason], message, info, *details)


def _with_details(code: grpc.StatusCode, message: str, *details: Message) -> grpc.Status:
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.extend(_packed(detail) for detail in details)
    return rpc_status.to_status(status)


def _details(error: Exception) -> Iterator[Message]:
    match error:
        case InvalidRequestError():
            yield _bad_request(error.violations)
        case IdempotencyKeyReusedError():
            field = "idempotency_key"
            text = str(error).removeprefix(f"{field}: ")
            yield _bad_request((FieldViolation(field, text),))
        case StoreUnavailableError() | StoreOverloadedError() | DuplicateInProgressError():
            yield _retry()
        case ReadOnlyError():
            yield _retry(_READ_ONLY_SECONDS)
    if isinstance(error, DuostoreError):
        yield from _unmet(error)


def _unmet(error: DuostoreError) -> Iterator[Message]:
    """Yield what did not hold that the call needs, if it is that."""
    match error:
        case ReadOnlyError():
            yield _precondition_failure(error, f"kinds/{error.kind}" if error.kind else "kinds")
        case FlagsElsewhereError():
            yield _precondition_failure(error, "name")
        case RefusalError(mutation=int(index)):
            yield _precondition_failure(error, f"mutations[{index}]")
        case (
            VersionMismatchError()
            | MinVersionNotReachedError()
            | ConstraintViolatedError()
            | ProjectionFailedError()
        ):
            yield _precondition_failure(error, "key")
        case ReservationSettledError():
            yield _precondition_failure(error, "reservation")
        case ResultTooLargeError() | QueryFailedError():
            yield _precondition_failure(error, "query")
        case ResultChangedError():
            yield _precondition_failure(error, "page_token")


def _precondition_failure(
    error: DuostoreError, subject: str
) -> error_details_pb2.PreconditionFailure:
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(
        type=error.reason.value,
        subject=subject,
        description=_bounded(str(error), _MAX_DESCRIPTION),
    )
    return failure


def _retry(seconds: int = _RETRY_SECONDS) -> error_details_pb2.RetryInfo:
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds))


def _bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    """Return the violations, as many as there is room for, and how many there are besides."""
    bad = error_details_pb2.BadRequest()
    for count, violation in enumerate(violations):
        bad.field_violations.add(
            field=_bounded(violation.field, _MAX_FIELD),
            description=_bounded(violation.description, _MAX_DESCRIPTION),
        )
        if bad.ByteSize() > _MAX_BAD_REQUEST:
            left = len(violations) - count
            bad.field_violations[-1].Clear()
            bad.field_violations[-1].description = f"and {left} more violations"
            break
    return bad


def _bounded(text: str, limit: int) -> str:
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    room = limit - len(_ELLIPSIS.encode())
    return encoded[:room].decode(errors="ignore") + _ELLIPSIS


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
