"""Errors on the wire."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from duostore.v1 import errors_pb2
from duostore_server.domain import errors
from duostore_server.domain.errors import Reason, Store
from duostore_server.rpc.status import CODES, ServerStoppingError, status_of

EXAMPLES: list[errors.DuostoreError] = [
    errors.InvalidRequestError([errors.FieldViolation("key.id", "must not be empty")]),
    errors.EntityNotFoundError(3),
    errors.EntityExistsError(4),
    errors.VersionMismatchError(2, 5),
    errors.MinVersionNotReachedError(9, 5),
    errors.StoreUnavailableError(Store.AURORA),
    errors.WriteOutcomeUnknownError(Store.AURORA),
    errors.DeadlineExceededError(),
    errors.StoreOverloadedError(Store.DYNAMODB),
    errors.AnswerTooLargeError(5000, 4000),
    errors.SnapshotNotFoundError(12),
    errors.IdempotencyKeyReusedError(),
    errors.DuplicateInProgressError(),
    errors.ReservationNotFoundError(),
    errors.ReservationSettledError(7, 3),
    errors.ConstraintViolatedError("invoice_total_check"),
    errors.ResultTooLargeError("by_status", "max_rows", 1000),
    errors.ResultChangedError(),
    errors.QueryFailedError("by_status", "22012"),
    errors.QueryTimeoutError("by_status"),
    errors.ReadOnlyError("proposal", "it is migrated"),
    errors.ProjectionFailedError(2, "it has no title"),
    errors.UnauthenticatedError("a token"),
    errors.PermissionDeniedError("another may"),
    errors.FlagsElsewhereError("acme"),
    errors.BackfillNotFoundError("proposal"),
]


def sent(error: Exception) -> tuple[grpc.StatusCode, status_pb2.Status]:
    code, status = status_of(error, "request-1")
    [(_, raw)] = [item for item in status.trailing_metadata if item[0] == "grpc-status-details-bin"]
    return code, status_pb2.Status.FromString(raw)


def detail(status: status_pb2.Status, kind: type[Any]) -> Any:
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None


def test_every_reason_of_the_domain_is_public_and_has_a_code() -> None:
    public = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118 - no dict
    assert {reason.value for reason in Reason} == public - {"UNSPECIFIED"}
    assert set(CODES) == set(Reason)


def test_every_reason_has_an_example_here() -> None:
    assert {error.reason for error in EXAMPLES} == set(Reason) - {Reason.INTERNAL}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: e.reason.value)
def test_an_error_says_its_reason_and_its_request(error: errors.DuostoreError) -> None:
    code, status = sent(error)
    assert code is CODES[error.reason]
    assert status.code == code.value[0]
    assert status.message == str(error)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason.value, "duostore")
    assert dict(info.metadata) == dict(error.metadata)
    assert detail(status, error_details_pb2.RequestInfo).request_id == "request-1"


def test_bad_requests_name_each_field() -> None:
    _, status = sent(EXAMPLES[0])
    bad = detail(status, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("key.id", "must not be empty")
    ]


@pytest.mark.parametrize("character", ["x", "%", "é", "漢", "😀", "\n"])
@pytest.mark.parametrize("many", [1, 2, 100])
def test_a_status_fits_into_the_trailers_whatever_it_quotes(character: str, many: int) -> None:
    long = character * 20_000
    named = errors.FieldViolation(f"data.{long}", long)
    told: Any = long
    for worst in (
        errors.InvalidRequestError([named] * many),
        errors.VersionMismatchError(told, told),
    ):
        _, status = status_of(worst, "r" * 128)
        trailers = [("grpc-message", quote(status.details)), *status.trailing_metadata]
        # As HPACK counts: 32 bytes for each entry. The details travel as base64.
        size = sum(32 + len(name) + len(value) * 4 // 3 + 4 for name, value in trailers)
        assert size < 8 * 1024
        assert status.details.endswith("…")


def test_a_violation_is_told_however_long_it_is() -> None:
    long = errors.FieldViolation(f"data.{'é' * 20_000}", "é" * 20_000)
    listed = detail(sent(errors.InvalidRequestError([long] * 2))[1], error_details_pb2.BadRequest)
    assert len(listed.field_violations) == 2
    for violation in listed.field_violations:
        assert re.fullmatch("data[.]é{90,}…", violation.field)
        assert re.fullmatch("é{140,}…", violation.description)


def test_violations_that_do_not_fit_are_counted() -> None:
    violations = [errors.FieldViolation(f"data.a[{n}]", "é" * 100) for n in range(100)]
    listed = detail(sent(errors.InvalidRequestError(violations))[1], error_details_pb2.BadRequest)
    *told, last = listed.field_violations
    assert [(v.field, v.description) for v in told] == [
        (v.field, v.description) for v in violations[: len(told)]
    ]
    assert (last.field, last.description) == ("", f"and {100 - len(told)} more violations")
    assert len(told) > 10


def test_who_may_try_again_is_told_when() -> None:
    retry = {
        error.reason
        for error in EXAMPLES
        if detail(sent(error)[1], error_details_pb2.RetryInfo) is not None
    }
    # Not after an unknown outcome: a repeat could apply the write twice.
    assert retry == {
        Reason.STORE_UNAVAILABLE,
        Reason.OVERLOADED,
        Reason.DUPLICATE_IN_PROGRESS,
        Reason.READ_ONLY,
    }


def test_preconditions_are_described() -> None:
    subjects = {}
    for error in EXAMPLES:
        _, status = sent(error)
        failure = detail(status, error_details_pb2.PreconditionFailure)
        if failure is not None:
            [violation] = failure.violations
            assert violation.type == error.reason.value
            assert violation.description == status.message
            subjects[violation.type] = violation.subject
    assert subjects == {
        "VERSION_MISMATCH": "key",
        "MIN_VERSION_NOT_REACHED": "key",
        "CONSTRAINT_VIOLATED": "key",
        "RESERVATION_SETTLED": "reservation",
        "RESULT_TOO_LARGE": "query",
        "QUERY_FAILED": "query",
        "RESULT_CHANGED": "page_token",
        "READ_ONLY": "kinds/proposal",
        "PROJECTION_FAILED": "key",
        "FLAGS_ELSEWHERE": "name",
    }


def test_a_reservation_that_was_settled_otherwise_is_described() -> None:
    code, status = sent(errors.ReservationSettledError(7, 3))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    info = detail(status, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"committed": "7", "refunded": "3"}
    [violation] = detail(status, error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject) == ("RESERVATION_SETTLED", "reservation")
    assert violation.description == status.message


@pytest.mark.parametrize(
    "refusal",
    [
        errors.VersionMismatchError(2, 5),
        errors.EntityExistsError(4),
        errors.EntityNotFoundError(0),
        errors.ConstraintViolatedError("invoice_total_check"),
    ],
    ids=lambda e: e.reason.value,
)
def test_a_refused_transaction_names_the_mutation(refusal: errors.RefusalError) -> None:
    code, status = sent(refusal.at(7))
    assert code is CODES[refusal.reason]
    assert detail(status, error_details_pb2.ErrorInfo).metadata["mutation"] == "7"
    [violation] = detail(status, error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject) == (refusal.reason.value, "mutations[7]")
    assert violation.description == status.message
    assert status.message.startswith("mutations[7]: ")


@pytest.mark.parametrize(
    ("error", "code", "metadata"),
    [
        (
            errors.ConstraintViolatedError("total_check"),
            grpc.StatusCode.FAILED_PRECONDITION,
            {"constraint": "total_check"},
        ),
        (
            errors.ResultTooLargeError("by_status", "max_bytes", 524_288),
            grpc.StatusCode.FAILED_PRECONDITION,
            {"query": "by_status", "bound": "max_bytes", "limit": "524288"},
        ),
        (errors.ResultChangedError(), grpc.StatusCode.ABORTED, {}),
        (
            errors.QueryFailedError("by_status", "22012"),
            grpc.StatusCode.FAILED_PRECONDITION,
            {"query": "by_status", "sqlstate": "22012"},
        ),
        (
            errors.QueryTimeoutError("by_status"),
            grpc.StatusCode.DEADLINE_EXCEEDED,
            {"query": "by_status"},
        ),
    ],
    ids=lambda value: value.reason.value if isinstance(value, errors.DuostoreError) else "",
)
def test_errors_of_sql_have_the_code_and_the_metadata_that_the_api_says(
    error: errors.DuostoreError, code: grpc.StatusCode, metadata: dict[str, str]
) -> None:
    told, status = sent(error)
    assert told is code
    assert dict(detail(status, error_details_pb2.ErrorInfo).metadata) == metadata


@pytest.mark.parametrize(
    ("error", "code", "metadata"),
    [
        (
            errors.ReadOnlyError("proposal", "it is migrated"),
            grpc.StatusCode.FAILED_PRECONDITION,
            {"kind": "proposal"},
        ),
        (
            errors.ProjectionFailedError(2, "it has no title"),
            grpc.StatusCode.FAILED_PRECONDITION,
            {"projection_version": "2"},
        ),
        (errors.UnauthenticatedError("a token"), grpc.StatusCode.UNAUTHENTICATED, {}),
        (errors.PermissionDeniedError("another may"), grpc.StatusCode.PERMISSION_DENIED, {}),
        (
            errors.FlagsElsewhereError("acme"),
            grpc.StatusCode.FAILED_PRECONDITION,
            {"provider": "acme"},
        ),
        (
            errors.BackfillNotFoundError("proposal"),
            grpc.StatusCode.NOT_FOUND,
            {"kind": "proposal"},
        ),
    ],
    ids=lambda value: value.reason.value if isinstance(value, errors.DuostoreError) else "",
)
def test_errors_of_operating_have_the_code_and_the_metadata_that_the_api_says(
    error: errors.DuostoreError, code: grpc.StatusCode, metadata: dict[str, str]
) -> None:
    told, status = sent(error)
    assert told is code
    assert dict(detail(status, error_details_pb2.ErrorInfo).metadata) == metadata


@pytest.mark.parametrize(("kind", "subject"), [("proposal", "kinds/proposal"), ("", "kinds")])
def test_who_is_refused_while_writes_are_is_told_why_of_what_and_when_to_come_again(
    kind: str, subject: str
) -> None:
    why = "w" * 200
    _, status = sent(errors.ReadOnlyError(kind, why))
    assert why in status.message
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 5
    [violation] = detail(status, error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject) == ("READ_ONLY", subject)


def test_a_stream_that_a_stopping_server_ends_looks_as_if_the_connection_was_lost() -> None:
    code, status = sent(ServerStoppingError())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert status.code == code.value[0]
    assert detail(status, error_details_pb2.ErrorInfo) is None
    assert detail(status, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert detail(status, error_details_pb2.RequestInfo).request_id == "request-1"


def test_a_reused_idempotency_key_is_a_bad_field() -> None:
    code, status = sent(errors.IdempotencyKeyReusedError())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    [violation] = detail(status, error_details_pb2.BadRequest).field_violations
    assert violation.field == "idempotency_key"
    assert violation.description.startswith("was used for another request")


def test_of_a_fault_nothing_is_told_but_the_request() -> None:
    code, status = sent(ValueError("password=hunter2 host=db.internal"))
    assert code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(status)
    assert "db.internal" not in str(status)
    assert "request-1" in status.message
