"""Who may come in: threads of their own for each group of calls, and a bound on their number.

What grpc.server offers is one pool and one bound for all, which whoever is slow or many
uses up for the others, health checks included.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import grpc

from duostore_server.rpc.status import overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


class Room(ThreadPoolExecutor):
    """Threads for some calls alone; full while it holds ``most`` of them, waiting ones included.

    A call holds its place until its behaviour returns; a stream, until it ends, unless its
    behaviour is non-blocking and returns earlier.
    """

    def __init__(self, name: str, *, threads: int, most: int) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._most = most
        self._held = 0
        self._counting = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether another call is one too many."""
        return self._held >= self._most

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401 - as the base
        """Hold a call until it is done; it is counted, not refused."""
        future = super().submit(fn, *args, **kwargs)
        with self._counting:
            self._held += 1
        future.add_done_callback(self._leave)
        return future

    def _leave(self, _: Future[Any]) -> None:
        with self._counting:
            self._held -= 1


class InRoom:
    """A behaviour that runs in a room, not on the threads of the server."""

    def __init__(
        self,
        behavior: Callable[..., object],
        room: ThreadPoolExecutor | None,
        *,
        non_blocking: bool = False,
    ) -> None:
        """Without a room it runs on the threads of the server after all.

        ``non_blocking`` streams answer by a callback, and may go on doing so after they have
        returned.
        """
        self._behavior = behavior
        # Where grpc.server looks; the health service of grpcio does the same.
        self.experimental_thread_pool = room
        self.experimental_non_blocking = non_blocking

    def __call__(self, *args: object) -> object:
        return self._behavior(*args)


class Admission(grpc.GenericRpcHandler):
    """Handlers of a service whose calls are refused at once while their room is full."""

    def __init__(
        self,
        handlers: grpc.GenericRpcHandler,
        room: Room,
        rooms: Mapping[str, Room] | None = None,
    ) -> None:
        """``rooms`` are those of RPCs that have one of their own, by the names of the RPCs."""
        self._handlers = handlers
        self._room = room
        self._rooms = rooms or {}
        self._refusal: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            InRoom(_refuse, _PollingThread())
        )

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return how to answer a call; None if it is none of ours."""
        handler = self._handlers.service(handler_call_details)
        if handler is None:
            return None
        # Of "/package.Service/Rpc".
        rpc = handler_call_details.method.rpartition("/")[2]
        return self._refusal if self._rooms.get(rpc, self._room).is_full else handler


class OpenStreams:
    """The streams that are open, at most so many, which a server that stops can end."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[grpc.ServicerContext] = set()
        self._changing = threading.Lock()

    def enter(self, context: grpc.ServicerContext) -> None:
        """Count a stream until it ends; aborts it if it is one too many."""
        with self._changing:
            full = len(self._open) >= self._most
            if not full:
                self._open.add(context)
        if full:
            _refuse(None, context)
        if not context.add_callback(lambda: self._forget(context)):
            self._forget(context)

    def end(self) -> None:
        """Cancel all that are open."""
        with self._changing:
            still_open = list(self._open)
        for context in still_open:
            context.cancel()

    def _forget(self, context: grpc.ServicerContext) -> None:
        with self._changing:
            self._open.discard(context)


class _PollingThread(ThreadPoolExecutor):
    """Runs what it is given at once, on the thread that polls: for what never waits."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:  # noqa: ANN401 - as the base
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _refuse(_requests: object, context: grpc.ServicerContext) -> NoReturn:
    """Abort a call, unread. Takes a stream: of a single request grpc would wait for it."""
    context.abort_with_status(
        overloaded("as many calls of this kind are under way as the server takes; try again later")
    )
