"""The errors of the client, and the statuses that they are made of."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

import duostore
from duostore import errors
from duostore.status import BY_CODE, BY_REASON, Call, Repeat, error_of
from duostore.v1 import errors_pb2
from duostore_server.domain import errors as domain
from duostore_server.rpc.status import CODES, status_of

if TYPE_CHECKING:
    from google.protobuf.message import Message

READ = Call("get('proposal', 'p1')", "sent-1", Repeat.READS)
WRITE = Call("save('proposal', 'p1')", "sent-1", Repeat.NEVER)
KEYED = replace(WRITE, repeat=Repeat.KEYED, idempotency_key="key-1")
CONSUMPTION = Call("quota('api_calls', 'ann', 1)", "sent-1", Repeat.COSTLY)
RESERVING = Call("reserve_quota('a', 'ann', 1)", "sent-1", Repeat.DEBITED_ONCE, "key-1")
SETTLEMENT = Call("settle_quota('r1', cost=7)", "sent-1", Repeat.ONCE)
SNAPSHOT = Call("snapshot('proposal', 'p1')", "sent-1", Repeat.HARMLESS)

NUMBERS = {
    "version": "5",
    "expected": "2",
    "min_version": "9",
    "size": "7",
    "limit": "6",
    "sequence": "4",
    "committed": "7",
    "refunded": "3",
    "projection_version": "2",
}
DETAILS = "grpc-status-details-bin"
REASONS = [
    name.removeprefix("ERROR_REASON_")
    for name in errors_pb2.ErrorReason.keys()  # noqa: SIM118 - no dict
    if name != "ERROR_REASON_UNSPECIFIED"
]


def classes() -> list[type[duostore.Error]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, duostore.Error)
    ]


def trailing(*details: Message) -> list[tuple[str, str | bytes]]:
    status = status_pb2.Status()
    for detail in details:
        packed = Packed()
        packed.Pack(detail)
        status.details.append(packed)
    return [("x-other", "1"), (DETAILS, status.SerializeToString())]


def info(reason: str, domain: str = "duostore", **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)


def test_every_reason_of_the_contract_has_a_class_of_its_own() -> None:
    assert sorted(BY_REASON) == sorted(REASONS)
    assert len(set(BY_REASON.values())) == len(REASONS)
    assert all(getattr(duostore, kind.__name__) is kind for kind in classes())


@pytest.mark.parametrize("reason", REASONS)
def test_a_reason_is_raised_as_its_class_below_that_of_its_code(reason: str) -> None:
    code = CODES[domain.Reason(reason)]
    error = error_of(READ, code, "it failed", trailing(info(reason, **NUMBERS)))
    assert type(error) is BY_REASON[reason]
    assert (error.reason, error.code, error.metadata) == (reason, code, NUMBERS)
    for name in type(error).details:
        assert getattr(error, name) == int(NUMBERS[name])
    if reason != "WRITE_OUTCOME_UNKNOWN":  # which is not to be tried again
        assert isinstance(error, BY_CODE[code])


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_a_reason_that_is_not_known_falls_back_on_the_code(code: grpc.StatusCode) -> None:
    error = error_of(READ, code, "it failed", trailing(info("MADE_LATER", a="b")))
    assert type(error) is BY_CODE.get(code, duostore.Error)
    assert (error.reason, error.code, error.metadata) == ("MADE_LATER", code, {"a": "b"})


@pytest.mark.parametrize(
    "details",
    [
        pytest.param([], id="none"),
        pytest.param([("x-other", "1")], id="others only"),
        pytest.param([(DETAILS, b"\xff\xff garbled")], id="garbled"),
        pytest.param(
            [
                (
                    DETAILS,
                    status_pb2.Status(
                        details=[
                            Packed(
                                type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff"
                            )
                        ]
                    ).SerializeToString(),
                )
            ],
            id="garbled within",
        ),
        pytest.param(
            trailing(info("ENTITY_NOT_FOUND", "example.com", version="1")), id="of others"
        ),
        pytest.param(trailing(error_details_pb2.Help()), id="of another type"),
    ],
)
def test_details_that_are_not_ours_are_as_none(details: list[tuple[str, str | bytes]]) -> None:
    error = error_of(READ, grpc.StatusCode.NOT_FOUND, "no such page", details)
    assert type(error) is duostore.NotFoundError
    assert (error.reason, error.metadata, error.request_id) == ("", {}, "sent-1")
    assert "no such page" in str(error)


@pytest.mark.parametrize("metadata", [{}, {"version": ""}, {"version": "-1"}, {"version": "²"}])
def test_a_class_is_never_without_the_numbers_that_it_promises(metadata: dict[str, str]) -> None:
    details = trailing(info("ENTITY_NOT_FOUND", **metadata))
    error = error_of(READ, grpc.StatusCode.NOT_FOUND, "absent", details)
    assert type(error) is duostore.NotFoundError


DOMAIN_ERRORS: list[tuple[Exception, type[duostore.Error], dict[str, object]]] = [
    (
        domain.InvalidRequestError([domain.FieldViolation("key.id", "must not be empty")]),
        duostore.InvalidRequestError,
        {"field_violations": (duostore.FieldViolation("key.id", "must not be empty"),)},
    ),
    (domain.EntityNotFoundError(3), duostore.EntityNotFoundError, {"version": 3}),
    (domain.EntityExistsError(4), duostore.EntityExistsError, {"version": 4}),
    (
        domain.VersionMismatchError(2, 0),
        duostore.VersionMismatchError,
        {"expected": 2, "version": 0},
    ),
    (
        domain.MinVersionNotReachedError(9, 5),
        duostore.MinVersionNotReachedError,
        {"min_version": 9, "version": 5},
    ),
    (
        domain.StoreUnavailableError(domain.Store.AURORA),
        duostore.StoreUnavailableError,
        {"metadata": {"store": "aurora"}, "retry_after": 1},
    ),
    (
        domain.WriteOutcomeUnknownError(domain.Store.AURORA),
        duostore.WriteOutcomeUnknownError,
        {"maybe_applied": True},
    ),
    (domain.DeadlineExceededError(), duostore.DeadlineExceededError, {"maybe_applied": True}),
    (
        domain.StoreOverloadedError(domain.Store.AURORA),
        duostore.OverloadedError,
        {"maybe_applied": False, "retry_after": 1},
    ),
    (
        domain.AnswerTooLargeError(5000, 4000),
        duostore.AnswerTooLargeError,
        {"size": 5000, "limit": 4000},
    ),
    (domain.SnapshotNotFoundError(8), duostore.SnapshotNotFoundError, {"sequence": 8}),
    (domain.IdempotencyKeyReusedError(), duostore.IdempotencyKeyReusedError, {}),
    (
        domain.DuplicateInProgressError(),
        duostore.DuplicateInProgressError,
        {"maybe_applied": False},
    ),
    (domain.ReservationNotFoundError(), duostore.ReservationNotFoundError, {}),
    (
        domain.ReservationSettledError(7, 3),
        duostore.ReservationSettledError,
        {"committed": 7, "refunded": 3, "maybe_applied": False},
    ),
    (
        domain.VersionMismatchError(2, 5).at(3),
        duostore.VersionMismatchError,
        {"mutation": 3, "expected": 2},
    ),
    (domain.EntityExistsError(5), duostore.EntityExistsError, {"mutation": None}),
    (
        domain.ConstraintViolatedError("invoice_number_key").at(1),
        duostore.ConstraintViolatedError,
        {"constraint": "invoice_number_key", "mutation": 1, "maybe_applied": False},
    ),
    (domain.ConstraintViolatedError(""), duostore.ConstraintViolatedError, {"constraint": ""}),
    (
        domain.ResultTooLargeError("q", "max_rows", 1000),
        duostore.ResultTooLargeError,
        {"bound": "max_rows", "limit": 1000},
    ),
    (domain.ResultChangedError(), duostore.ResultChangedError, {}),
    (domain.QueryFailedError("q", "22012"), duostore.QueryFailedError, {"sqlstate": "22012"}),
    (domain.QueryTimeoutError("q"), duostore.QueryTimeoutError, {"metadata": {"query": "q"}}),
    (ZeroDivisionError(), duostore.InternalError, {"maybe_applied": True}),
]


@pytest.mark.parametrize(("said", "kind", "attributes"), DOMAIN_ERRORS)
def test_what_the_server_says_arrives(
    said: Exception, kind: type[duostore.Error], attributes: dict[str, object]
) -> None:
    code, status = status_of(said, "request-1")
    error = error_of(WRITE, code, status.details, status.trailing_metadata)
    assert type(error) is kind
    assert {name: getattr(error, name) for name in attributes} == attributes
    assert error.request_id == "request-1"
    assert str(error).startswith(f"{WRITE.text}: {status.details}")


REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
}


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_a_write_may_have_been_applied_unless_it_was_refused(code: grpc.StatusCode) -> None:
    error = error_of(WRITE, code, "it failed", [])
    assert error.maybe_applied is (code not in REFUSED)
    assert ("strong=True" in str(error)) is error.maybe_applied
    assert not (error.maybe_applied and isinstance(error, duostore.UnavailableError))
    assert error_of(READ, code, "it failed", []).maybe_applied is False


@pytest.mark.parametrize("call", [CONSUMPTION, RESERVING], ids=["consume", "reserve"])
@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_what_was_not_allowed_is_never_in_doubt(call: Call, code: grpc.StatusCode) -> None:
    after = call.again(error_of(call, grpc.StatusCode.UNAVAILABLE, "connection reset", []))
    for each in (call, after):
        error = error_of(each, code, "it failed", [])
        assert type(error) is BY_CODE.get(code, duostore.Error)
        assert error.maybe_applied is (each is after or code not in REFUSED), "its units"
        assert ("nothing was allowed" in str(error)) is error.maybe_applied


@pytest.mark.parametrize("kind", classes())
def test_errors_survive_pickling_and_copying(kind: type[duostore.Error]) -> None:
    error = kind(
        "it failed",
        reason="A_REASON",
        code=grpc.StatusCode.ABORTED,
        metadata=NUMBERS,
        request_id="request-1",
        retry_after=1.5,
        field_violations=[duostore.FieldViolation("a", "b")],
        maybe_applied=True,
        idempotency_key="key-1",
    )
    error.add_note("seen at three in the morning")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert other.args == error.args
        assert vars(other) == vars(error)
        assert str(other) == "it failed"


def test_only_a_refused_request_is_a_value_error() -> None:
    assert {kind.__name__ for kind in classes() if issubclass(kind, ValueError)} == {
        "InvalidRequestError",
        "IdempotencyKeyReusedError",
    }


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (WRITE, "read the entity with strong=True before you repeat it"),
        (KEYED, "repeat it with the idempotency_key of this error, and it is applied once"),
        (SNAPSHOT, "repeat it: to be stored twice does no harm"),
        (SETTLEMENT, "repeat it, and it is applied once"),
        (CONSUMPTION, "units may have been debited; repeated, they may be debited twice"),
        (RESERVING, "units may have been debited; repeat it with the idempotency_key of"),
    ],
)
def test_what_to_do_about_a_write_that_may_have_been_applied(call: Call, advice: str) -> None:
    error = error_of(call, grpc.StatusCode.DEADLINE_EXCEEDED, "too late", [])
    assert error.maybe_applied
    assert advice in str(error)
    assert error.idempotency_key == call.idempotency_key


@pytest.mark.parametrize("index", ["", "-1", "x", "²"])
def test_a_mutation_is_told_by_its_index_alone(index: str) -> None:
    details = trailing(info("ENTITY_EXISTS", version="5", mutation=index))
    error = error_of(WRITE, grpc.StatusCode.ALREADY_EXISTS, "it exists", details)
    assert isinstance(error, duostore.RefusalError)
    assert error.mutation is None


IN_DOUBT = KEYED.again(error_of(KEYED, grpc.StatusCode.UNAVAILABLE, "connection reset", []))


def test_a_try_that_may_have_been_applied_puts_the_call_in_doubt() -> None:
    refused = error_of(KEYED, grpc.StatusCode.UNAVAILABLE, "down", trailing(info("OVERLOADED")))
    assert (IN_DOUBT.tries, IN_DOUBT.in_doubt) == (2, True)
    assert (KEYED.again(refused).tries, KEYED.again(refused).in_doubt) == (2, False)
    assert IN_DOUBT.again(refused).in_doubt, "a later try takes no doubt away"


@pytest.mark.parametrize("reason", REASONS)
def test_only_what_decides_takes_the_doubt_of_an_earlier_try_away(reason: str) -> None:
    code = CODES[domain.Reason(reason)]
    error = error_of(IN_DOUBT, code, "it failed", trailing(info(reason, **NUMBERS)))
    decides = reason in {
        "ENTITY_NOT_FOUND",
        "ENTITY_EXISTS",
        "VERSION_MISMATCH",
        "CONSTRAINT_VIOLATED",
        "IDEMPOTENCY_KEY_REUSED",
        "RESERVATION_NOT_FOUND",
        "RESERVATION_SETTLED",
    }
    assert error.maybe_applied is not decides
    # Which say so by themselves. QUERY_TIMEOUT is of no write.
    unknown = {"INTERNAL", "DEADLINE_EXCEEDED", "QUERY_TIMEOUT"}
    expected = BY_REASON[reason] if decides or reason in unknown else None
    assert type(error) is (expected or duostore.WriteOutcomeUnknownError)
    assert "tried 2 times" in str(error)


def test_a_credential_that_expires_between_two_tries_does_not_decide_the_first() -> None:
    error = error_of(IN_DOUBT, grpc.StatusCode.UNAUTHENTICATED, "the token has expired", [])
    assert type(error) is duostore.WriteOutcomeUnknownError
    assert (error.maybe_applied, error.code) == (True, grpc.StatusCode.UNAUTHENTICATED)
    assert error.idempotency_key == "key-1"
