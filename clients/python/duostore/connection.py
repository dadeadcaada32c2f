"""One server, called: connects when needed, and tries again what may be repeated."""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from duostore.channel import open_channel
from duostore.errors import Error
from duostore.streaming import Stream, failure_of
from duostore.v1.data_access_pb2_grpc import DataAccessStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

    from duostore.retries import Retries
    from duostore.status import Call

RequestT = TypeVar("RequestT", bound="Message")
ResponseT = TypeVar("ResponseT", bound="Message")

# The server logs each call under it, and answers errors with it.
_REQUEST_ID: Final = "x-request-id"

_CALLER: Final = "x-caller"
# As the server accepts it.
_CALLER_TEXT: Final = re.compile(r"[\w.:/=+@-]{1,128}", re.ASCII)
# gRPC refuses all else, with a status that says INTERNAL: as if the server had been asked.
_NAME: Final = re.compile(r"[a-z0-9_.-]+")
_TEXT: Final = re.compile(r"[\x20-\x7e]*")
_BINARY: Final = "-bin"


def call_metadata(
    caller: str | None, others: Iterable[tuple[str, str | bytes]]
) -> tuple[tuple[str, str | bytes], ...]:
    """Return what is sent with every call: who calls, unless that is None, and the others.

    Names become lower case, as on the wire. Raises ``ValueError`` for what cannot be sent;
    the values of others, which may be secret, are not told.
    """
    metadata = tuple((name.lower(), value) for name, value in others)
    for name, value in metadata:
        if problem := _problem(name, value):
            raise ValueError(f"metadata {name!r} {problem}")
    if caller is None:
        return metadata
    if not _CALLER_TEXT.fullmatch(caller):
        raise ValueError(
            f"caller is {caller!r}; it may hold letters, digits and _ . : / = + - @, 1 to 128"
        )
    if any(name == _CALLER for name, _ in metadata):
        raise ValueError(f"caller is given twice: also as metadata {_CALLER!r}")
    return (_CALLER, caller), *metadata


def _problem(name: str, value: str | bytes) -> str:
    if not _NAME.fullmatch(name):
        return "has a name of other characters than a-z 0-9 _ - ."
    if name.endswith(_BINARY):
        return "" if isinstance(value, bytes) else "ends in -bin, so that its value must be bytes"
    if not isinstance(value, str):
        return "must be a str, or have a name that ends in -bin"
    if not _TEXT.fullmatch(value):
        return "holds other characters than printable ASCII; a name that ends in -bin takes bytes"
    return ""


class Connection:
    """Calls one server, from many threads; opens nothing before the first call.

    Without ``retries`` every call is tried once.
    """

    def __init__(
        self,
        target: str,
        *,
        credentials: grpc.ChannelCredentials | None,
        metadata: tuple[tuple[str, str | bytes], ...],
        options: tuple[tuple[str, Any], ...],
        retries: Retries | None,
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._metadata = metadata
        self._options = options
        self._retries = retries
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: DataAccessStub | None = None
        self._closed = threading.Event()

    def close(self) -> None:
        """Cancel the calls that are under way and refuse all others. Safe to repeat."""
        with self._lock:
            self._closed.set()
            channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    def opened(self) -> DataAccessStub:
        """Return the stub; raises ``RuntimeError`` once the connection is closed."""
        if (stub := self._stub) is not None:
            return stub
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError("this client is closed; create another one")
            if self._stub is None:
                self._channel = open_channel(self._target, self._credentials, self._options)
                self._stub = DataAccessStub(self._channel)
            return self._stub

    def call(
        self,
        method: Callable[[DataAccessStub], grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        call: Call,
        seconds: float,
    ) -> ResponseT:
        """Return the answer, after as many tries as fit into so many seconds.

        Raises the ``Error`` of the last try, which speaks of all of them: a write that any
        of them may have applied is one that may have been applied.
        """
        metadata = self._metadata_of(call)
        deadline = time.monotonic() + seconds
        while True:
            send = method(self.opened())
            try:
                response = send(request, timeout=deadline - time.monotonic(), metadata=metadata)
            except grpc.RpcError as error:
                call = self._again(failure_of(call, error), call, deadline, error)
            else:
                self._succeeded()
                return response

    def stream(
        self,
        method: Callable[[DataAccessStub], grpc.UnaryStreamMultiCallable[RequestT, ResponseT]],
        request: RequestT,
        call: Call,
        *,
        seconds: float | None,
        patience: float,
    ) -> tuple[ResponseT | None, Stream[ResponseT]]:
        """Return the first portion of an answer, None if it has none, and those to come.

        ``seconds``, unless it is None, bounds the whole answer. Until the first portion is
        there the call is tried again, for so many seconds of ``patience``; not after it, so
        that no portion comes twice. Raises as ``call``, and so does the stream.
        """
        metadata = self._metadata_of(call)
        began = time.monotonic()
        while True:
            send = method(self.opened())
            left = None if seconds is None else began + seconds - time.monotonic()
            stream = Stream(send(request, timeout=left, metadata=metadata), call)
            try:
                first = next(stream, None)
            except Error as failure:
                call = self._again(failure, call, began + patience, failure.__cause__)
            except BaseException:
                # As by Ctrl-C: nobody else could end it.
                stream.cancel()
                raise
            else:
                self._succeeded()
                return first, stream

    def _metadata_of(self, call: Call) -> tuple[tuple[str, str | bytes], ...]:
        return ((_REQUEST_ID, call.request_id), *self._metadata)

    def _again(
        self, failure: Error, call: Call, deadline: float, cause: BaseException | None
    ) -> Call:
        """Wait, and return the next try; raises the failure if there shall be none."""
        wait = None
        if self._retries is not None and call.repeat.is_safe:
            wait = self._retries.wait(failure, call.tries, deadline - time.monotonic())
        if wait is None or self._closed.wait(wait):
            raise failure from cause
        return call.again(failure)

    def _succeeded(self) -> None:
        if self._retries is not None:
            self._retries.succeeded()
