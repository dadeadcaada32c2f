"""What happens around every RPC, in the one order in which it happens."""

from __future__ import annotations

import re
import time
import uuid
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DuostoreError,
    FieldViolation,
    InvalidRequestError,
    WriteOutcomeUnknownError,
)
from duostore_server.rpc.status import status_of
from duostore_server.telemetry.causes import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from duostore_server.telemetry.metrics import Metrics

_CENTURY_SECONDS: Final = 100 * 365 * 24 * 3600.0
_REQUEST_ID: Final = "x-request-id"
_ACCEPTABLE_ID: Final = re.compile(r"[\w.:/=+-]{1,128}", re.ASCII)

_log = structlog.get_logger(__name__)


class Body(Protocol):
    """An RPC without its surroundings."""

    def __call__(self, request: Message, deadline: Deadline, /) -> Message | bytes:
        """Answer with a message, or with one that is serialized already."""
        ...


class CallChain:
    """Wraps the bodies of RPCs.

    From the outside in: name the request, measure, answer errors by a status, parse,
    bound by a deadline. All of it runs on the handler's own thread; gRPC's
    interceptors and deserializers would run on the one thread that polls.
    """

    def __init__(self, metrics: Metrics, *, default_deadline: float, max_deadline: float) -> None:
        """Calls that set no deadline get the default one; all are bounded by the longest."""
        self._metrics = metrics
        self._default_deadline = default_deadline
        self._max_deadline = max_deadline

    def handlers(self, service: ServiceDescriptor, servicer: object) -> grpc.GenericRpcHandler:
        """Return the handlers of a service whose RPCs are methods of ``servicer``, by name."""
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: grpc.unary_unary_rpc_method_handler(
                    self._wrap(method, getattr(servicer, method.name))
                )
                for method in service.methods
            },
        )

    def _wrap(
        self, method: MethodDescriptor, body: Body
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        request_class = GetMessageClass(method.input_type)
        seconds = cache(lambda code: self._metrics.rpc_seconds.labels(name, code.name))
        in_flight = self._metrics.rpcs_in_flight
        name = method.name

        def handle(raw: bytes, context: grpc.ServicerContext) -> bytes:
            request_id = _request_id(context)
            with structlog.contextvars.bound_contextvars(request_id=request_id, method=name):
                began = time.perf_counter()
                in_flight.inc()
                code = grpc.StatusCode.OK
                try:
                    request = _parsed(request_class, raw)
                    answer = body(request, self._deadline(context))
                    return answer if isinstance(answer, bytes) else answer.SerializeToString()
                except Exception as error:  # noqa: BLE001 - the edge: all become a status
                    code, status = status_of(error, request_id)
                    _tell(error, code)
                finally:
                    in_flight.dec()
                    seconds(code).observe(time.perf_counter() - began)
            return context.abort_with_status(status)

        return handle

    def _deadline(self, context: grpc.ServicerContext) -> Deadline:
        left = context.time_remaining()
        # Of a call that has no deadline, gRPC says that centuries remain.
        if left is None or left > _CENTURY_SECONDS:
            left = self._default_deadline
        seconds = min(left, self._max_deadline)
        return Deadline.after(seconds, cancelled=lambda: not context.is_active())


def _parsed(request_class: type[Message], raw: bytes) -> Message:
    try:
        return request_class.FromString(raw)
    except DecodeError as error:
        raise InvalidRequestError(
            [FieldViolation("", "the request cannot be parsed, or nests too deep to be")]
        ) from error


def _request_id(context: grpc.ServicerContext) -> str:
    for name, value in context.invocation_metadata():
        if name == _REQUEST_ID and isinstance(value, str) and _ACCEPTABLE_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _tell(error: Exception, code: grpc.StatusCode) -> None:
    if not isinstance(error, DuostoreError):
        _log.error("call failed", code=code.name, exc_info=error)
    elif isinstance(error, WriteOutcomeUnknownError):
        _log.warning("write's outcome is unknown", error=str(error), cause=cause_of(error))
    else:
        # One line a call would be a flood while a store is down; health tells of that once,
        # and why.
        cause = cause_of(error) if error.__cause__ else None
        _log.debug("call refused", code=code.name, error=str(error), cause=cause)
