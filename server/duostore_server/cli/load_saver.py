"""Saves the documents of a load by calls of the service."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Final, cast

import grpc

from duostore.v1 import data_access_pb2, data_access_pb2_grpc, entity_pb2
from duostore_server.cli.channel import connected
from duostore_server.cli.failure import UNUSABLE, failure_of
from duostore_server.cli.load_outcome import Delayed, Existed, Failed, Outcome, Refused, Saved
from duostore_server.domain.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from duostore_server.cli.failure import Failure
    from duostore_server.cli.load_checkpoint import Job
    from duostore_server.cli.target import Target
    from duostore_server.domain.documents import JsonObject

# The processes of a service share its port by connections: one would keep one busy.
_CONNECTIONS: Final = 4
# These are the same for every line: the command is wrong, not the line.
_FIELDS_OF_COMMAND: Final = frozenset({"key.tenant", "key.kind"})


class GrpcSaver:
    """Saves by ``DataAccess.Save``, over each of its connections in turn."""

    def __init__(
        self,
        channels: Iterable[grpc.Channel],
        *,
        tenant: str,
        kind: str,
        if_absent: bool,
        load_id: str,
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        """``metadata`` is sent with every call."""
        self._stubs = cycle([data_access_pb2_grpc.DataAccessStub(channel) for channel in channels])
        self._tenant = tenant
        self._kind = kind
        self._if_absent = if_absent
        self._load_id = load_id
        self._timeout = timeout
        self._metadata = metadata

    def save(
        self,
        line: int,
        id: str,  # noqa: A002 - as the key's
        document: JsonObject,
        tell: Callable[[Outcome], None],
    ) -> None:
        key = entity_pb2.EntityKey(tenant=self._tenant, kind=self._kind, id=id)
        request = data_access_pb2.SaveRequest(
            key=key, idempotency_key=f"load-{self._load_id}-{line}"
        )
        request.data.update(document)
        if self._if_absent:
            request.if_absent = True
        call = next(self._stubs).Save.future(
            request, timeout=self._timeout, metadata=self._metadata
        )
        call.add_done_callback(lambda done: tell(outcome_of(done)))


@contextmanager
def saving(target: Target, job: Job, *, load_id: str, timeout: float) -> Iterator[GrpcSaver]:
    """Give a saver for a job; raises ``UnusableTargetError`` as ``connected`` does.

    ``load_id`` tells the load from all others, also of the same file.
    """
    with ExitStack() as stack:
        channels = [stack.enter_context(connected(target)) for _ in range(_CONNECTIONS)]
        yield GrpcSaver(
            channels,
            tenant=job.tenant,
            kind=job.kind,
            if_absent=job.if_absent,
            load_id=load_id,
            timeout=timeout,
            metadata=target.metadata,
        )


def outcome_of(call: grpc.Future[data_access_pb2.SaveResponse]) -> Outcome:
    """Return what became of a Save that is done."""
    try:
        error = call.exception()
    except grpc.FutureCancelledError:
        return Delayed("the load gave it up", after=0)
    if error is None:
        pending = call.result().projection == entity_pb2.PROJECTION_PENDING
        return Saved(pending=pending)
    failure = failure_of(cast("grpc.RpcError", error))
    if failure.code is grpc.StatusCode.ALREADY_EXISTS:
        return Existed()
    if failure.code is grpc.StatusCode.INVALID_ARGUMENT or failure.is_too_large:
        return _refused(failure)
    if failure.may_pass:
        return Delayed(str(failure), failure.retry_after)
    return Failed(str(failure), failure.exit_code, maybe_applied=failure.outcome_is_unknown)


def _refused(failure: Failure) -> Outcome:
    if failure.reason is Reason.IDEMPOTENCY_KEY_REUSED:
        why = "it has changed since an earlier run of this load saved it; begin anew with --restart"
        return Failed(why, UNUSABLE, maybe_applied=False)
    violations = "; ".join(f"{v.field}: {v.description}" for v in failure.violations)
    reason = violations or str(failure)
    if any(violation.field in _FIELDS_OF_COMMAND for violation in failure.violations):
        return Failed(reason, UNUSABLE, maybe_applied=False)
    return Refused(reason)
