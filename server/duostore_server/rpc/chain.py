"""What happens around every RPC, in the one order in which it happens."""

from __future__ import annotations

import time
from contextlib import closing, contextmanager
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
from duostore_server.rpc.admission import InRoom
from duostore_server.rpc.callers import certified_name, check_caller, origin_of
from duostore_server.rpc.status import ServerStoppingError, status_of
from duostore_server.telemetry.causes import cause_of
from duostore_server.telemetry.tracing import server_span

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from duostore_server.domain.transactions import Origin
    from duostore_server.rpc.admission import Room
    from duostore_server.rpc.permission import Permission
    from duostore_server.rpc.streams import Streams
    from duostore_server.telemetry.metrics import Metrics

T = TypeVar("T")

_CENTURY_SECONDS: Final = 100 * 365 * 24 * 3600.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What an RPC has to know of the call beside its request."""

    deadline: Deadline
    origin: Origin


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms the calls of one service are taken.

    ``permission`` is needed for each of them, if it is set. Its streams last for
    ``stream_deadline`` seconds at most, or as long as those of all if it is None, and end soon
    after ``is_stopping`` says that the server does.
    """

    permission: Permission | None = None
    stream_deadline: float | None = None
    is_stopping: Callable[[], bool] = _never


# Of a service that says nothing of the matter.
_USUAL: Final = Terms()


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

    From the outside in: trace, name the request and who makes it, measure, answer errors by a
    status, ask for permission, parse, bound by a deadline. All of it runs on the handler's
    own thread; gRPC's interceptors and deserializers would run on the one thread that polls.
    Of a stream all of it lasts until the last message is on its way.
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
        terms: Terms = _USUAL,
    ) -> grpc.GenericRpcHandler:
        """Return the handlers of a service whose RPCs are methods of ``servicer``, by name.

        Those with a room run there, and the others on the threads of the server.
        """
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {
                method.name: self._handler(
                    method, getattr(servicer, method.name), (rooms or {}).get(method.name), terms
                )
                for method in service.methods
            },
        )

    def _handler(
        self, method: MethodDescriptor, body: Body | StreamBody, room: Room | None, terms: Terms
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        if method.server_streaming:
            stream = self._stream(method, cast("StreamBody", body), terms)
            return grpc.unary_stream_rpc_method_handler(InRoom(stream, room, non_blocking=True))
        unary = self._unary(method, cast("Body", body), terms)
        return grpc.unary_unary_rpc_method_handler(unary if room is None else InRoom(unary, room))

    def _unary(
        self, method: MethodDescriptor, body: Body, terms: Terms
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        bounds = _Bounds(self._default_deadline, self._max_deadline)
        surrounded = self._surround(method, bounds, terms.permission)

        def answer(request: Message, call: Call) -> bytes:
            answered = body(request, call)
            return answered if isinstance(answered, bytes) else answered.SerializeToString()

        return lambda raw, context: surrounded(answer, raw, context)

    def _stream(
        self, method: MethodDescriptor, body: StreamBody, terms: Terms
    ) -> Callable[[bytes, grpc.ServicerContext, Callable[[bytes | None], None]], None]:
        """Return a handler that hands each message to ``send``, and None after the last one.

        ``send`` waits until the message is taken or the call has ended. An iterator that
        gRPC goes through would be left open, until it is collected, when a call ends early.
        """
        longest = terms.stream_deadline or self._stream_deadline
        bounds = _Bounds(longest, longest, terms.is_stopping)
        surrounded = self._surround(method, bounds, terms.permission)

        def handle(
            raw: bytes, context: grpc.ServicerContext, send: Callable[[bytes | None], None]
        ) -> None:
            def answer(request: Message, call: Call) -> None:
                with (
                    _ended_by(terms.is_stopping, context),
                    closing(body(request, call)) as messages,
                ):
                    for message in messages:
                        with self._streams.sending(context):
                            send(message)
                        if terms.is_stopping() or not context.is_active():
                            raise DeadlineExceededError

            surrounded(answer, raw, context)
            send(None)

        return handle

    def _surround(
        self, method: MethodDescriptor, bounds: _Bounds, permission: Permission | None
    ) -> Callable[[Callable[[Message, Call], T], bytes, grpc.ServicerContext], T]:
        request_class = GetMessageClass(method.input_type)
        seconds = cache(lambda code: self._metrics.rpc_seconds.labels(name, code.name))
        in_flight = self._metrics.rpcs_in_flight
        service, name = method.containing_service.full_name, method.name

        def surrounded(
            answer: Callable[[Message, Call], T], raw: bytes, context: grpc.ServicerContext
        ) -> T:
            origin = origin_of(context)
            with (
                server_span(service, name, context.invocation_metadata()) as span,
                structlog.contextvars.bound_contextvars(method=name, **_told(origin)),
            ):
                began = time.perf_counter()
                in_flight.inc()
                code = grpc.StatusCode.OK
                try:
                    if permission is not None:
                        permission.check(context.invocation_metadata(), certified_name(context))
                    check_caller(context)
                    request = _parsed(request_class, raw)
                    return answer(request, Call(_deadline(context, bounds), origin))
                except Exception as error:  # noqa: BLE001 - the edge: all become a status
                    code, status = status_of(error, origin.request_id)
                    _tell(error, code)
                finally:
                    span.answered(code.value[0])
                    in_flight.dec()
                    seconds(code).observe(time.perf_counter() - began)
            return context.abort_with_status(status)

        return surrounded


@dataclass(frozen=True, slots=True)
class _Bounds:
    """How long a call may take that sets no deadline, and any; and what else ends it."""

    default: float
    longest: float
    is_stopping: Callable[[], bool] = _never


def _deadline(context: grpc.ServicerContext, bounds: _Bounds) -> Deadline:
    left = context.time_remaining()
    # Of a call that has no deadline, gRPC says that centuries remain.
    if left is None or left > _CENTURY_SECONDS:
        left = bounds.default
    return Deadline.after(
        min(left, bounds.longest),
        cancelled=lambda: bounds.is_stopping() or not context.is_active(),
    )


@contextmanager
def _ended_by(is_stopping: Callable[[], bool], context: grpc.ServicerContext) -> Iterator[None]:
    """Say of what ends in the block because the server stops that it does."""
    try:
        yield
    except DeadlineExceededError as error:
        if is_stopping() and context.is_active():
            raise ServerStoppingError from error
        raise


def _parsed(request_class: type[Message], raw: bytes) -> Message:
    try:
        return request_class.FromString(raw)
    except DecodeError as error:
        raise InvalidRequestError(
            [FieldViolation("", "the request cannot be parsed, or nests too deep to be")]
        ) from error


def _told(origin: Origin) -> dict[str, str]:
    """Return what every line of the log says of a call."""
    named = {"caller": origin.caller} if origin.caller else {}
    return {"request_id": origin.request_id, **named}


def _tell(error: Exception, code: grpc.StatusCode) -> None:
    if not isinstance(error, (DuostoreError, ServerStoppingError)):
        _log.error("call failed", code=code.name, exc_info=error)
    elif isinstance(error, WriteOutcomeUnknownError):
        _log.warning("write's outcome is unknown", error=str(error), cause=cause_of(error))
    else:
        # One line a call would be a flood while a store is down; health tells of that once,
        # and why.
        cause = cause_of(error) if error.__cause__ else None
        _log.debug("call refused", code=code.name, error=str(error), cause=cause)
