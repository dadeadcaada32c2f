"""`duostore quota` and `settle`: one call each, and exit codes that scripts can go by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from duostore.v1 import data_access_pb2
from duostore_server.cli.answers import quota_shown, settled_shown
from duostore_server.cli.failure import DENIED
from duostore_server.cli.one_call import complain, if_in_doubt, made_if_none, print_json, run
from duostore_server.domain.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore.v1.data_access_pb2_grpc import DataAccessStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target

_MILLISECOND: Final = 1_000_000
_SECOND: Final = 1_000 * _MILLISECOND
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_COSTLY: Final = "nothing was admitted; repeat the command, which may debit its units twice."
_SETTLED_ONCE: Final = "repeat the command, and it is applied once."
_ADVICE: Final = {
    Reason.RESERVATION_NOT_FOUND: (
        "Check --tenant and the reservation; one that has expired cannot be settled."
    ),
}


@dataclass(frozen=True, slots=True)
class Question:
    """What a quota is asked. At most one of ``peek`` and ``reserve`` is set."""

    tenant: str
    quota: str
    subject: str
    cost: int
    peek: bool
    reserve: bool
    idempotency_key: str

    def message(self) -> data_access_pb2.QuotaRequest:
        """Return the request. One that reserves always has an idempotency key.

        Without one, units whose answer was lost would stay held by nobody; other debits go
        without, as those of applications do.
        """
        mode = data_access_pb2.MODE_CONSUME
        if self.peek:
            mode = data_access_pb2.MODE_PEEK
        elif self.reserve:
            mode = data_access_pb2.MODE_RESERVE
        key = made_if_none(self.idempotency_key) if self.reserve else self.idempotency_key
        return data_access_pb2.QuotaRequest(
            tenant=self.tenant,
            quota=self.quota,
            subject=self.subject,
            cost=self.cost,
            mode=mode,
            idempotency_key=key,
        )


def quota(target: Target, question: Question, *, as_json: bool, timeout: float) -> int:
    """Ask a quota, print what it answers, and return the exit code."""
    request = question.message()
    answer = data_access_pb2.QuotaResponse()

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        answer.CopyFrom(stub.Quota(request, timeout=timeout, metadata=metadata))
        if as_json:
            print_json(quota_shown(answer))
        else:
            for line in _lines(question, answer):
                typer.echo(line.encode())

    doubt = if_in_doubt(request.idempotency_key) if request.idempotency_key else _COSTLY
    code = run(target, work, in_doubt="" if question.peek else doubt)
    return code or (0 if answer.allowed else DENIED)


def settle(
    target: Target,
    reservation: str,
    *,
    cost: int | None,
    tenant: str,
    as_json: bool,
    timeout: float,
) -> int:
    """Commit ``cost`` units of a reservation, or release it if that is None; print the result."""
    request = data_access_pb2.SettleQuotaRequest(tenant=tenant, reservation=reservation)
    if cost is None:
        request.release = True
    else:
        request.cost = cost
    answer = data_access_pb2.SettleQuotaResponse()

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        answer.CopyFrom(stub.SettleQuota(request, timeout=timeout, metadata=metadata))
        if as_json:
            print_json(settled_shown(answer))
        else:
            verb = "released" if cost is None else "committed"
            before = " before" if answer.replayed else ""
            typer.echo(f"{verb}{before}: {answer.committed} used, {answer.refunded} given back")
        if not answer.covered:
            complain(
                f"The quota has no room for {request.cost - answer.committed} units more than"
                " were reserved; they were not debited."
            )

    code = run(target, work, in_doubt=_SETTLED_ONCE, advice=_ADVICE)
    return code or (0 if answer.covered else DENIED)


def _lines(question: Question, answer: data_access_pb2.QuotaResponse) -> Iterator[str]:
    """Yield an answer as people read it."""
    verdict = "allowed" if answer.allowed else "denied"
    if answer.unchecked:
        yield f"{verdict} unchecked: DynamoDB cannot be reached, and nothing was debited"
        return
    would = "would be " if question.peek else ""
    if not answer.allowed and question.cost > answer.limit:
        yield f"{would}denied: {question.cost} is more than the limit of {answer.limit}"
        return
    before = " before, by this idempotency key" if answer.replayed else ""
    yield f"{would}{verdict}{before}: {answer.remaining} of {answer.limit} left"
    if answer.HasField("retry_after"):
        wait = _span(answer.retry_after.ToNanoseconds())
        yield f"it can be allowed in {wait}, unless others are faster"
    if answer.reservation:
        # Rounded down, so as not to be late.
        yield f"reservation {answer.reservation}, to settle by {_time(answer.expire_time.seconds)}"
    if answer.HasField("reset_time"):
        reset = _up(answer.reset_time.ToNanoseconds(), _SECOND)
        yield f"all that is used is available again at {_time(reset)}"


def _span(nanoseconds: int) -> str:
    """Return a time to wait as people read it, rounded up so as not to be early."""
    if nanoseconds < 10 * _SECOND:
        return f"{_up(nanoseconds, _MILLISECOND) / 1_000:g} s"
    if nanoseconds < 60 * _SECOND:
        return f"{_up(nanoseconds, _SECOND // 10) / 10:g} s"
    seconds = _up(nanoseconds, _SECOND)
    parts = []
    for unit, length in _UNITS:
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def _time(seconds: int) -> str:
    return Timestamp(seconds=seconds).ToJsonString()


def _up(nanoseconds: int, unit: int) -> int:
    return -(-nanoseconds // unit)
