"""`duostore quota` and `duostore settle`: what they send, print and end with."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format

from duostore.v1 import data_access_pb2 as pb
from tests.support.client_commands import duostore
from tests.support.recording_service import (
    RecordingService,
    Served,
    invalid,
    serving,
    status,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

RESET = "2026-01-02T03:04:06Z"
LOST = status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", "DEADLINE_EXCEEDED")


@pytest.fixture
def service() -> RecordingService:
    return RecordingService()


@pytest.fixture
def served(service: RecordingService) -> Iterator[Served]:
    with serving(service) as served:
        yield served


def decision(**fields: Any) -> pb.QuotaResponse:
    values = {"limit": "1000", "remaining": "7", "resetTime": RESET, **fields}
    return json_format.ParseDict(values, pb.QuotaResponse())


def test_what_is_allowed_ends_with_0(service: RecordingService, served: Served) -> None:
    service.decision = decision(allowed=True)
    ran = duostore("quota", "api_calls", "Zoë", "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "allowed: 7 of 1000 left",
        f"all that is used is available again at {RESET}",
    ]
    assert json_format.MessageToDict(service.asked[0].request) == {
        "quota": "api_calls",
        "subject": "Zoë",
        "cost": "1",
        "mode": "MODE_CONSUME",
    }


def test_what_is_denied_ends_with_4(service: RecordingService, served: Served) -> None:
    service.decision = decision(allowed=False, retryAfter="1.500000001s")
    ran = duostore("quota", "api_calls", "ann", "--cost", "40", "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (4, "")
    assert ran.stdout.splitlines() == [
        "denied: 7 of 1000 left",
        "it can be allowed in 1.501 s, unless others are faster",
        f"all that is used is available again at {RESET}",
    ]
    assert service.asked[0].request.cost == 40


@pytest.mark.parametrize(
    ("retry_after", "told"),
    [
        ("0s", "0 s"),
        ("0.000000001s", "0.001 s"),
        ("9.5s", "9.5 s"),
        ("9.999000001s", "10 s"),
        ("10.000000001s", "10.1 s"),
        ("59.9s", "59.9 s"),
        ("59.900000001s", "60 s"),
        ("60s", "1 min"),
        ("60.000000001s", "1 min 1 s"),
        ("82341.123456s", "22 h 52 min 22 s"),
        ("172800s", "2 d"),
    ],
)
def test_the_time_to_wait_can_be_read_and_is_not_too_early(
    service: RecordingService, served: Served, retry_after: str, told: str
) -> None:
    service.decision = decision(allowed=False, retryAfter=retry_after)
    ran = duostore("quota", "api_calls", "ann", "--target", served.address)
    assert ran.stdout.splitlines()[1] == f"it can be allowed in {told}, unless others are faster"


@pytest.mark.parametrize(("options", "would"), [([], ""), (["--peek"], "would be ")])
def test_what_never_fits_is_told_as_that(
    service: RecordingService, served: Served, options: list[str], would: str
) -> None:
    service.decision = decision(allowed=False)
    command = ("quota", "api_calls", "ann", *options, "--target", served.address)
    ran = duostore(*command, "--cost", "1500")
    assert (ran.exit_code, ran.stderr) == (4, "")
    assert ran.stdout == f"{would}denied: 1500 is more than the limit of 1000\n"
    ran = duostore(*command, "--cost", "1000")
    assert ran.stdout.splitlines()[0] == f"{would}denied: 7 of 1000 left"


def test_moments_are_told_to_the_second(service: RecordingService, served: Served) -> None:
    service.decision = decision(
        allowed=True,
        reservation="r1",
        expireTime="2026-01-02T04:00:00.999999999Z",
        resetTime="2026-01-02T03:04:05.000000001Z",
    )
    ran = duostore("quota", "tokens", "ann", "--reserve", "--target", served.address)
    assert ran.stdout.splitlines()[1:] == [
        "reservation r1, to settle by 2026-01-02T04:00:00Z",
        f"all that is used is available again at {RESET}",
    ]


@pytest.mark.parametrize(("allowed", "code"), [(True, 0), (False, 4)])
def test_peek_tells_what_would_be(
    service: RecordingService, served: Served, allowed: Any, code: int
) -> None:
    service.decision = decision(allowed=allowed)
    ran = duostore("quota", "api_calls", "ann", "--peek", "--target", served.address)
    verdict = "allowed" if allowed else "denied"
    assert ran.exit_code == code
    assert ran.stdout.splitlines()[0] == f"would be {verdict}: 7 of 1000 left"
    assert service.asked[0].request.mode == pb.MODE_PEEK


def test_what_was_reserved_is_named(service: RecordingService, served: Served) -> None:
    service.decision = decision(allowed=True, reservation="r1", expireTime="2026-01-02T04:00:00Z")
    arguments = ("quota", "tokens", "ann", "--cost", "40", "--reserve", "--tenant", "t")
    ran = duostore(*arguments, "--target", served.address)
    assert ran.exit_code == 0
    assert ran.stdout.splitlines()[1] == "reservation r1, to settle by 2026-01-02T04:00:00Z"
    ran = duostore(*arguments, "--idempotency-key", "k", "--target", served.address)
    first, second = (asked.request for asked in service.asked)
    assert (first.mode, first.tenant) == (pb.MODE_RESERVE, "t")
    assert re.fullmatch("[0-9a-f]{32}", first.idempotency_key), "nothing is held unseen"
    assert second.idempotency_key == "k"


def test_an_answer_of_an_earlier_call_is_told(service: RecordingService, served: Served) -> None:
    service.decision = decision(allowed=True, replayed=True)
    ran = duostore("quota", "q", "s", "--idempotency-key", "k", "--target", served.address)
    assert ran.stdout.splitlines()[0] == ("allowed before, by this idempotency key: 7 of 1000 left")


def test_what_is_allowed_unchecked_says_so(service: RecordingService, served: Served) -> None:
    service.decision = pb.QuotaResponse(allowed=True, limit=1000, unchecked=True)
    ran = duostore("quota", "q", "s", "--target", served.address)
    assert ran.exit_code == 0
    assert ran.stdout.splitlines() == [
        "allowed unchecked: DynamoDB cannot be reached, and nothing was debited"
    ]


def test_scripts_get_json(service: RecordingService, served: Served) -> None:
    service.decision = decision(allowed=True, reservation="r1", expireTime=RESET)
    ran = duostore("quota", "q", "s", "--reserve", "--json", "--target", served.address)
    assert ran.exit_code == 0
    assert json.loads(ran.stdout) == {
        "allowed": True,
        "limit": 1000,
        "remaining": 7,
        "reset_time": RESET,
        "reservation": "r1",
        "expire_time": RESET,
        "replayed": False,
        "unchecked": False,
    }
    service.decision = pb.QuotaResponse(limit=1000)
    service.decision.retry_after.FromMilliseconds(0)
    ran = duostore("quota", "q", "s", "--json", "--target", served.address)
    assert ran.exit_code == 4
    assert json.loads(ran.stdout) == {
        "allowed": False,
        "limit": 1000,
        "remaining": 0,
        "retry_after": "0s",
        "replayed": False,
        "unchecked": False,
    }


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ([], "nothing was admitted; repeat the command, which may debit its units twice."),
        (
            ["--idempotency-key", "k"],
            "repeat the command with --idempotency-key k, and it is applied once.",
        ),
        (["--peek"], None),
    ],
)
def test_what_to_do_about_a_debit_in_doubt(
    service: RecordingService, served: Served, options: list[str], advice: str | None
) -> None:
    service.failing = lambda _: LOST
    ran = duostore("quota", "q", "s", *options, "--target", served.address)
    assert (ran.exit_code, ran.stdout) == (3, "")
    told = ran.stderr.splitlines()[1]
    if advice is None:
        assert told == "Try again; --timeout waits longer."
    else:
        assert told == f"It may or may not have been applied: {advice}"


def test_a_question_that_is_refused_names_its_fields(
    service: RecordingService, served: Served
) -> None:
    service.failing = lambda _: invalid(quota="is not configured; api_calls, tokens are")
    ran = duostore("quota", "api", "s", "--target", served.address)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.splitlines()[1] == "  quota: is not configured; api_calls, tokens are"


@pytest.mark.parametrize(
    ("options", "sent", "verb"),
    [
        (["--cost", "30"], {"cost": "30"}, "committed"),
        (["--cost", "0"], {"cost": "0"}, "committed"),
        (["--release"], {"release": True}, "released"),
    ],
)
def test_settle_prints_what_became_of_the_units(
    service: RecordingService,
    served: Served,
    options: list[str],
    sent: dict[str, Any],
    verb: str,
) -> None:
    service.settled = pb.SettleQuotaResponse(committed=30, refunded=10, covered=True)
    command = ("settle", "r1", *options, "--tenant", "t", "--target", served.address)
    ran = duostore(*command)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout == f"{verb}: 30 used, 10 given back\n"
    service.settled.replayed = True
    assert duostore(*command).stdout == f"{verb} before: 30 used, 10 given back\n"
    ran = duostore(*command, "--json")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == {
        "committed": 30,
        "refunded": 10,
        "covered": True,
        "replayed": True,
    }
    for asked in service.asked:
        assert json_format.MessageToDict(asked.request) == {
            "tenant": "t",
            "reservation": "r1",
            **sent,
        }


def test_a_cost_that_did_not_fit_ends_with_4(service: RecordingService, served: Served) -> None:
    service.settled = pb.SettleQuotaResponse(committed=40, covered=False)
    command = ("settle", "r1", "--cost", "55", "--target", served.address)
    for options, printed in (((), "committed: 40 used, 0 given back"), (("--json",), "{")):
        ran = duostore(*command, *options)
        assert ran.exit_code == 4
        assert ran.stdout.splitlines()[0] == printed
        assert ran.stderr.splitlines() == [
            "The quota has no room for 15 units more than were reserved; they were not debited."
        ]


def test_a_settlement_that_fails_says_what_to_do(service: RecordingService, served: Served) -> None:
    absent = status(grpc.StatusCode.NOT_FOUND, "there is none", "RESERVATION_NOT_FOUND")
    before = status(
        grpc.StatusCode.FAILED_PRECONDITION, "settled before: 3, 7", "RESERVATION_SETTLED"
    )
    command = ("settle", "r1", "--release", "--target", served.address)
    service.failing = lambda _: absent
    ran = duostore(*command)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert ran.stderr.splitlines() == [
        "there is none (RESERVATION_NOT_FOUND, request id r-1)",
        "Check --tenant and the reservation; one that has expired cannot be settled.",
    ]
    service.failing = lambda _: before
    ran = duostore(*command)
    assert ran.exit_code == 1
    assert ran.stderr.splitlines() == ["settled before: 3, 7 (RESERVATION_SETTLED, request id r-1)"]
    service.failing = lambda _: LOST
    ran = duostore(*command)
    assert ran.exit_code == 3
    assert ran.stderr.splitlines()[1].endswith("repeat the command, and it is applied once.")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["quota", "q"], "Missing argument"),
        (["quota", "q", "s", "--cost", "0"], "--cost"),
        (["quota", "q", "s", "--cost", str(2**63)], "--cost"),
        (["quota", "q", "s", "--peek", "--reserve"], "exclude each other"),
        (["quota", "q", "s", "--peek", "--idempotency-key", "k"], "needs no --idempotency-key"),
        (["quota", "q", "\udcff"], "not UTF-8"),
        (["settle", "r1"], "give one of --cost and --release"),
        (["settle", "r1", "--cost", "1", "--release"], "give one of --cost and --release"),
        (["settle", "r1", "--cost", "-1"], "--cost"),
    ],
)
def test_a_bad_command_line_is_refused(command: list[str], problem: str) -> None:
    ran = duostore(*command)
    assert ran.exit_code == 2
    assert problem in " ".join(re.sub("[│╭╮╰╯─]", " ", ran.stderr).split())
