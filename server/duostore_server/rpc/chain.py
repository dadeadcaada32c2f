"""What happens around every RPC, in the one order in which it happens."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol, cast

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
from duostore_server.domain.transactions import Origin
from duostore_server.rpc.status import status_of
from duostore_server.telemetry.causes import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from duostore_server.telemetry.metrics import Metrics

_CENTURY_SECONDS: Final = 100 * 365 * 24 * 3600.0
_REQUEST_ID: Final = "x-request-id"
_CALLER: Final = "x-caller"
# What callers may say of themselves.
_ACCEPTABLE: Final = {
    _REQUEST_ID: re.compile(r"[\w.:/=+-]{1,128}", re.ASCII),
    _CALLER: re.compile(r"[\w.:/=+@-]{1,128}", re.ASCII),
}
# gRPC lists these of a peer that has shown a certificate, which TLS has verified by then.
_CERTIFICATE: Final = "x509_pem_cert"
_COMMON_NAME: Final = "x509_common_name"
_MAX_COMMON_NAME: Final = 128

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What an RPC has to know of the call beside its request."""

    deadline: Deadline
    origin: Origin


class Body(Protocol):
    """An RPC without its surroundings."""

    def __call__(self, request: Message, call: Call, /) -> Message | bytes:
        """Answer with a message, or with one that is serialized already."""
        ...


class CallChain:
    """Wraps the bodies of RPCs.

    From the outside in: name the request and who makes it, measure, answer errors by a
    status, parse, bound by a deadline. All of it runs on the handler's own thread; gRPC's
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
            origin = _origin(context)
            with structlog.contextvars.bound_contextvars(method=name, **_told(origin)):
                began = time.perf_counter()
                in_flight.inc()
                code = grpc.StatusCode.OK
                try:
                    _check_caller(context)
                    request = _parsed(request_class, raw)
                    answer = body(request, Call(self._deadline(context), origin))
                    return answer if isinstance(answer, bytes) else answer.SerializeToString()
                except Exception as error:  # noqa: BLE001 - the edge: all become a status
                    code, status = status_of(error, origin.request_id)
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


def _origin(context: grpc.ServicerContext) -> Origin:
    """Return who calls: by the certificate if there is one, else as the caller says."""
    said = {
        name: value
        for name, value in context.invocation_metadata()
        if name in _ACCEPTABLE and isinstance(value, str) and _ACCEPTABLE[name].fullmatch(value)
    }
    # Said by the types to hold bytes, and holds lists of them.
    peer = cast("Mapping[str, Sequence[bytes]]", context.auth_context())
    caller = _common_name(peer) if _CERTIFICATE in peer else said.get(_CALLER, "")
    return Origin(caller, said.get(_REQUEST_ID) or uuid.uuid4().hex)


def _check_caller(context: grpc.ServicerContext) -> None:
    """Refuse a name that the audit would not have as it was meant; a certificate's counts."""
    for name, value in context.invocation_metadata():
        if name != _CALLER or not value or _ACCEPTABLE[name].fullmatch(str(value)):
            continue
        if _CERTIFICATE not in context.auth_context():
            raise InvalidRequestError(
                [FieldViolation(_CALLER, "may hold A-Z a-z 0-9 _ . : / = + @ -, at most 128")]
            )


def _common_name(peer: Mapping[str, Sequence[bytes]]) -> str:
    """Return the common name of a certificate, fit to be stored; empty if it has none."""
    text = next(iter(peer.get(_COMMON_NAME, ())), b"").decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)[:_MAX_COMMON_NAME]


def _told(origin: Origin) -> dict[str, str]:
    """Return what every line of the log says of a call."""
    named = {"caller": origin.caller} if origin.caller else {}
    return {"request_id": origin.request_id, **named}


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
