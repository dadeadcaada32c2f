"""Tells whether the service and each store behind it can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import structlog
from grpc_health.v1 import health_pb2

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Collection

    from grpc_health.v1.health import HealthServicer

    from duostore_server.domain.ports import Probe

_PROBE_SECONDS: Final = 0.5

_log = structlog.get_logger(__name__)


class HealthMonitor:
    """Asks each store and publishes what it finds by the gRPC health protocol.

    Service names: ``aurora``, ``dynamodb`` and ``cache`` for the stores; the empty name
    and the full names of the services for the whole, which serves as long as one of
    the databases does: Gets go on without the other, and nothing needs the cache.
    """

    def __init__(
        self, servicer: HealthServicer, probes: Collection[Probe], services: Collection[str]
    ) -> None:
        self._servicer = servicer
        self._probes = tuple(probes)
        self._whole = ("", *services)
        self._known: dict[Store, bool] = {}

    def run_once(self) -> bool:
        """Ask every store once."""
        for probe in self._probes:
            serving = _answers(probe)
            if self._known.get(probe.store) != serving:
                self._known[probe.store] = serving
                tell = _log.info if serving else _log.warning
                tell("store is reachable" if serving else "store is down", store=probe.store.value)
            self._servicer.set(probe.store.value, _status(serving))
        whole = any(self._known.get(store) for store in (Store.AURORA, Store.DYNAMODB))
        for service in self._whole:
            self._servicer.set(service, _status(whole))
        return False


def _answers(probe: Probe) -> bool:
    try:
        probe.ping(Deadline.after(_PROBE_SECONDS))
    except (StoreError, DeadlineExceededError):
        return False
    return True


def _status(serving: bool) -> int:  # noqa: FBT001 - what it is about
    answer = health_pb2.HealthCheckResponse
    return answer.SERVING if serving else answer.NOT_SERVING
