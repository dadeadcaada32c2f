"""The one place where a status becomes an error."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
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
    "SNAPSHOT_NOT_FOUND": errors.SnapshotNotFoundError,
    "IDEMPOTENCY_KEY_REUSED": errors.IdempotencyKeyReusedError,
    "DUPLICATE_IN_PROGRESS": errors.DuplicateInProgressError,
    "RESERVATION_NOT_FOUND": errors.ReservationNotFoundError,
    "RESERVATION_SETTLED": errors.ReservationSettledError,
    "CONSTRAINT_VIOLATED": errors.ConstraintViolatedError,
    "RESULT_TOO_LARGE": errors.ResultTooLargeError,
    "RESULT_CHANGED": errors.ResultChangedError,
    "QUERY_FAILED": errors.QueryFailedError,
    "QUERY_TIMEOUT": errors.QueryTimeoutError,
    "READ_ONLY": errors.ReadOnlyError,
    "PROJECTION_FAILED": errors.ProjectionFailedError,
    "UNAUTHENTICATED": errors.UnauthenticatedError,
    "PERMISSION_DENIED": errors.PermissionDeniedError,
    "FLAGS_ELSEWHERE": errors.FlagsElsewhereError,
    "BACKFILL_NOT_FOUND": errors.BackfillNotFoundError,
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
    StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    StatusCode.PERMISSION_DENIED: errors.PermissionDeniedError,
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
# Found only where the idempotency key would have been found as well: in the store where the
# kind is at home, which keeps its keys apart from the other's. Of a reservation: where the
# settlement would have been. So no earlier try with it was applied. All else that refuses a
# try says nothing of those before.
_DECIDING_REASONS: Final = frozenset(
    {
        "ENTITY_NOT_FOUND",
        "ENTITY_EXISTS",
        "VERSION_MISMATCH",
        "CONSTRAINT_VIOLATED",
        "IDEMPOTENCY_KEY_REUSED",
        "RESERVATION_NOT_FOUND",
        "RESERVATION_SETTLED",
    }
)

# What to do next, where the server's own words do not say.
_ADVICE: Final[Mapping[type[Error], str]] = {
    errors.EntityNotFoundError: "create it by save; to read what may be absent use get_or_none",
    errors.EntityExistsError: "to replace that version save with if_version instead of if_absent",
    errors.VersionMismatchError: "read it again, decide anew and save with the version read",
    errors.SnapshotNotFoundError: "list_snapshots yields those that there are",
    errors.ReservationNotFoundError: "check the tenant; what has expired cannot be settled",
    errors.DuplicateInProgressError: "repeat it with the same idempotency_key",
    errors.ResultTooLargeError: "export has no such limit",
    errors.QueryTimeoutError: "a longer timeout of the call does not help; narrow its parameters",
    errors.UnavailableError: "check the target and that the server runs, or try again later",
    errors.DeadlineExceededError: "if it needs longer, pass a longer timeout",
}


class Repeat(Enum):
    """Whether, and why, a call may be repeated though it may have been applied."""

    NEVER = "never"
    READS = "it changes nothing"
    KEYED = "its idempotency key lets it be applied once"
    DEBITED_ONCE = "its idempotency key lets its units be debited once"
    HARMLESS = "applied twice it does no harm"
    ONCE = "it is applied once, however often it comes"
    COSTLY = "never, since its units may be debited twice"

    @property
    def is_safe(self) -> bool:
        """Tell whether the call may be repeated unasked."""
        return self not in {Repeat.NEVER, Repeat.COSTLY}

    @property
    def is_debit(self) -> bool:
        """Tell whether it asks a quota: a failure allowed nothing, whatever was debited."""
        return self in {Repeat.COSTLY, Repeat.DEBITED_ONCE}


# What to do about a write that may have been applied.
_AGAIN: Final[Mapping[Repeat, str]] = {
    # Other reads than strong ones may not see the write yet.
    Repeat.NEVER: "read the entity with strong=True before you repeat it",
    Repeat.KEYED: "repeat it with the idempotency_key of this error, and it is applied once",
    Repeat.HARMLESS: "repeat it: to be stored twice does no harm",
    Repeat.ONCE: "repeat it, and it is applied once",
    Repeat.DEBITED_ONCE: (
        "repeat it with the idempotency_key of this error, and they are debited once"
    ),
    Repeat.COSTLY: (
        "repeated, they may be debited twice, but not if both calls have one idempotency_key"
    ),
}


@dataclass(frozen=True, slots=True)
class Call:
    """What was asked: ``text`` as people read it, ``request_id`` as it was sent.

    ``tries`` counts this one; ``in_doubt`` says that an earlier one may have been applied.
    """

    text: str
    request_id: str
    repeat: Repeat
    idempotency_key: str = ""
    tries: int = 1
    in_doubt: bool = False

    def again(self, failure: Error) -> Call:
        """Return the next try, after one that failed so."""
        doubt = self.in_doubt or failure.maybe_applied
        return replace(self, tries=self.tries + 1, in_doubt=doubt)


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
    refuses = code in _REFUSING_CODES or told.reason in _REFUSING_REASONS
    if call.repeat.is_debit and told.reason == "STORE_UNAVAILABLE":
        refuses = False  # as the contract says: of a debit, the store's answer may be lost
    doubted = call.in_doubt and told.reason not in _DECIDING_REASONS
    maybe_applied = call.repeat is not Repeat.READS and (doubted or not refuses)
    # Of a debit the outcome is known: nobody was told that it was allowed, so it was not.
    lost = maybe_applied and (refuses or code is StatusCode.UNAVAILABLE)
    unknown = lost and not call.repeat.is_debit
    kind = errors.WriteOutcomeUnknownError if unknown else _class_of(code, told)
    request_id = told.request_id or call.request_id

    sentences = [f"{call.text}: {message or code.name}"]
    if advice := _ADVICE.get(kind):
        sentences.append(advice)
    if maybe_applied:
        if call.repeat.is_debit:
            sentences.append("nothing was allowed, but its units may have been debited")
        elif told.reason != "WRITE_OUTCOME_UNKNOWN":  # whose own words say so
            sentences.append("the write may or may not have been applied")
        sentences.append(_AGAIN[call.repeat])
    facts = [told.reason or code.name, f"request id {request_id}"]
    if call.tries > 1:
        facts.append(f"tried {call.tries} times")
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
        idempotency_key=call.idempotency_key,
    )


def broken_contract(call: Call, what: str) -> Error:
    """Return the error for a call that was answered in a way that the contract forbids."""
    return errors.InternalError(
        f"{call.text}: the answer breaks the server's contract: {what}; tell those who run "
        f"the server (request id {call.request_id})",
        code=StatusCode.INTERNAL,
        request_id=call.request_id,
        maybe_applied=call.repeat is not Repeat.READS,
        idempotency_key=call.idempotency_key,
    )


def _class_of(code: StatusCode, told: _Told) -> type[Error]:
    kind = BY_REASON.get(told.reason)
    if kind is not None and all(told.metadata.get(name, "").isdecimal() for name in kind.details):
        return kind
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
