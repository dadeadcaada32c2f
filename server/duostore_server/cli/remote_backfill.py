"""`duostore backfill`: starts one, watches it, and pauses or cancels it."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import typer

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import backfill_shown, state_name
from duostore_server.cli.backfill_watch import Watch
from duostore_server.cli.failure import FAILED, INTERRUPTED, explained, failure_of
from duostore_server.cli.one_call import complain, print_json
from duostore_server.cli.progress_display import displaying
from duostore_server.cli.remote_admin import SAFE_TO_REPEAT, run_admin
from duostore_server.cli.wording import counted, printable, seconds_of, span, utc
from duostore_server.domain.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore.v1.admin_pb2_grpc import AdminStub
    from duostore_server.cli.failure import Failure
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.progress_display import ProgressDisplay
    from duostore_server.cli.target import Target

Action = admin_pb2.BackfillRequest.Action
_State: Final = admin_pb2.BackfillResponse


@dataclass(frozen=True, slots=True)
class Order:
    """What to do about the backfill of a kind; ``rate`` and ``parallel`` are 0 if not told.

    ``retry_for`` is for how many seconds a lost connection is sought again.
    """

    kind: str
    action: Action.ValueType
    rate: int = 0
    parallel: int = 0
    retry_for: float = 0.0

    @property
    def request(self) -> admin_pb2.BackfillRequest:
        """Return it as it is sent."""
        return admin_pb2.BackfillRequest(
            kind=self.kind, action=self.action, rate=self.rate, parallel=self.parallel
        )


def backfill(target: Target, order: Order, *, as_json: bool, timeout: float) -> int:
    """Do it, print how the backfill stands, and return the exit code."""
    if order.action == admin_pb2.BackfillRequest.ACTION_RUN:
        return _run(target, order, as_json=as_json, timeout=timeout)
    answers: list[admin_pb2.BackfillResponse] = []

    def work(stub: AdminStub, metadata: Metadata) -> None:
        answers.extend(stub.Backfill(order.request, timeout=timeout, metadata=metadata))

    code = run_admin(target, work, in_doubt=_in_doubt(order), advice=_advice(order))
    if answers:
        _print(answers[-1], as_json=as_json)
    return code if code or answers else _silence()


@dataclass(slots=True)
class _Watched:
    """What came of watching one: how it was last, and why it is not watched any more."""

    last: admin_pb2.BackfillResponse | None = None
    lost: Failure | None = None
    detached: bool = False

    def follow(self, watch: Watch, order: Order, display: ProgressDisplay) -> None:
        """Show it until it ends. Once it has begun, nothing that goes wrong stops it."""
        try:
            for answer in watch.progress(order.request):
                self.last = answer
                left = seconds_of(answer.remaining) if answer.HasField("remaining") else None
                display.show(answer.done_count, answer.estimated_total, _note(answer), left)
        except grpc.RpcError as error:
            if self.last is None:
                raise
            self.lost = failure_of(error)
        except KeyboardInterrupt:
            if self.last is None:
                raise
            self.detached = True


def _run(target: Target, order: Order, *, as_json: bool, timeout: float) -> int:
    """Start or join it, watch it to its end, and return the exit code."""
    watched = _Watched()

    def work(stub: AdminStub, metadata: Metadata) -> None:
        # A bar and the answer would be in each other's way.
        shown = not (as_json and sys.stdout.isatty())
        title = f"backfill {order.kind}"
        with displaying(title, err=sys.stderr, clock=time.monotonic, shown=shown) as display:
            watch = Watch(stub, metadata, display, retry_for=order.retry_for, timeout=timeout)
            watched.follow(watch, order, display)

    code = run_admin(target, work, in_doubt=_in_doubt(order), advice=_advice(order))
    last = watched.last
    if last is None:
        return code or _silence()
    if watched.lost is not None:
        for line in explained(watched.lost, target.address, in_doubt=""):
            complain(line)
        code = watched.lost.exit_code
    _print(last, as_json=as_json)
    if last.state == _State.STATE_RUNNING:
        _tell_how_to_go_on(order)
        return INTERRUPTED if watched.detached else code
    return 0 if last.state == _State.STATE_DONE and not last.failed_count else FAILED


def _print(answer: admin_pb2.BackfillResponse, *, as_json: bool) -> None:
    if as_json:
        print_json(backfill_shown(answer))
        return
    for line in told(answer):
        typer.echo(line)


def told(answer: admin_pb2.BackfillResponse) -> Iterator[str]:
    """Yield how a backfill stands."""
    yield f"backfill {printable(answer.kind)}: {state_name(answer.state)}{_how_far(answer)}"
    rate = f"at most {answer.rate:,}/s" if answer.rate else "as many as go"
    failed = f", {answer.failed_count:,} failed (the log says why)" if answer.failed_count else ""
    unchanged = max(answer.done_count - answer.projected_count - answer.failed_count, 0)
    yield (
        f"  {answer.projected_count:,} projected, {unchanged:,} unchanged{failed}; "
        f"{answer.parts_done} of {answer.part_count} parts done; {rate}"
    )


def _how_far(answer: admin_pb2.BackfillResponse) -> str:
    """Return how far it is; of one that does not go on, when it last did."""
    at = utc(answer.update_time)
    if answer.state == _State.STATE_DONE:
        lasted = seconds_of(answer.update_time) - seconds_of(answer.start_time)
        return f" at {at}, {counted(answer.done_count, 'entity', 'entities')} in {span(lasted)}"
    total = max(answer.estimated_total, answer.done_count)
    of = f", {answer.done_count:,} of about {counted(total, 'entity', 'entities')}"
    if answer.state != _State.STATE_RUNNING:
        return f"{of}; it last went on at {at}"
    left = f", about {span(seconds_of(answer.remaining))} left"
    return of + (left if answer.HasField("remaining") else "")


def _silence() -> int:
    complain("The service said nothing of a backfill.")
    return FAILED


def _note(answer: admin_pb2.BackfillResponse) -> str:
    failed = f", {answer.failed_count:,} failed" if answer.failed_count else ""
    return f"{answer.projected_count:,} projected{failed}"


def _tell_how_to_go_on(order: Order) -> None:
    command = _command(order)
    complain("Detached: the backfill goes on in the background processes.")
    for option, what in (
        ("", "watches it again"),
        (" --pause", "stops it"),
        (" --cancel", "ends it"),
    ):
        complain(f"  {command}{option:9}  {what}")


def _in_doubt(order: Order) -> str:
    if order.action == admin_pb2.BackfillRequest.ACTION_SHOW:
        return ""
    if order.action in {
        admin_pb2.BackfillRequest.ACTION_PAUSE,
        admin_pb2.BackfillRequest.ACTION_CANCEL,
    }:
        return SAFE_TO_REPEAT
    return f"`{_command(order)} --show` says."


def _advice(order: Order) -> dict[Reason, str]:
    return {Reason.BACKFILL_NOT_FOUND: f"`{_command(order)}` starts one."}


def _command(order: Order) -> str:
    return f"duostore backfill --kind {shlex.quote(order.kind)}"
