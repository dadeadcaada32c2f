"""Errors on the wire."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from duostore.v1 import errors_pb2
from duostore_server.domain import errors
from duostore_server.domain.errors import Reason, Store
from duostore_server.rpc.status import CODES, status_of

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


def test_a_status_fits_into_the_trailers_however_bad_the_request() -> None:
    worst = errors.InvalidRequestError(
        [errors.FieldViolation(f"data.{'ü' * 5000}[{n}]", "é" * 200) for n in range(100)]
    )
    _, sent_status = status_of(worst, "r" * 128)
    size = len(sent_status.details.encode()) * 3  # percent-encoded
    size += sum(len(name) + len(value) for name, value in sent_status.trailing_metadata)
    assert size < 8 * 1024
    bad = detail(sent(worst)[1], error_details_pb2.BadRequest)
    assert re.fullmatch("and [0-9]+ more violations", bad.field_violations[-1].description)


def test_who_may_try_again_is_told_when() -> None:
    retry = {
        error.reason
        for error in EXAMPLES
        if detail(sent(error)[1], error_details_pb2.RetryInfo) is not None
    }
    # Not after an unknown outcome: a repeat could apply the write twice.
    assert retry == {Reason.STORE_UNAVAILABLE, Reason.OVERLOADED}


def test_preconditions_are_described() -> None:
    _, status = sent(errors.VersionMismatchError(2, 5))
    failure = detail(status, error_details_pb2.PreconditionFailure)
    assert failure.violations[0].type == "VERSION_MISMATCH"


def test_of_a_fault_nothing_is_told_but_the_request() -> None:
    code, status = sent(ValueError("password=hunter2 host=db.internal"))
    assert code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(status)
    assert "db.internal" not in str(status)
    assert "request-1" in status.message
