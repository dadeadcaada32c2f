"""The servicer of ``duostore.v1.Admin``."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import structlog

from duostore.v1 import admin_pb2 as pb
from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.rpc import admin_answers as answers
from duostore_server.rpc import admin_converters as converters
from duostore_server.rpc.converters import key_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from duostore_server.access.backfilling import Backfilling, Progress
    from duostore_server.access.checking import Checking
    from duostore_server.access.controlling import Controlling
    from duostore_server.access.explaining import Explaining
    from duostore_server.access.status import Reporting
    from duostore_server.domain.drift import CheckProgress
    from duostore_server.rpc.chain import Call

_log = structlog.get_logger(__name__)


class Admin:
    """One method for each RPC, by its name; errors are mapped by the call chain.

    Whatever is changed is logged; each line names the caller, as all lines of a call do.
    """

    def __init__(
        self,
        *,
        explaining: Explaining,
        checking: Checking,
        backfilling: Backfilling,
        controlling: Controlling,
        reporting: Reporting,
    ) -> None:
        self._explaining = explaining
        self._checking = checking
        self._backfilling = backfilling
        self._controlling = controlling
        self._reporting = reporting

    def Explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:
        explained = self._explaining.explain(key_of(request.key), call.deadline)
        return answers.explain_response(explained)

    def CheckConsistency(
        self, request: pb.CheckConsistencyRequest, call: Call
    ) -> Generator[bytes, None, None]:
        sample = converters.sample_of(request)
        found = self._checking.check(request.kind, sample, call.deadline, repair=request.repair)
        with closing(_with_repairs_logged(found) if request.repair else found) as told:
            for progress in told:
                yield from answers.check_responses(progress)

    def Backfill(self, request: pb.BackfillRequest, call: Call) -> Generator[bytes, None, None]:
        with closing(_logged(self._backfilled(request, call), request)) as told:
            for backfill, remaining in told:
                yield answers.backfill_response(backfill, remaining).SerializeToString()

    def SetReadOnly(self, request: pb.SetReadOnlyRequest, call: Call) -> pb.SetReadOnlyResponse:
        read_only = self._controlling.set_read_only(
            request.kind,
            read_only=request.read_only,
            reason=request.reason,
            caller=call.origin.caller,
            deadline=call.deadline,
        )
        _log.info(
            "read-only mode set",
            kind=request.kind,
            read_only=request.read_only,
            reason=request.reason if request.read_only else None,
        )
        return answers.set_read_only_response(read_only)

    def ListFlags(self, _request: pb.ListFlagsRequest, call: Call) -> pb.ListFlagsResponse:
        flags = self._controlling.flags(call.deadline)
        return answers.list_flags_response(flags, self._controlling.provider)

    def SetFlag(self, request: pb.SetFlagRequest, call: Call) -> pb.SetFlagResponse:
        value = converters.flag_value_of(request)
        flag = self._controlling.set_flag(
            request.name, value, caller=call.origin.caller, deadline=call.deadline
        )
        _log.info("flag set", flag=flag.name, value=value)
        return answers.set_flag_response(flag)

    def GetStatus(self, _request: pb.GetStatusRequest, call: Call) -> pb.GetStatusResponse:
        return answers.get_status_response(self._reporting.status(call.deadline))

    def _backfilled(
        self, request: pb.BackfillRequest, call: Call
    ) -> Generator[Progress, None, None]:
        """Do what is asked for; yield how far the backfill is, once or until it has ended."""
        kind, caller, deadline = request.kind, call.origin.caller, call.deadline
        rate, parallel = request.rate, request.parallel
        match request.action:
            case pb.BackfillRequest.ACTION_UNSPECIFIED | pb.BackfillRequest.ACTION_RUN:
                yield from self._backfilling.run(
                    kind, rate=rate, parallel=parallel, caller=caller, deadline=deadline
                )
            case pb.BackfillRequest.ACTION_START:
                yield self._backfilling.start(
                    kind, rate=rate, parallel=parallel, caller=caller, deadline=deadline
                )
            case pb.BackfillRequest.ACTION_SHOW:
                yield self._backfilling.show(kind, deadline)
            case pb.BackfillRequest.ACTION_CANCEL:
                yield self._backfilling.cancel(kind, caller=caller, deadline=deadline)
            case pb.BackfillRequest.ACTION_PAUSE:
                yield self._backfilling.pause(kind, caller=caller, deadline=deadline)
            case unknown:
                text = f"is {unknown}, of which this server does not know"
                raise InvalidRequestError([FieldViolation("action", text)])


def _logged(
    progress: Generator[Progress, None, None], request: pb.BackfillRequest
) -> Generator[Progress, None, None]:
    """Yield what is told of a backfill; log first what was done, unless it was only shown."""
    with closing(progress) as told:
        for number, (backfill, remaining) in enumerate(told):
            if not number and request.action != pb.BackfillRequest.ACTION_SHOW:
                _log.info(
                    "backfill set",
                    kind=backfill.kind,
                    state=backfill.state.value,
                    rate=backfill.rate,
                    parts=backfill.parts,
                )
            yield backfill, remaining


def _with_repairs_logged(
    progress: Generator[CheckProgress, None, None],
) -> Generator[CheckProgress, None, None]:
    """Yield what is told of a check; log at its end, however it ends, what was repaired."""
    last = None
    try:
        with closing(progress) as told:
            for last in told:
                yield last
    finally:
        if last is not None:
            _log.info(
                "drift repaired",
                drifts=last.drift_count,
                repaired=last.repaired_count,
                complete=last.done,
            )
