"""What Quota and SettleQuota promise, over real stores."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import pytest

from duostore import Client, ReservationSettledError, Settled
from duostore.v1 import data_access_pb2 as pb
from duostore.v1 import data_access_pb2_grpc
from tests.rpc.test_data_access import refused
from tests.support.client_commands import duostore
from tests.support.service import CALL_SECONDS
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.in_process import InProcess

LIMIT = 10
WINDOW_SECONDS = 31 * 24 * 3600
# Calls, and the clock of whoever looks at their answers.
SLACK_SECONDS = 60
AnswerT = TypeVar("AnswerT")
COUNTED = ["fixed", "sliding", "bucket"]


class Subject:
    """Somebody who uses a quota that nobody else uses."""

    def __init__(self, channel: grpc.Channel, quota: str, name: str, tenant: str = "") -> None:
        self._stub = data_access_pb2_grpc.DataAccessStub(channel)
        self._named: dict[str, Any] = {"tenant": tenant, "quota": quota, "subject": name}

    def ask(self, cost: int = 1, mode: Any = pb.MODE_CONSUME, **more: Any) -> pb.QuotaResponse:
        request = pb.QuotaRequest(**{**self._named, "cost": cost, "mode": mode, **more})
        return self._stub.Quota(request, timeout=CALL_SECONDS)

    def peek(self, cost: int = 1) -> pb.QuotaResponse:
        return self.ask(cost, pb.MODE_PEEK)

    def reserve(self, cost: int, **more: Any) -> str:
        """Reserve units, and return under which name."""
        answer = self.ask(cost, pb.MODE_RESERVE, **more)
        assert answer.allowed
        return answer.reservation

    def settle(self, reservation: str, **settlement: Any) -> pb.SettleQuotaResponse:
        values = {"tenant": self._named["tenant"], "reservation": reservation, **settlement}
        return self._stub.SettleQuota(pb.SettleQuotaRequest(**values), timeout=CALL_SECONDS)

    def left(self) -> int:
        """Return what is left, as the store knows it."""
        return self.peek().remaining


@pytest.fixture(params=COUNTED)
def quota(request: pytest.FixtureRequest) -> str:
    """A quota of each algorithm."""
    name: str = request.param
    return name


@pytest.fixture
def subject(channel: grpc.Channel, quota: str, id_: str) -> Subject:
    """Somebody who has used nothing yet."""
    return Subject(channel, quota, id_)


def seconds_until_reset(answer: pb.QuotaResponse) -> float:
    return answer.reset_time.ToNanoseconds() / 1e9 - time.time()


def answered(call: Callable[[], AnswerT]) -> AnswerT | None:
    """Return the answer; None if another call decided, or is in the way for now."""
    try:
        return call()
    except grpc.RpcError as error:
        if error.code() in {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED}:
            return None
        raise


# Consuming


def test_a_quota_is_used_up_and_then_denied(subject: Subject) -> None:
    answers = [subject.ask() for _ in range(LIMIT + 2)]
    assert [answer.allowed for answer in answers] == [True] * LIMIT + [False] * 2
    assert {answer.limit for answer in answers} == {LIMIT}
    assert [answer.remaining for answer in answers] == [*range(LIMIT - 1, -1, -1), 0, 0]
    assert not any(answer.unchecked or answer.replayed for answer in answers)
    for answer in answers:
        assert answer.HasField("retry_after") is not answer.allowed
        assert 0 < seconds_until_reset(answer) <= WINDOW_SECONDS * 61 / 60 + SLACK_SECONDS


def test_whoever_is_denied_is_told_when_to_come_again(channel: grpc.Channel, id_: str) -> None:
    waits = {}
    for quota in COUNTED:
        subject = Subject(channel, quota, id_)
        subject.ask(LIMIT)
        denied = subject.ask()
        until_reset = seconds_until_reset(denied)
        waits[quota] = denied.retry_after.ToNanoseconds() / 1e9
        assert waits[quota] <= until_reset + SLACK_SECONDS
        if quota != "bucket":
            assert waits[quota] >= until_reset - SLACK_SECONDS
    # A token is there again after a tenth of the time; of a window nothing is before its end.
    assert abs(waits["bucket"] - WINDOW_SECONDS / LIMIT) < SLACK_SECONDS
    assert abs(waits["fixed"] - (WINDOW_SECONDS - time.time() % WINDOW_SECONDS)) < SLACK_SECONDS
    assert waits["sliding"] >= WINDOW_SECONDS - SLACK_SECONDS


def test_of_many_callers_at_once_no_more_are_allowed_than_there_is_room_for(
    subject: Subject,
) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: subject.ask(), range(4 * LIMIT)))
    assert sum(answer.allowed for answer in answers) == LIMIT
    assert subject.left() == 0


def test_a_leased_quota_is_used_up_to_its_last_unit(channel: grpc.Channel, id_: str) -> None:
    subject = Subject(channel, "leased", id_)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: subject.ask(), range(150)))
    assert sum(answer.allowed for answer in answers) == 100
    assert all(answer.limit == 100 and answer.remaining < 100 for answer in answers)
    assert not subject.ask().allowed


@pytest.mark.parametrize("mode", [pb.MODE_CONSUME, pb.MODE_UNSPECIFIED])
def test_a_cost_of_0_stands_for_1(subject: Subject, mode: Any) -> None:
    assert subject.ask(0, mode).remaining == LIMIT - 1
    assert subject.ask(4, mode).remaining == LIMIT - 5


def test_what_does_not_fit_debits_nothing(subject: Subject) -> None:
    subject.ask(LIMIT - 3)
    assert not subject.ask(4).allowed
    assert subject.left() == 3
    assert subject.ask(3).allowed


@pytest.mark.parametrize("mode", [pb.MODE_CONSUME, pb.MODE_PEEK, pb.MODE_RESERVE])
def test_what_can_never_fit_is_denied_for_good(subject: Subject, mode: Any) -> None:
    for cost in (LIMIT + 1, 2**63 - 1):
        answer = subject.ask(cost, mode)
        assert not answer.allowed
        assert not answer.HasField("retry_after")
        assert answer.limit == LIMIT
    assert subject.left() == LIMIT


def test_subjects_tenants_and_quotas_are_counted_apart(channel: grpc.Channel, id_: str) -> None:
    Subject(channel, "fixed", id_).ask(LIMIT)
    for other in (
        Subject(channel, "fixed", f"{id_}#"),
        Subject(channel, "fixed", id_, "acme"),
        Subject(channel, "sliding", id_),
    ):
        assert other.left() == LIMIT
    assert Subject(channel, "fixed", id_).left() == 0


@pytest.mark.parametrize(("tenant", "limit"), [("", 20), ("acme", 5), ("other", 20)])
def test_a_limit_may_be_another_for_some(channel: grpc.Channel, tenant: str, limit: int) -> None:
    subject = Subject(channel, "fixed", "vip", tenant)
    answer = subject.peek(limit)
    assert (answer.limit, answer.allowed) == (limit, True)
    assert not subject.peek(limit + 1).allowed


# Peeking


def test_peeking_debits_nothing(subject: Subject) -> None:
    assert [subject.peek(LIMIT).allowed for _ in range(3)] == [True] * 3
    subject.ask(4)
    answers = [subject.peek(LIMIT - 4), subject.peek(LIMIT - 3)]
    assert [answer.allowed for answer in answers] == [True, False]
    assert [answer.remaining for answer in answers] == [LIMIT - 4] * 2
    assert [answer.HasField("retry_after") for answer in answers] == [False, True]


# Reservations


def test_a_reservation_is_committed_for_less(subject: Subject) -> None:
    began = time.time()
    answer = subject.ask(6, pb.MODE_RESERVE)
    assert (answer.allowed, answer.remaining, subject.left()) == (True, LIMIT - 6, LIMIT - 6)
    # A minute by default.
    assert 0 <= answer.expire_time.ToNanoseconds() / 1e9 - began - 60 < SLACK_SECONDS
    settled = subject.settle(answer.reservation, cost=2)
    assert settled == pb.SettleQuotaResponse(committed=2, refunded=4, covered=True)
    assert subject.left() == LIMIT - 2
    assert subject.ask(LIMIT - 2).allowed


def test_a_reservation_is_committed_as_it_is(subject: Subject) -> None:
    settled = subject.settle(subject.reserve(6), cost=6)
    assert settled == pb.SettleQuotaResponse(committed=6, covered=True)
    assert subject.left() == LIMIT - 6


def test_more_may_be_committed_if_there_is_room(subject: Subject) -> None:
    settled = subject.settle(subject.reserve(4), cost=9)
    assert settled == pb.SettleQuotaResponse(committed=9, covered=True)
    assert subject.left() == 1


def test_what_there_is_no_room_for_is_not_committed(subject: Subject) -> None:
    reservation = subject.reserve(4)
    subject.ask(3)
    short = subject.settle(reservation, cost=8)
    assert short == pb.SettleQuotaResponse(committed=4, covered=False)
    assert subject.left() == LIMIT - 7
    again = subject.settle(reservation, cost=8)
    assert again == pb.SettleQuotaResponse(committed=4, covered=False, replayed=True)


@pytest.mark.parametrize("settlement", [{"release": True}, {"cost": 0}], ids=["release", "cost 0"])
def test_all_of_a_reservation_is_given_back(subject: Subject, settlement: dict[str, Any]) -> None:
    settled = subject.settle(subject.reserve(LIMIT), **settlement)
    assert settled == pb.SettleQuotaResponse(refunded=LIMIT, covered=True)
    assert subject.left() == LIMIT
    assert subject.ask(LIMIT).allowed


def test_a_denial_does_not_outlast_a_release(subject: Subject) -> None:
    reservation = subject.reserve(LIMIT)
    assert [subject.ask().allowed for _ in range(3)] == [False] * 3
    subject.settle(reservation, release=True)
    assert subject.ask().allowed


@pytest.mark.parametrize("settlement", [{"release": True}, {"cost": 2}, {"cost": 7}])
def test_a_reservation_is_settled_once(subject: Subject, settlement: dict[str, Any]) -> None:
    reservation = subject.reserve(6)
    first = subject.settle(reservation, **settlement)
    assert first.replayed is False
    left = subject.left()
    for _ in range(2):
        again = subject.settle(reservation, **settlement)
        assert again.replayed
        again.replayed = False
        assert again == first
    for other in ({"cost": 3}, {"cost": 6}):
        with refused() as refusal:
            subject.settle(reservation, **other)
        assert (refusal.code, refusal.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "RESERVATION_SETTLED",
        )
        assert refusal.metadata == {
            "committed": str(first.committed),
            "refunded": str(first.refunded),
        }
        assert refusal.subjects == ["reservation"]
    assert subject.left() == left


def test_of_many_settlements_at_once_one_is_made(subject: Subject) -> None:
    reservation = subject.reserve(LIMIT)

    with ThreadPoolExecutor(10) as pool:
        settled = pool.map(
            lambda n: answered(lambda: subject.settle(reservation, cost=n % 5)), range(20)
        )
        [made] = [answer for answer in settled if answer is not None and not answer.replayed]
    assert made.committed + made.refunded == LIMIT
    assert subject.left() == LIMIT - made.committed


def test_reservations_are_settled_one_by_one(subject: Subject) -> None:
    first, second, third = subject.reserve(2), subject.reserve(3), subject.reserve(4)
    assert len({first, second, third}) == 3
    subject.settle(first, cost=1)
    assert subject.left() == LIMIT - 1 - 3 - 4
    subject.settle(second, release=True)
    subject.settle(third, cost=4)
    assert subject.left() == LIMIT - 1 - 4


def test_out_of_their_order_no_more_is_given_back_than_was_held(
    subject: Subject, quota: str
) -> None:
    first, second, third = subject.reserve(2), subject.reserve(3), subject.reserve(4)
    for reservation in (third, second, first):
        subject.settle(reservation, release=True)
    # A bucket gives back what it surely can: spans of time that are still to come.
    least = 4 if quota == "bucket" else LIMIT
    assert least <= subject.left() <= LIMIT
    assert sum(subject.ask().allowed for _ in range(2 * LIMIT)) <= LIMIT


def not_found(settle: Callable[[], object]) -> None:
    with refused() as refusal:
        settle()
    assert (refusal.code, refusal.reason, refusal.metadata) == (
        grpc.StatusCode.NOT_FOUND,
        "RESERVATION_NOT_FOUND",
        {},
    )


def test_a_reservation_that_there_is_not_is_not_found(subject: Subject, id_: str) -> None:
    not_found(lambda: subject.settle(id_, cost=1))
    not_found(lambda: subject.settle("…", release=True))


def test_a_reservation_is_of_its_tenant(channel: grpc.Channel, quota: str, id_: str) -> None:
    acme, other = (Subject(channel, quota, id_, tenant) for tenant in ("acme", "other"))
    reservation = acme.reserve(6)
    not_found(lambda: other.settle(reservation, release=True))
    assert acme.left() == LIMIT - 6
    assert acme.settle(reservation, release=True).refunded == 6


def expired(subject: Subject, cost: int) -> str:
    """Return a reservation that has expired."""
    answer = subject.ask(cost, pb.MODE_RESERVE)
    assert answer.allowed
    expire_time = answer.expire_time.ToNanoseconds()
    eventually(lambda: time.time_ns() >= expire_time, within=10, what="it has expired")
    return answer.reservation


def test_an_expired_reservation_counts_as_used(channel: grpc.Channel, id_: str) -> None:
    subject = Subject(channel, "brief", id_)
    reservation = expired(subject, 6)
    not_found(lambda: subject.settle(reservation, cost=1))
    not_found(lambda: subject.settle(reservation, release=True))
    assert subject.left() == LIMIT - 6
    assert not subject.ask(LIMIT - 5).allowed


def test_an_expired_reservation_is_released_if_so_configured(
    channel: grpc.Channel, id_: str
) -> None:
    subject = Subject(channel, "returned", id_)
    reservation = subject.reserve(6)
    assert not subject.ask(LIMIT - 5).allowed
    eventually(
        lambda: subject.peek(LIMIT).allowed, within=20, what="what it held is available again"
    )
    assert subject.ask(LIMIT).allowed
    not_found(lambda: subject.settle(reservation, cost=6))
    assert subject.left() == 0


def test_what_was_settled_in_time_stays_settled(channel: grpc.Channel, id_: str) -> None:
    subject = Subject(channel, "returned", id_)
    answer = subject.ask(6, pb.MODE_RESERVE)
    subject.settle(answer.reservation, cost=5)
    expire_time = answer.expire_time.ToNanoseconds()
    eventually(lambda: time.time_ns() >= expire_time, within=10, what="it would have expired")
    assert subject.settle(answer.reservation, cost=5).replayed
    assert subject.left() == LIMIT - 5


# Repetitions


def test_a_debit_with_a_key_is_made_once(subject: Subject, id_: str) -> None:
    answers = [subject.ask(3, idempotency_key=id_) for _ in range(3)]
    assert [answer.allowed for answer in answers] == [True] * 3
    assert [answer.replayed for answer in answers] == [False, True, True]
    assert [answer.remaining for answer in answers] == [LIMIT - 3] * 3
    subject.ask(LIMIT - 3)
    late = subject.ask(3, idempotency_key=id_)
    assert (late.allowed, late.replayed, late.remaining) == (True, True, 0)


def test_of_many_debits_with_one_key_one_is_made(subject: Subject, id_: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: answered(lambda: subject.ask(3, idempotency_key=id_)), range(16))
        answers = [answer for answer in found if answer is not None]
    assert all(answer.allowed for answer in answers)
    assert sum(not answer.replayed for answer in answers) == 1
    assert subject.left() == LIMIT - 3


def test_a_reservation_with_a_key_is_made_once(subject: Subject, id_: str) -> None:
    first, again = (subject.ask(6, pb.MODE_RESERVE, idempotency_key=id_) for _ in range(2))
    assert (again.reservation, again.expire_time) == (first.reservation, first.expire_time)
    assert (first.replayed, again.replayed) == (False, True)
    assert subject.settle(first.reservation, cost=2).committed == 2
    assert subject.left() == LIMIT - 2


def test_a_denial_is_not_remembered(subject: Subject, id_: str) -> None:
    reservation = subject.reserve(LIMIT)
    assert not subject.ask(3, idempotency_key=id_).allowed
    subject.settle(reservation, release=True)
    answer = subject.ask(3, idempotency_key=id_)
    assert (answer.allowed, answer.replayed, answer.remaining) == (True, False, LIMIT - 3)


@pytest.mark.parametrize(
    "other",
    [
        {"cost": 4},
        {"cost": 3, "mode": pb.MODE_RESERVE},
        {"cost": 3, "subject": "somebody else"},
        {"cost": 3, "quota": "leased"},
        {"cost": LIMIT + 1},
    ],
    ids=["cost", "mode", "subject", "quota", "never"],
)
def test_a_key_is_not_for_two_requests(subject: Subject, id_: str, other: dict[str, Any]) -> None:
    subject.ask(3, idempotency_key=id_)
    with refused() as refusal:
        subject.ask(idempotency_key=id_, **other)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "IDEMPOTENCY_KEY_REUSED",
    )
    assert list(refusal.fields) == ["idempotency_key"]
    assert subject.left() == LIMIT - 3


def test_each_tenant_has_keys_of_its_own(channel: grpc.Channel, quota: str, id_: str) -> None:
    for tenant in ("acme", "other"):
        subject = Subject(channel, quota, id_, tenant)
        assert not subject.ask(3, idempotency_key=id_).replayed
        assert subject.left() == LIMIT - 3


# By the client and the command line


def test_the_client_and_the_service_mean_the_same(api: InProcess, quota: str, id_: str) -> None:
    with Client(api.target) as client:
        assert client.quota(quota, id_, 3, idempotency_key=id_)
        assert client.quota(quota, id_, 3, idempotency_key=id_).replayed
        with client.reserve_quota(quota, id_, 6) as reservation:
            assert not client.reserve_quota(quota, id_, 2)
            assert reservation.commit(2) == Settled(2, 4, covered=True)
        with client.reserve_quota(quota, id_, 5):
            pass
        decision = client.peek_quota(quota, id_, 6)
        assert (decision.allowed, decision.remaining, decision.limit) == (False, 5, LIMIT)
        assert decision.retry_after is not None
        assert decision.reset_time is not None
        with pytest.raises(ReservationSettledError) as raised:
            client.settle_quota(reservation.id, release=True)
    assert (raised.value.committed, raised.value.refunded) == (2, 4)


def test_the_command_line_and_the_service_mean_the_same(
    api: InProcess, quota: str, id_: str
) -> None:
    command = ("quota", quota, id_, "--target", api.target)
    reserved = duostore(*command, "--cost", "6", "--reserve", "--json")
    assert reserved.exit_code == 0
    assert duostore(*command, "--cost", "5").exit_code == 4
    reservation = json.loads(reserved.stdout)["reservation"]
    settled = duostore("settle", reservation, "--cost", "12", "--json", "--target", api.target)
    assert (settled.exit_code, json.loads(settled.stdout)["committed"]) == (4, 6)
    assert duostore("settle", reservation, "--release", "--target", api.target).exit_code == 1
    allowed = duostore(*command, "--cost", "4")
    assert (allowed.exit_code, allowed.stdout.splitlines()[0]) == (0, "allowed: 0 of 10 left")


# Bad input


@pytest.mark.parametrize(
    ("request_", "field", "told"),
    [
        ({"quota": "fxied"}, "quota", "bucket, fixed, leased"),
        ({"quota": ""}, "quota", "must not be empty"),
        ({"subject": ""}, "subject", "must not be empty"),
        ({"subject": "a\nb"}, "subject", "control"),
        ({"subject": "x" * 257}, "subject", "256"),
        ({"tenant": "a#b"}, "tenant", "#"),
        ({"cost": -1}, "cost", "is -1"),
        ({"mode": 9}, "mode", "is 9"),
        ({"idempotency_key": "x" * 129}, "idempotency_key", "128"),
        ({"mode": pb.MODE_PEEK, "idempotency_key": "k"}, "idempotency_key", "MODE_PEEK"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_its_field(
    channel: grpc.Channel, request_: dict[str, Any], field: str, told: str
) -> None:
    subject = Subject(channel, "fixed", "ann")
    with refused() as refusal:
        subject.ask(**request_)
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert list(refusal.fields) == [field]
    assert told in refusal.fields[field]


def test_all_that_is_wrong_is_told_at_once(channel: grpc.Channel) -> None:
    subject = Subject(channel, "fixed", "")
    with refused() as refusal:
        subject.ask(-1, quota="none", tenant="#", idempotency_key="\n")
    assert set(refusal.fields) == {"tenant", "quota", "subject", "cost", "idempotency_key"}


@pytest.mark.parametrize(
    ("settlement", "field"),
    [
        ({}, "settlement"),
        ({"cost": -1}, "cost"),
        ({"release": False}, "release"),
        ({"cost": 1, "reservation": ""}, "reservation"),
        ({"cost": 1, "reservation": "x" * 257}, "reservation"),
        ({"cost": 1, "tenant": "#"}, "tenant"),
    ],
)
def test_what_settles_nothing_is_refused_by_its_field(
    channel: grpc.Channel, id_: str, settlement: dict[str, Any], field: str
) -> None:
    subject = Subject(channel, "fixed", id_)
    reservation = subject.reserve(6)
    with refused() as refusal:
        subject.settle(**{"reservation": reservation, **settlement})
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    )
    assert list(refusal.fields) == [field]
    assert subject.settle(reservation, release=True).replayed is False
