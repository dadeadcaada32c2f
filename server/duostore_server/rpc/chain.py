"""What happens around every RPC, in the one order in which it happens."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    DeadlineExceededError,
    DuostoreError,
    FieldViolation,
    InvalidRequestError,
    WriteOutcomeUnknownError,
)
from duostore_server.domain.transactions import Origin
from duostore_server.rpc.admission import InRoom
from duostore_server.rpc.status import status_of
from duostore_server.telemetry.causes import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from duostore_server.rpc.admission import Room
    from duostore_server.rpc.streams import Streams
    from duostore_server.telemetry.metrics import Metrics

T = TypeVar("T")

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


class StreamBody(Protocol):
    """An RPC that answers with a stream, without its surroundings."""

    def __call__(self, request: Message, call: Call, /) -> Generator[bytes, None, None]:
        """Yield serialized messages, each when the one before it is on its way.

        Closed when the call ends, whoever ends it.
        """
        ...


class CallChain:
    """Wraps the bodies of RPCs.

    From the outside in: name the request and who makes it, measure, answer errors by a
    status, parse, bound by a deadline. All of it runs on the handler's own thread; gRPC's
    interceptors and deserializers would run on the one thread that polls. Of a stream all
    of it lasts until the last message is on its way.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        default_deadline: float,
        max_deadline: float,
        stream_deadline: float,
        streams: Streams,
    ) -> None:
        """Calls that set no deadline get the default one; all are bounded by the longest.

        Those that answer with a stream get ``stream_deadline`` as either.
        """
        self._metrics = metrics
        self._default_deadline = default_deadline
        self._max_deadline = max_deadline
        self._stream_deadline = stream_deadline
        self._streams = streams

    @property
    def stream_deadline(self) -> float:
        """Return how many seconds a stream may last."""
        return self._stream_deadline

    def handlers(
        self,
        service: ServiceDescriptor,
        servicer: object,
        rooms: Mapping[str, Room] | None = None,
    ) -> grpc.GenericRpcHandler:
        """Return the handlers of a service whose RPCs are methods of ``servicer``, by name.

        Those with a room run there, and the others on the threads of the server.
        """
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: self._handler(
                    method, getattr(servicer, method.name), (rooms or {}).get(method.name)
                )
                for method in service.methods
            },
        )

    def _handler(
        self, method: MethodDescriptor, body: Body | StreamBody, room: Room | None
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        if method.server_streaming:
            stream = self._stream(method, cast("StreamBody", body))
            return grpc.unary_stream_rpc_method_handler(InRoom(stream, room, non_blocking=True))
        unary = self._unary(method, cast("Body", body))
        return grpc.unary_unary_rpc_method_handler(unary if room is None else InRoom(unary, room))

    def _unary(
        self, method: MethodDescriptor, body: Body
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        surrounded = self._surround(method, self._default_deadline, self._max_deadline)

        def answer(request: Message, call: Call) -> bytes:
            answered = body(request, call)
            return answered if isinstance(answered, bytes) else answered.SerializeToString()

        return lambda raw, context: surrounded(answer, raw, context)

    def _stream(
        self, method: MethodDescriptor, body: StreamBody
    ) -> Callable[[bytes, grpc.ServicerContext, Callable[[bytes | None], None]], None]:
        """Return a handler that hands each message to ``send``, and None after the last one.

        ``send`` waits until the message is taken or the call has ended. An iterator that
        gRPC goes through would be left open, until it is collected, when a call ends early.
        """
        surrounded = self._surround(method, self._stream_deadline, self._stream_deadline)

        def handle(
            raw: bytes, context: grpc.ServicerContext, send: Callable[[bytes | None], None]
        ) -> None:
            def answer(request: Message, call: Call) -> None:
                with closing(body(request, call)) as messages:
                    for message in messages:
                        with self._streams.sending(context):
                            send(message)
                        if not context.is_active():
                            raise DeadlineExceededError

            surrounded(answer, raw, context)
            send(None)

        return handle

    def _surround(
        self, method: MethodDescriptor, default: float, longest: float
    ) -> Callable[[Callable[[Message, Call], T], bytes, grpc.ServicerContext], T]:
        request_class = GetMessageClass(method.input_type)
        seconds = cache(lambda code: self._metrics.rpc_seconds.labels(name, code.name))
        in_flight = self._metrics.rpcs_in_flight
        name = method.name

        def surrounded(
            answer: Callable[[Message, Call], T], raw: bytes, context: grpc.ServicerContext
        ) -> T:
            origin = _origin(context)
            with structlog.contextvars.bound_contextvars(method=name, **_told(origin)):
                began = time.perf_counter()
                in_flight.inc()
                code = grpc.StatusCode.OK
                try:
                    _check_caller(context)
                    request = _parsed(request_class, raw)
                    return answer(request, Call(_deadline(context, default, longest), origin))
                except Exception as error:  # noqa: BLE001 - the edge: all become a status
                    code, status = status_of(error, origin.request_id)
                    _tell(error, code)
                finally:
                    in_flight.dec()
                    seconds(code).observe(time.perf_counter() - began)
            return context.abort_with_status(status)

        return surrounded


def _deadline(context: grpc.ServicerContext, default: float, longest: float) -> Deadline:
    left = context.time_remaining()
    # Of a call that has no deadline, gRPC says that centuries remain.
    if left is None or left > _CENTURY_SECONDS:
        left = default
    return Deadline.after(min(left, longest), cancelled=lambda: not context.is_active())


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
