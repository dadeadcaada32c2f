"""Quotas and reservations: what the client sends, and what it makes of the answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from duostore import (
    Client,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    QuotaDecision,
    QuotaDeniedError,
    ReservationNotFoundError,
    ReservationSettledError,
    Settled,
    StoreUnavailableError,
    UnavailableError,
    WriteOutcomeUnknownError,
)
from duostore.v1 import data_access_pb2 as pb
from tests.support.ports import free_port
from tests.support.scripted_service import (
    DIRECT,
    UNAVAILABLE,
    ScriptedService,
    client_of,
    hold,
    reason,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

RESET = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
RESET_NS = 1_767_323_046_000_000_000

UNCHECKED = pb.QuotaResponse(allowed=True, limit=1000, unchecked=True)
COMMITTED = pb.SettleQuotaResponse(committed=30, refunded=10, covered=True)
RELEASED = pb.SettleQuotaResponse(committed=0, refunded=40, covered=True)
# As a connection that is gone looks to gRPC.
CUT = status(grpc.StatusCode.UNAVAILABLE, "connection reset")
OVERLOADED = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", reason("OVERLOADED"))
ASKING = [Client.quota, Client.peek_quota, Client.reserve_quota]


def told(*, reset: int = RESET_NS, retry: int | None = None, **fields: Any) -> pb.QuotaResponse:
    response = pb.QuotaResponse(limit=1000, remaining=7, **fields)
    response.reset_time.FromNanoseconds(reset)
    if retry is not None:
        response.retry_after.FromNanoseconds(retry)
    return response


def reserved(**fields: Any) -> pb.QuotaResponse:
    response = told(allowed=True, reservation="r1", **fields)
    response.expire_time.FromNanoseconds(RESET_NS - 1)
    return response


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


def test_what_is_allowed_is_true_and_what_is_denied_is_false(service: ScriptedService) -> None:
    service.script("Quota", told(allowed=True), told(allowed=False, retry=1_500_000_000))
    with client_of(service) as client:
        allowed = client.quota("api_calls", "ann")
        denied = client.quota("api_calls", "ann", 40, tenant="acme", idempotency_key="k")
    assert allowed
    assert allowed == QuotaDecision(True, 1000, 7, RESET)  # noqa: FBT003 - as named
    assert not denied
    assert (denied.allowed, denied.retry_after) == (False, timedelta(seconds=1.5))
    assert [json_format.MessageToDict(asked.request) for asked in service.asked] == [
        {"quota": "api_calls", "subject": "ann", "cost": "1", "mode": "MODE_CONSUME"},
        {
            "tenant": "acme",
            "quota": "api_calls",
            "subject": "ann",
            "cost": "40",
            "mode": "MODE_CONSUME",
            "idempotencyKey": "k",
        },
    ]


def test_times_are_never_told_too_early(service: ScriptedService) -> None:
    service.script(
        "Quota",
        told(allowed=False, reset=RESET_NS - 999, retry=1),
        told(allowed=False, reset=RESET_NS - 1000, retry=1000),
        told(allowed=False, reset=RESET_NS, retry=0),
    )
    microsecond = timedelta(microseconds=1)
    with client_of(service) as client:
        found = [client.quota("api_calls", "ann") for _ in range(3)]
    assert [decision.reset_time for decision in found] == [RESET, RESET - microsecond, RESET]
    assert [decision.retry_after for decision in found] == [
        microsecond,
        microsecond,
        timedelta(0),
    ]


def test_what_is_not_known_is_none(service: ScriptedService) -> None:
    never = pb.QuotaResponse(allowed=False, limit=1000)
    service.script("Quota", UNCHECKED, never, told(allowed=True, replayed=True))
    with client_of(service) as client:
        unchecked = client.quota("api_calls", "ann")
        denied = client.quota("api_calls", "ann", 1001)
        replayed = client.quota("api_calls", "ann", idempotency_key="k")
    assert unchecked == QuotaDecision(True, 1000, 0, None, unchecked=True)  # noqa: FBT003 - as above
    assert denied == QuotaDecision(False, 1000, 0, None)  # noqa: FBT003 - as above
    assert replayed.replayed


def test_peeking_debits_nothing(service: ScriptedService) -> None:
    service.script("Quota", told(allowed=True))
    with client_of(service) as client:
        assert client.peek_quota("api_calls", "ann", 9, tenant="acme")
    assert json_format.MessageToDict(service.asked[0].request) == {
        "tenant": "acme",
        "quota": "api_calls",
        "subject": "ann",
        "cost": "9",
        "mode": "MODE_PEEK",
    }


@pytest.mark.parametrize("cost", [0, -1])
@pytest.mark.parametrize("ask", ASKING)
def test_a_cost_of_nothing_is_not_sent_as_one_of_one(
    service: ScriptedService, ask: Callable[..., object], cost: int
) -> None:
    with client_of(service) as client, pytest.raises(InvalidRequestError) as raised:
        ask(client, "api_calls", "ann", cost)
    [violation] = raised.value.field_violations
    assert violation == FieldViolation("cost", f"is {cost}; it must be at least 1")
    assert service.asked == []


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"quota": 7}, "quota is 7, of type int; send a str"),
        ({"subject": 7}, r"subject is 7, of type int; send a str .*str\(number\)"),
        ({"subject": b"ann"}, "subject is b'ann', of type bytes; send a str"),
        ({"tenant": None}, "tenant is None, of type NoneType; send a str"),
        ({"cost": "1"}, "cost is '1', of type str; send an int"),
        ({"cost": 1.5}, "cost is 1.5, of type float; send an int"),
        ({"cost": True}, "cost is True, of type bool; send an int"),
        ({"cost": None}, "cost is None, of type NoneType; send an int"),
    ],
)
def test_an_argument_of_another_type_is_refused_by_its_name(
    service: ScriptedService, ask: Callable[..., object], arguments: dict[str, Any], problem: str
) -> None:
    with client_of(service) as client, pytest.raises(TypeError, match=f"^{problem}"):
        ask(client, **{"quota": "api_calls", "subject": "ann", **arguments})
    assert service.asked == []


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    ("arguments", "violation"),
    [
        (
            {"subject": "an\udcffn"},
            FieldViolation(
                "subject", "is a string that is not Unicode: a lone surrogate at position 2"
            ),
        ),
        (
            {"tenant": "\ud800"},
            FieldViolation(
                "tenant", "is a string that is not Unicode: a lone surrogate at position 0"
            ),
        ),
        (
            {"cost": 2**63},
            FieldViolation("cost", "is 9223372036854775808; it must be below 2^63"),
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_by_its_name(
    service: ScriptedService,
    ask: Callable[..., object],
    arguments: dict[str, Any],
    violation: FieldViolation,
) -> None:
    with client_of(service) as client, pytest.raises(InvalidRequestError) as raised:
        ask(client, **{"quota": "api_calls", "subject": "ann", **arguments})
    assert raised.value.field_violations == (violation,)
    assert service.asked == []


def test_the_largest_cost_is_sent(service: ScriptedService) -> None:
    service.script("Quota", told(allowed=False))
    with client_of(service) as client:
        client.quota("api_calls", "ann", 2**63 - 1)
    assert service.asked[0].request.cost == 2**63 - 1


def test_an_idempotency_key_is_a_string_too(service: ScriptedService) -> None:
    key: Any = 17
    with client_of(service) as client:
        for ask in (client.quota, client.reserve_quota):
            with pytest.raises(TypeError, match=r"^idempotency_key is 17, of type int"):
                ask("api_calls", "ann", idempotency_key=key)
    assert service.asked == []


@pytest.mark.parametrize(
    ("failure", "kind", "maybe"),
    [
        (UNAVAILABLE, StoreUnavailableError, True),
        (OVERLOADED, OverloadedError, False),
        (CUT, UnavailableError, True),
        (status(grpc.StatusCode.INTERNAL, "a fault"), InternalError, True),
    ],
    ids=["store", "overload", "connection", "fault"],
)
def test_a_debit_is_not_repeated_unasked(
    service: ScriptedService, failure: Message, kind: type[Any], maybe: Any
) -> None:
    service.script("Quota", failure, told(allowed=True))
    with client_of(service) as client, pytest.raises(kind) as raised:
        client.quota("api_calls", "ann")
    assert [asked.request.idempotency_key for asked in service.asked] == [""]
    assert type(raised.value) is kind
    assert raised.value.maybe_applied is maybe, "its units"
    advice = (
        "; nothing was allowed, but its units may have been debited; repeated, they may be"
        " debited twice, but not if both calls have one idempotency_key ("
    )
    assert (advice in str(raised.value)) is maybe


@pytest.mark.parametrize("ask", ASKING)
def test_a_limiter_learns_of_a_server_that_is_away_by_one_error(
    service: ScriptedService, ask: Callable[..., object]
) -> None:
    with Client(f"127.0.0.1:{free_port()}", options=[DIRECT], timeout=0.3) as client:
        with pytest.raises(UnavailableError) as refused:
            ask(client, "api_calls", "ann")
        assert refused.value.reason == "", "no server said so"
    # So many that the tries end before the time: what is raised is the last one's.
    service.script("Quota", *[CUT] * 9)
    with client_of(service, timeout=0.3) as client, pytest.raises(UnavailableError) as cut:
        ask(client, "api_calls", "ann")
    assert type(cut.value) is UnavailableError
    assert cut.value.maybe_applied is (ask is not Client.peek_quota)


@pytest.mark.parametrize("ask", ASKING)
def test_a_server_that_does_not_answer_costs_a_limiter_its_timeout(
    service: ScriptedService, ask: Callable[..., object]
) -> None:
    service.script("Quota", hold)
    with client_of(service) as client, pytest.raises(DeadlineExceededError):
        ask(client, "api_calls", "ann", timeout=0.1)
    assert service.asked[0].remaining < 1


def test_what_became_of_an_earlier_try_does_not_change_the_error(service: ScriptedService) -> None:
    service.script("Quota", CUT, OVERLOADED)
    with client_of(service) as client, pytest.raises(OverloadedError) as raised:
        client.reserve_quota("ai_tokens", "ann", 40, idempotency_key="k")
    assert (raised.value.maybe_applied, raised.value.idempotency_key) == (True, "k")
    assert "repeat it with the idempotency_key of this error" in str(raised.value)


def test_a_settlement_that_was_cut_off_is_in_doubt(service: ScriptedService) -> None:
    service.script("SettleQuota", *[CUT] * 9)
    with (
        client_of(service, timeout=0.3) as client,
        pytest.raises(WriteOutcomeUnknownError, match="repeat it, and it is applied once"),
    ):
        client.settle_quota("r1", cost=1)


@pytest.mark.parametrize("failure", [UNAVAILABLE, CUT], ids=["store", "connection"])
def test_a_debit_with_a_key_is_repeated(service: ScriptedService, failure: Message) -> None:
    service.script("Quota", failure, told(allowed=True))
    with client_of(service) as client:
        assert client.quota("api_calls", "ann", idempotency_key="k")
    assert [asked.request.idempotency_key for asked in service.asked] == ["k", "k"]


def test_a_reservation_that_may_be_held_unseen_is_not_repeated_without_key(
    service: ScriptedService,
) -> None:
    service.script("Quota", CUT, reserved())
    with client_of(service) as client, pytest.raises(UnavailableError) as raised:
        client.reserve_quota("tokens", "ann", 40, idempotency_key="")
    assert len(service.asked) == 1
    assert "may be debited twice" in str(raised.value)


def test_what_was_reserved_under_the_key_of_a_job_is_told_once_committed(
    service: ScriptedService,
) -> None:
    done = status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "the reservation was settled before: 30 committed, 10 refunded",
        reason("RESERVATION_SETTLED", committed="30", refunded="10"),
    )
    service.script("Quota", reserved(replayed=True), CUT, done)
    with client_of(service) as client:
        again = client.reserve_quota("tokens", "ann", 40, idempotency_key="job-17")
        assert (again.id, again.decision.replayed) == ("r1", True)
        with pytest.raises(ReservationSettledError) as raised:
            client.reserve_quota("tokens", "ann", 40, idempotency_key="job-17")
    assert (raised.value.committed, raised.value.maybe_applied) == (30, False)


def test_a_reservation_is_committed(service: ScriptedService) -> None:
    service.script("Quota", reserved())
    service.script("SettleQuota", COMMITTED)
    with (
        client_of(service) as client,
        client.reserve_quota("tokens", "ann", 40, tenant="acme") as reservation,
    ):
        assert reservation
        assert (reservation.id, reservation.cost) == ("r1", 40)
        assert reservation.expire_time == RESET - timedelta(microseconds=1), "never too late"
        assert reservation.decision == QuotaDecision(True, 1000, 7, RESET)  # noqa: FBT003 - as above
        assert reservation.commit(30) == Settled(30, 10, covered=True)
        assert "'r1' of reserve_quota('tokens', 'ann', 40, tenant='acme')" in repr(reservation)
    reserve, commit = (asked.request for asked in service.asked)
    assert reserve.mode == pb.MODE_RESERVE
    assert json_format.MessageToDict(commit) == {
        "tenant": "acme",
        "reservation": "r1",
        "cost": "30",
    }


def test_all_is_committed_if_it_is_not_said_how_much(service: ScriptedService) -> None:
    service.script("Quota", reserved(), reserved())
    service.script("SettleQuota", COMMITTED, COMMITTED)
    with client_of(service) as client:
        client.reserve_quota("tokens", "ann", 40).commit()
        client.reserve_quota("tokens", "ann", 40).commit(0)
    sent = [asked.request for asked in service.asked if asked.method == "SettleQuota"]
    assert [(request.cost, request.HasField("cost")) for request in sent] == [(40, True), (0, True)]


def test_what_is_left_uncommitted_is_released(service: ScriptedService) -> None:
    service.script("Quota", reserved())
    service.script("SettleQuota", RELEASED)
    with client_of(service) as client, client.reserve_quota("tokens", "ann", 40, tenant="acme"):
        pass
    assert json_format.MessageToDict(service.asked[1].request) == {
        "tenant": "acme",
        "reservation": "r1",
        "release": True,
    }


def test_a_failure_releases_too_and_is_what_is_raised(service: ScriptedService) -> None:
    service.script("Quota", reserved(), reserved())
    service.script("SettleQuota", RELEASED, OVERLOADED)
    with client_of(service) as client:
        with pytest.raises(ZeroDivisionError), client.reserve_quota("tokens", "ann", 40):
            _ = 1 / 0
        with pytest.raises(ZeroDivisionError) as raised, client.reserve_quota("tokens", "ann", 40):
            _ = 1 / 0
    assert [asked.request.release for asked in service.asked if asked.method == "SettleQuota"] == [
        True,
        True,
    ]
    [note] = raised.value.__notes__
    assert note.startswith("its reservation was not released: settle_quota('r1', release=True): ")


def test_a_release_that_failed_is_told_if_nothing_else_is(service: ScriptedService) -> None:
    service.script("Quota", reserved())
    service.script("SettleQuota", OVERLOADED)
    with (
        client_of(service) as client,
        pytest.raises(OverloadedError, match=r"^settle_quota\('r1', release=True\)"),
        client.reserve_quota("tokens", "ann", 40),
    ):
        pass


GONE = status(grpc.StatusCode.NOT_FOUND, "it has expired", reason("RESERVATION_NOT_FOUND"))
SETTLED = status(
    grpc.StatusCode.FAILED_PRECONDITION,
    "the reservation was settled before",
    reason("RESERVATION_SETTLED", committed="40", refunded="0"),
)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(GONE, ReservationNotFoundError), (SETTLED, ReservationSettledError)],
    ids=["expired", "settled"],
)
def test_a_block_ends_quietly_if_nothing_is_held_any_more(
    service: ScriptedService, answer: Message, kind: type[Exception]
) -> None:
    service.script("Quota", *[reserved()] * 4)
    service.script("SettleQuota", *[answer] * 4)
    with client_of(service) as client:
        with client.reserve_quota("tokens", "ann", 40):
            pass
        with pytest.raises(ZeroDivisionError) as raised, client.reserve_quota("tokens", "ann", 40):
            _ = 1 / 0
        assert not hasattr(raised.value, "__notes__")
        # What was asked for in so many words is told.
        with pytest.raises(kind):
            client.reserve_quota("tokens", "ann", 40).release()
        with pytest.raises(kind), client.reserve_quota("tokens", "ann", 40) as reservation:
            reservation.commit(30)
    assert sum(asked.method == "SettleQuota" for asked in service.asked) == 4


def test_what_was_used_is_not_released_though_its_commit_failed(service: ScriptedService) -> None:
    service.script("Quota", reserved())
    service.script("SettleQuota", status(grpc.StatusCode.INTERNAL, "a fault"), RELEASED)
    with (
        client_of(service) as client,
        pytest.raises(InternalError, match="repeat it, and it is applied once"),
        client.reserve_quota("tokens", "ann", 40) as reservation,
    ):
        reservation.commit(30)
    assert [asked.request.WhichOneof("settlement") for asked in service.asked[1:]] == ["cost"]


def test_a_reservation_that_was_denied_is_false_and_cannot_be_used(
    service: ScriptedService,
) -> None:
    never = pb.QuotaResponse(allowed=False, limit=10)
    service.script("Quota", told(allowed=False, retry=1_500_000_000), never)
    with client_of(service) as client:
        denied = client.reserve_quota("tokens", "ann", 40)
        with pytest.raises(QuotaDeniedError, match="above its limit") as hopeless:
            client.reserve_quota("tokens", "ann", 40).commit()
        assert not denied
        assert (denied.id, denied.expire_time) == ("", None)
        with pytest.raises(QuotaDeniedError, match=r"retry after 1\.5 s") as raised, denied:
            pytest.fail("the block was entered")
        assert denied.release() == Settled(0, 0, covered=True)
    assert (raised.value.retry_after, hopeless.value.retry_after) == (1.5, None)
    assert raised.value.maybe_applied is False
    assert [asked.method for asked in service.asked] == ["Quota", "Quota"]


def test_nothing_is_settled_of_what_was_allowed_unchecked(service: ScriptedService) -> None:
    service.script("Quota", UNCHECKED, UNCHECKED)
    with client_of(service) as client:
        with client.reserve_quota("tokens", "ann", 40) as reservation:
            assert reservation.commit(50) == Settled(0, 0, covered=True)
        with client.reserve_quota("tokens", "ann", 40):
            pass
    assert [asked.method for asked in service.asked] == ["Quota", "Quota"]


def test_a_reservation_without_a_name_is_refused(service: ScriptedService) -> None:
    service.script("Quota", told(allowed=True))
    with client_of(service) as client, pytest.raises(InternalError, match="under which name"):
        client.reserve_quota("tokens", "ann", 40)


def test_a_reservation_is_settled_from_elsewhere(service: ScriptedService) -> None:
    short = pb.SettleQuotaResponse(committed=40, covered=False, replayed=True)
    service.script("SettleQuota", short, RELEASED)
    with client_of(service) as client:
        assert client.settle_quota("r1", cost=50) == Settled(40, 0, covered=False, replayed=True)
        client.settle_quota("r1", release=True, tenant="acme")
    assert [json_format.MessageToDict(asked.request) for asked in service.asked] == [
        {"reservation": "r1", "cost": "50"},
        {"tenant": "acme", "reservation": "r1", "release": True},
    ]


def test_a_settlement_is_one_thing_or_the_other(service: ScriptedService) -> None:
    with client_of(service) as client:
        with pytest.raises(InvalidRequestError, match="release: excludes cost"):
            client.settle_quota("r1", cost=0, release=True)
        with pytest.raises(InvalidRequestError, match="cost: is required, or release=True"):
            client.settle_quota("r1")
        for cost, problem in ((-1, "at least 0"), (2**63, r"below 2\^63")):
            with pytest.raises(InvalidRequestError, match=f"cost: is {cost}; it must be {problem}"):
                client.settle_quota("r1", cost=cost)
        wrong: Any = client
        for arguments in ({"cost": 1.0}, {"reservation": 7}, {"tenant": b""}):
            (name,) = arguments
            with pytest.raises(TypeError, match=f"^{name} is "):
                wrong.settle_quota(**{"reservation": "r1", "cost": 1, **arguments})
    assert service.asked == []


def test_what_settled_it_before_is_told(service: ScriptedService) -> None:
    before = status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "the reservation was settled before: 30 committed, 10 refunded",
        reason("RESERVATION_SETTLED", committed="30", refunded="10"),
    )
    service.script("SettleQuota", CUT, before)
    with client_of(service) as client, pytest.raises(ReservationSettledError) as raised:
        client.settle_quota("r1", cost=31)
    error = raised.value
    assert (error.committed, error.refunded) == (30, 10)
    assert error.maybe_applied is False, "nor was the try that was cut off applied"
