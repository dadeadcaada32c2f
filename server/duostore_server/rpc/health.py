"""Tells whether the service and each store behind it can be used."""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Final, Protocol

import structlog
from grpc_health.v1 import health_pb2

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, Store, StoreError
from duostore_server.telemetry.causes import cause_of, chain_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from grpc_health.v1.health import HealthServicer

    from duostore_server.domain.ports import Probe

_PROBE_SECONDS: Final = 0.5
_REPEAT_SECONDS: Final = 60.0

_log = structlog.get_logger(__name__)


class Noted(Protocol):
    """Takes note of whether a store answered."""

    def __call__(self, store: Store, /, *, up: bool) -> None:
        """Take note, each time it is asked."""
        ...


def _unnoted(_store: Store, /, *, up: bool) -> None:
    pass


class HealthMonitor:
    """Asks each store and publishes what it finds by the gRPC health protocol.

    Service names: ``aurora``, ``dynamodb`` and ``cache`` for the stores; the empty name
    and the full names of the services for the whole, which serves as long as one of
    the databases does: Gets go on without the other, and nothing needs the cache.
    """

    def __init__(
        self,
        servicer: HealthServicer,
        probes: Collection[Probe],
        services: Collection[str],
        *,
        noted: Noted = _unnoted,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``noted`` is told what is found of each store; ``clock`` never goes back, in seconds."""
        self._servicer = servicer
        self._probes = tuple(probes)
        self._whole = ("", *services)
        self._noted = noted
        self._clock = clock
        self._known: dict[Store, bool] = {}
        self._published: dict[str, bool] = {}
        self._told: dict[tuple[Store, str], float] = {}

    def run_once(self) -> bool:
        """Ask every store once."""
        for probe in self._probes:
            failure = _failure(probe)
            self._tell(probe.store, failure)
            self._known[probe.store] = failure is None
            self._noted(probe.store, up=failure is None)
            self._publish(probe.store.value, serving=failure is None)
        whole = any(self._known.get(store) for store in (Store.AURORA, Store.DYNAMODB))
        for service in self._whole:
            self._publish(service, serving=whole)
        return False

    def _publish(self, name: str, *, serving: bool) -> None:
        # Each time it is set, everyone who watches is sent a message.
        if self._published.get(name) != serving:
            self._servicer.set(name, _status(serving))
            self._published[name] = serving

    def _tell(self, store: Store, failure: Exception | None) -> None:
        """Log what changed, and of a store that stays down each kind of cause once a minute."""
        changed = self._known.get(store) is not (failure is None)
        if failure is None:
            if changed:
                _log.info("store is reachable", store=store.value)
            return
        now = self._clock()
        kind = (store, " ".join(type(error).__name__ for error in chain_of(failure)))
        if changed or now >= self._told.get(kind, -inf) + _REPEAT_SECONDS:
            self._told[kind] = now
            expected = isinstance(failure, (StoreError, DeadlineExceededError))
            _log.warning(
                "store is down",
                store=store.value,
                cause=cause_of(failure),
                exc_info=None if expected else failure,
            )


def _failure(probe: Probe) -> Exception | None:
    try:
        probe.ping(Deadline.after(_PROBE_SECONDS))
    except Exception as error:  # noqa: BLE001 - the edge of a probe: the others go on
        return error
    return None


def _status(serving: bool) -> int:  # noqa: FBT001 - what it is about
    answer = health_pb2.HealthCheckResponse
    return answer.SERVING if serving else answer.NOT_SERVING
