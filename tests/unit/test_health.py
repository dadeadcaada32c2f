"""What the health checks say of stores that fail, and what the log says of why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from structlog.testing import capture_logs

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store, StoreUnavailableError
from duostore_server.processes import SchemaProbe
from duostore_server.rpc.health import HealthMonitor
from duostore_server.storage.aurora.migrate import MigrationError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING


class Servicer(HealthServicer):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int]] = []

    def set(self, service: str, status: int) -> None:
        self.told.append((service, status))
        super().set(service, status)

    def status(self, name: str) -> int:
        return dict(self.told)[name]


class Scripted:
    """A probe that fails with ``error`` as long as it has one."""

    def __init__(self, store: Store, error: Exception | None = None) -> None:
        self.store = store
        self.error = error

    def ping(self, deadline: Deadline) -> None:
        assert deadline.remaining() > 0
        if self.error is not None:
            raise self.error


class World:
    """A monitor of three scripted probes, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.aurora = Scripted(Store.AURORA)
        self.dynamodb = Scripted(Store.DYNAMODB)
        self.cache = Scripted(Store.CACHE)
        self.servicer = Servicer()
        self.noted: list[tuple[Store, bool]] = []
        self.monitor = HealthMonitor(
            self.servicer,
            (self.aurora, self.dynamodb, self.cache),
            ("a.Service",),
            noted=self._note,
            clock=lambda: self.now,
        )

    def _note(self, store: Store, *, up: bool) -> None:
        self.noted.append((store, up))

    def round(self) -> list[MutableMapping[str, object]]:
        """Let it ask every store; return what it logged."""
        with capture_logs() as logs:
            assert self.monitor.run_once() is False
        return list(logs)


def down(store: Store, cause: Exception) -> StoreUnavailableError:
    error = StoreUnavailableError(store)
    error.__cause__ = cause
    return error


def test_a_store_that_is_down_is_logged_with_its_cause() -> None:
    world = World()
    cause = OSError("connection refused\n\tIs the server running?")
    cause.add_note("a note of the driver")
    world.cache.error = down(Store.CACHE, cause)
    world.cache.error.add_note("memcached node 127.0.0.1:1")
    logs = [line for line in world.round() if line["event"] == "store is down"]
    assert [(line["store"], line["cause"]) for line in logs] == [
        (
            "cache",
            (
                "memcached node 127.0.0.1:1; a note of the driver; "
                "OSError: connection refused Is the server running?"
            ),
        )
    ]
    assert world.servicer.status("cache") == NOT_SERVING
    assert world.servicer.status("") == world.servicer.status("a.Service") == SERVING


def test_what_is_found_of_each_store_is_noted_each_time() -> None:
    world = World()
    world.round()
    world.dynamodb.error = down(Store.DYNAMODB, OSError("no route"))
    world.round()
    stores = (Store.AURORA, Store.DYNAMODB, Store.CACHE)
    assert world.noted == [
        *((store, True) for store in stores),
        *((store, store is not Store.DYNAMODB) for store in stores),
    ]


def test_while_it_stays_down_it_is_logged_once_a_minute() -> None:
    world = World()
    world.round()
    world.aurora.error = down(Store.AURORA, OSError("first"))
    assert [line["cause"] for line in world.round()] == ["OSError: first"]
    world.aurora.error = down(Store.AURORA, OSError("second"))
    world.now = 59.9
    assert world.round() == []
    world.aurora.error = down(Store.AURORA, MigrationError("another kind of cause"))
    assert [line["cause"] for line in world.round()] == ["MigrationError: another kind of cause"]
    world.aurora.error = down(Store.AURORA, OSError("second"))
    assert world.round() == []
    world.now = 60.0
    assert [line["cause"] for line in world.round()] == ["OSError: second"]
    world.aurora.error = None
    assert [line["event"] for line in world.round()] == ["store is reachable"]
    assert world.round() == []


def test_a_probe_that_breaks_keeps_no_other_from_being_asked() -> None:
    world = World()
    world.aurora.error = ZeroDivisionError("a bug")
    world.dynamodb.error = StoreUnavailableError(Store.DYNAMODB)
    logs = world.round()
    assert world.servicer.status("aurora") == NOT_SERVING
    assert world.servicer.status("dynamodb") == NOT_SERVING
    assert world.servicer.status("cache") == SERVING
    assert world.servicer.status("") == world.servicer.status("a.Service") == NOT_SERVING
    broken, unreachable, _ = logs
    # With its place, since it is a fault of ours; the other is not.
    assert broken["exc_info"] is world.aurora.error
    assert unreachable["exc_info"] is None


def test_whoever_watches_is_sent_changes_alone() -> None:
    world = World()
    for _ in range(3):
        world.round()
    assert sorted(world.servicer.told) == [
        ("", SERVING),
        ("a.Service", SERVING),
        ("aurora", SERVING),
        ("cache", SERVING),
        ("dynamodb", SERVING),
    ]


def test_aurora_is_down_until_its_schema_is_the_one_that_is_needed() -> None:
    calls: list[str] = []
    aurora = Scripted(Store.AURORA, StoreUnavailableError(Store.AURORA))
    lacking = True

    def ensure_current() -> None:
        calls.append("asked")
        if lacking:
            raise MigrationError("run `duostore migrate`")

    probe = SchemaProbe(aurora, ensure_current)
    deadline = Deadline.after(60)
    with pytest.raises(StoreUnavailableError):
        probe.ping(deadline)
    assert calls == []
    aurora.error = None
    with pytest.raises(StoreUnavailableError) as refused:
        probe.ping(deadline)
    assert "duostore migrate" in str(refused.value.__cause__)
    lacking = False
    for _ in range(3):
        probe.ping(deadline)
    assert len(calls) == 2
