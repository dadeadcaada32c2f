"""How long a backfill's watcher waits for a service that is away; the rest is in tests/rpc."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from duostore.v1 import admin_pb2_grpc
from duostore.v1.admin_pb2 import BackfillRequest
from duostore_server.cli.backfill_watch import Watch
from duostore_server.cli.progress_display import NoDisplay
from tests.support.scripted_admin import ScriptedAdmin, backfilled, serving
from tests.support.scripted_load import Time
from tests.support.scripted_service import DIRECT, status

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF = backfilled(doneCount=500)
DONE = backfilled("DONE")
BROKEN = status(grpc.StatusCode.UNAVAILABLE, "away")


class Watched:
    """A watch in a time of its own, that passes when the watch waits."""

    def __init__(self, stub: Any, *, retry_for: float, jitter: float = 1.0) -> None:
        self.time = Time()
        self.waits: list[float] = []
        self.out = io.StringIO()
        self.watch = Watch(
            stub,
            (),
            NoDisplay(self.out),
            retry_for=retry_for,
            timeout=10,
            wait=self._wait,
            clock=self.time,
            jitter=lambda: jitter,
        )

    def _wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time.now += seconds

    def done_counts(self) -> list[int]:
        request = BackfillRequest(kind="note", action=BackfillRequest.ACTION_RUN)
        return [answer.done_count for answer in self.watch.progress(request)]


@pytest.fixture
def admin() -> ScriptedAdmin:
    return ScriptedAdmin()


@pytest.fixture
def stub(admin: ScriptedAdmin) -> Iterator[Any]:
    with serving(admin) as target, grpc.insecure_channel(target, [DIRECT]) as channel:
        yield admin_pb2_grpc.AdminStub(channel)


def test_it_waits_twice_as_long_each_time_and_looks_every_second_then(
    admin: ScriptedAdmin, stub: Any
) -> None:
    admin.script("Backfill", [HALF, BROKEN], *[BROKEN] * 6, [HALF], [HALF], BROKEN, [HALF], [DONE])
    watched = Watched(stub, retry_for=60)
    assert watched.done_counts() == [500, 500, 500, 500, 0]
    assert watched.waits == [0.5, 1, 2, 4, 8, 10, 10, 1, 1, 1, 1]
    assert watched.out.getvalue().splitlines()[1:] == [
        "The service answers again.",
        "The service is away again; trying again.",
        "The service answers again.",
    ]


def test_many_watchers_do_not_come_at_once(admin: ScriptedAdmin, stub: Any) -> None:
    admin.script("Backfill", [HALF, BROKEN], BROKEN, [DONE])
    watched = Watched(stub, retry_for=60, jitter=0.0)
    watched.done_counts()
    assert watched.waits == [0.25, 0.5]


def test_it_gives_up_once_nobody_has_answered_for_so_long(admin: ScriptedAdmin, stub: Any) -> None:
    admin.script("Backfill", [HALF, BROKEN], *[BROKEN] * 9)
    watched = Watched(stub, retry_for=7)
    with pytest.raises(grpc.RpcError):
        watched.done_counts()
    # 0.5, 1, 2, and 4 seconds: the last look is the first after 7 s.
    assert watched.waits == [0.5, 1, 2, 4]
