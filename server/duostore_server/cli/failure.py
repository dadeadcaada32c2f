"""What a failed call tells: the one place where the command line reads a status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from duostore_server.domain.errors import FieldViolation, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from google.protobuf.message import Message

# Exit codes of commands; 0 is success.
FAILED: Final = 1
UNUSABLE: Final = 2
UNAVAILABLE: Final = 3
# An answer of a quota: it has no room.
DENIED: Final = 4
INTERRUPTED: Final = 130

_DOMAIN: Final = "duostore"
_EXIT_CODES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: UNUSABLE,
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: UNAVAILABLE,
}
# What gRPC itself says; it has no other sign for these.
_TOO_LARGE: Final = "larger than max"
_NOT_CONNECTED: Final = ("failed to connect to all addresses", "errors resolving")

# What a connection, or a proxy on its way, makes of a call whose answer it lost.
_LOST_CODES: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
)
_LOST_REASONS: Final = (
    Reason.WRITE_OUTCOME_UNKNOWN,
    Reason.DEADLINE_EXCEEDED,
    Reason.INTERNAL,
)
_PASSING_REASONS: Final = (
    Reason.DUPLICATE_IN_PROGRESS,
    Reason.WRITE_OUTCOME_UNKNOWN,
    Reason.DEADLINE_EXCEEDED,
    Reason.STORE_UNAVAILABLE,
    Reason.OVERLOADED,
)

NO_ADVICE: Final[Mapping[Reason, str]] = {}
_ADVICE: Final = {
    grpc.StatusCode.NOT_FOUND: "Check --tenant, the kind and the id.",
    grpc.StatusCode.ALREADY_EXISTS: (
        "To replace it leave --if-absent out, or name its version with --if-version."
    ),
    grpc.StatusCode.ABORTED: "Read it again and decide anew.",
    grpc.StatusCode.DEADLINE_EXCEEDED: "Try again; --timeout waits longer.",
    grpc.StatusCode.UNIMPLEMENTED: (
        "Is it a Duostore that answers there, and as new as this program?"
    ),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call failed.

    ``told`` says whether the service itself spoke; ``reason`` is None if it did not, or
    gave one that is newer than this program. ``retry_after`` is in seconds, 0 if not told.
    ``version`` is what the service told of the entity's, 0 if it did not or there is none.
    """

    code: grpc.StatusCode
    message: str
    told: bool = False
    reason: Reason | None = None
    violations: tuple[FieldViolation, ...] = ()
    retry_after: float = 0.0
    request_id: str = ""
    version: int = 0

    @property
    def is_too_large(self) -> bool:
        """Tell whether the request is larger than the service reads at all."""
        exhausted = self.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        return exhausted and not self.told and _TOO_LARGE in self.message

    @property
    def was_not_sent(self) -> bool:
        """Tell whether there was no connection, so that certainly nothing was done."""
        return not self.told and self.message.startswith(_NOT_CONNECTED)

    @property
    def outcome_is_unknown(self) -> bool:
        """Tell whether a write that failed so may have been applied, or may still be."""
        if self.reason is not None:
            return self.reason in _LOST_REASONS
        return self.code in _LOST_CODES and not self.was_not_sent

    @property
    def may_pass(self) -> bool:
        """Tell whether the same call may succeed a little later."""
        if self.reason is not None:
            return self.reason in _PASSING_REASONS
        exhausted = self.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        return self.code in _LOST_CODES or (exhausted and not self.is_too_large)

    @property
    def exit_code(self) -> int:
        """Return what a command ends with that failed so."""
        if self.reason in {Reason.WRITE_OUTCOME_UNKNOWN, Reason.DUPLICATE_IN_PROGRESS}:
            # Their codes, UNKNOWN and ABORTED, say less than that it may be tried again.
            return UNAVAILABLE
        return UNUSABLE if self.is_too_large else _EXIT_CODES.get(self.code, FAILED)

    def __str__(self) -> str:
        """Return the failure in one line, without the violations."""
        name = self.reason.value if self.reason else self.code.name
        message = "the request was refused" if self.violations else self.message
        request = f", request id {self.request_id}" if self.request_id else ""
        return f"{message} ({name}{request})"


def failure_of(error: grpc.RpcError) -> Failure:
    """Return what an error of a call tells."""
    code, message = error.code(), error.details() or "no explanation was given"
    status = _status(error)
    if status is None:
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            message = "no answer came in time"
        return Failure(code, message)
    info = _detail(status, error_details_pb2.ErrorInfo())
    retry = _detail(status, error_details_pb2.RetryInfo())
    bad = _detail(status, error_details_pb2.BadRequest())
    request = _detail(status, error_details_pb2.RequestInfo())
    told = info is not None and info.domain == _DOMAIN
    return Failure(
        code=code,
        message=message,
        told=told,
        reason=_reason(info.reason) if told else None,
        violations=tuple(
            FieldViolation(v.field, v.description) for v in (bad.field_violations if bad else ())
        ),
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if retry else 0.0,
        request_id=request.request_id if request else "",
        version=_number(info.metadata.get("version", "")) if told else 0,
    )


def explained(
    failure: Failure, address: str, *, in_doubt: str, advice: Mapping[Reason, str] = NO_ADVICE
) -> Iterator[str]:
    """Yield what a person is told: what happened, every field, and what to do next.

    ``in_doubt`` is what to do if the call may have been applied; empty if it changes nothing.
    ``advice`` says what to do for some reasons, where a command has its own ways.
    """
    yield str(failure) if failure.told else f"{address}: {failure}"
    for violation in failure.violations:
        yield f"  {violation.field or 'request'}: {violation.description}"
    if in_doubt and failure.outcome_is_unknown:
        yield f"It may or may not have been applied: {in_doubt}"
    elif told := _advice(failure, advice):
        yield told


def _advice(failure: Failure, advice: Mapping[Reason, str]) -> str:
    if failure.reason is not None and failure.reason in advice:
        return advice[failure.reason]
    if told := _advice_by_reason(failure):
        return told
    if failure.was_not_sent:
        return "Does the service run there? --target or DUOSTORE_TARGET names another address."
    if failure.is_too_large:
        return "The service's configuration says how large a message may be."
    if failure.code in _ADVICE:
        return _ADVICE[failure.code]
    return f"Try again in {max(failure.retry_after, 1):g} s." if failure.may_pass else ""


def _advice_by_reason(failure: Failure) -> str:
    match failure.reason:
        case Reason.ENTITY_NOT_FOUND if failure.version:
            return (
                f"It was deleted, as version {failure.version}; `duostore save` creates it again."
            )
        case Reason.DUPLICATE_IN_PROGRESS:
            return f"Repeat the command as it is, in {max(failure.retry_after, 1):g} s."
        case Reason.SNAPSHOT_NOT_FOUND:
            return "`duostore snapshots` lists those that there are."
        case Reason.IDEMPOTENCY_KEY_REUSED:
            return "Give each intention an --idempotency-key of its own."
        case _:
            return ""


def _status(error: grpc.RpcError) -> Any:  # noqa: ANN401 - google.rpc has no types
    try:
        # The error of a call is that call itself.
        return rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):
        # Something between us and the service changed the code, but not the details.
        return None


def _detail(status: Any, message: Message) -> Any:  # noqa: ANN401 - as _status
    return next((message for packed in status.details if packed.Unpack(message)), None)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _reason(name: str) -> Reason | None:
    try:
        return Reason(name)
    except ValueError:
        return None
