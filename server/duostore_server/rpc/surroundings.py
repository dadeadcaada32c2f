"""The services beside ours: health and reflection, neither of which can hold up a call."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from duostore_server.rpc.admission import Admission, InRoom, OpenStreams, Room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grpc_health.v1.health import HealthServicer

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

# Whoever watches holds no thread, but some memory and a connection.
_MOST_WATCHERS: Final = 1000
_STREAM_SECONDS: Final = 10.0


class HealthService:
    """The handlers of ``grpc.health.v1.Health``, in a room that is theirs alone."""

    def __init__(self, servicer: HealthServicer, room: Room) -> None:
        self._servicer = servicer
        self._watchers = OpenStreams(_MOST_WATCHERS)
        self.handlers = Admission(
            grpc.method_handlers_generic_handler(
                HEALTH,
                {
                    "Check": grpc.unary_unary_rpc_method_handler(
                        InRoom(servicer.Check, room),
                        health_pb2.HealthCheckRequest.FromString,
                        health_pb2.HealthCheckResponse.SerializeToString,
                    ),
                    "Watch": grpc.unary_stream_rpc_method_handler(
                        InRoom(self._watch, room, non_blocking=True),
                        health_pb2.HealthCheckRequest.FromString,
                        health_pb2.HealthCheckResponse.SerializeToString,
                    ),
                },
            ),
            room,
        )

    def stop(self) -> None:
        """End the streams of those who watch, for whom a draining server would wait."""
        self._watchers.end()

    def _watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.ServicerContext,
        send: Callable[[health_pb2.HealthCheckResponse | None], None],
    ) -> None:
        self._watchers.enter(context)
        self._servicer.Watch(request, context, send)


class ReflectionService:
    """The handlers of server reflection; each stream takes a thread of its room and ends soon.

    A stream lasts as long as its client likes, which may be idle or gone: ``seconds``
    bounds it. Tools ask at the beginning, and open another if they need it.
    """

    def __init__(
        self, names: tuple[str, ...], room: Room, *, most: int, seconds: float = _STREAM_SECONDS
    ) -> None:
        self._servicer = reflection.ReflectionServicer((*names, reflection.SERVICE_NAME))
        self._streams = OpenStreams(most)
        self._seconds = seconds
        self.handlers = Admission(
            grpc.method_handlers_generic_handler(
                reflection.SERVICE_NAME,
                {
                    "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                        InRoom(self._info, room),
                        reflection_pb2.ServerReflectionRequest.FromString,
                        reflection_pb2.ServerReflectionResponse.SerializeToString,
                    )
                },
            ),
            room,
        )

    def stop(self) -> None:
        """End all streams."""
        self._streams.end()

    def _info(
        self,
        requests: Iterator[reflection_pb2.ServerReflectionRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[reflection_pb2.ServerReflectionResponse]:
        self._streams.enter(context)
        limit = threading.Timer(self._seconds, context.cancel)
        limit.daemon = True
        limit.start()
        try:
            yield from self._servicer.ServerReflectionInfo(requests, context)
        finally:
            limit.cancel()
