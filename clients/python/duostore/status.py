"""The one place where a status becomes an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from duostore import errors
from duostore.errors import Error, FieldViolation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.any_pb2 import Any

DOMAIN: Final = "duostore"
_DETAILS: Final = "grpc-status-details-bin"

BY_REASON: Final[Mapping[str, type[Error]]] = {
    "INVALID_REQUEST": errors.InvalidRequestError,
    "ENTITY_NOT_FOUND": errors.EntityNotFoundError,
    "ENTITY_EXISTS": errors.EntityExistsError,
    "VERSION_MISMATCH": errors.VersionMismatchError,
    "MIN_VERSION_NOT_REACHED": errors.MinVersionNotReachedError,
    "STORE_UNAVAILABLE": errors.StoreUnavailableError,
    "WRITE_OUTCOME_UNKNOWN": errors.WriteOutcomeUnknownError,
    "DEADLINE_EXCEEDED": errors.DeadlineExceededError,
    "OVERLOADED": errors.OverloadedError,
    "INTERNAL": errors.InternalError,
    "ANSWER_TOO_LARGE": errors.AnswerTooLargeError,
}

# For reasons that this client does not know, and for failures outside the server.
BY_CODE: Final[Mapping[StatusCode, type[Error]]] = {
    StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    StatusCode.NOT_FOUND: errors.NotFoundError,
    StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    StatusCode.ABORTED: errors.AbortedError,
    StatusCode.FAILED_PRECONDITION: errors.FailedPreconditionError,
    StatusCode.UNAVAILABLE: errors.UnavailableError,
    StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceededError,
    StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhaustedError,
    StatusCode.INTERNAL: errors.InternalError,
}

# A write that failed so was not applied. Of all else it is not known: even
# RESOURCE_EXHAUSTED may come from gRPC itself, about an answer that was too large.
_REFUSING_CODES: Final = frozenset(
    {
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.ALREADY_EXISTS,
        StatusCode.PERMISSION_DENIED,
        StatusCode.FAILED_PRECONDITION,
        StatusCode.ABORTED,
        StatusCode.OUT_OF_RANGE,
        StatusCode.UNIMPLEMENTED,
        StatusCode.UNAUTHENTICATED,
    }
)
_REFUSING_REASONS: Final = frozenset({"STORE_UNAVAILABLE", "OVERLOADED"})

# What to do next, where the server's own words do not say.
_ADVICE: Final[Mapping[type[Error], str]] = {
    errors.EntityNotFoundError: "create it by save; to read what may be absent use get_or_none",
    errors.EntityExistsError: "to replace that version save with if_version instead of if_absent",
    errors.VersionMismatchError: "read it again, decide anew and save with the version read",
    errors.UnavailableError: "check the target and that the server runs, or try again later",
    errors.DeadlineExceededError: "if it needs longer, pass a longer timeout",
}
# Other reads than strong ones may not see the write yet.
_READ_FIRST: Final = "read the entity with strong=True before you repeat it"


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked: ``text`` as people read it, ``request_id`` as it was sent."""

    text: str
    request_id: str
    writes: bool


@dataclass(slots=True)
class _Told:
    """What the details of a status say."""

    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    request_id: str = ""
    retry_after: float | None = None
    field_violations: list[FieldViolation] = field(default_factory=list)


def error_of(
    call: Call,
    code: StatusCode,
    message: str,
    trailing_metadata: Iterable[tuple[str, str | bytes]],
) -> Error:
    """Return the error for a call that was answered with this status.

    Never raises: details that cannot be read are as none.
    """
    told = _told(trailing_metadata)
    refused = code in _REFUSING_CODES or told.reason in _REFUSING_REASONS
    maybe_applied = call.writes and not refused
    kind = _class_of(code, told, maybe_applied=maybe_applied)
    request_id = told.request_id or call.request_id

    sentences = [f"{call.text}: {message or code.name}"]
    if advice := _ADVICE.get(kind):
        sentences.append(advice)
    if maybe_applied:
        if told.reason != "WRITE_OUTCOME_UNKNOWN":  # whose own words say so
            sentences.append("the write may or may not have been applied")
        sentences.append(_READ_FIRST)
    facts = [told.reason or code.name, f"request id {request_id}"]
    if told.retry_after is not None:
        facts.append(f"retry after {told.retry_after:g} s")
    return kind(
        f"{'; '.join(sentences)} ({', '.join(facts)})",
        reason=told.reason,
        code=code,
        metadata=told.metadata,
        request_id=request_id,
        retry_after=told.retry_after,
        field_violations=told.field_violations,
        maybe_applied=maybe_applied,
    )


def broken_contract(call: Call, what: str) -> Error:
    """Return the error for a read that was answered in a way that the contract forbids."""
    return errors.InternalError(
        f"{call.text}: the answer breaks the server's contract: {what}; tell those who run "
        f"the server (request id {call.request_id})",
        code=StatusCode.INTERNAL,
        request_id=call.request_id,
    )


def _class_of(code: StatusCode, told: _Told, *, maybe_applied: bool) -> type[Error]:
    kind = BY_REASON.get(told.reason)
    if kind is not None and all(told.metadata.get(name, "").isdecimal() for name in kind.details):
        return kind
    if code is StatusCode.UNAVAILABLE and maybe_applied:
        return errors.WriteOutcomeUnknownError
    return BY_CODE.get(code, Error)


def _told(trailing_metadata: Iterable[tuple[str, str | bytes]]) -> _Told:
    told = _Told()
    for name, value in trailing_metadata:
        if name != _DETAILS or not isinstance(value, bytes):
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                _read(detail, told)
        except DecodeError:
            return _Told()
    return told


def _read(detail: Any, told: _Told) -> None:
    if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
        info = error_details_pb2.ErrorInfo.FromString(detail.value)
        if info.domain == DOMAIN:
            told.reason = info.reason
            told.metadata = dict(info.metadata)
    elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
        told.request_id = error_details_pb2.RequestInfo.FromString(detail.value).request_id
    elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
        delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
        told.retry_after = delay.seconds + delay.nanos / 1e9
    elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
        request = error_details_pb2.BadRequest.FromString(detail.value)
        told.field_violations = [
            FieldViolation(violation.field, violation.description)
            for violation in request.field_violations
        ]
