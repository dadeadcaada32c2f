"""Who is cut off, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from duostore_server.rpc.streams import Streams

if TYPE_CHECKING:
    from collections.abc import MutableMapping


class Context:
    """What ``Streams`` uses of a call's context."""

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


class World:
    """Streams on a clock of their own, cut off after 30 s."""

    def __init__(self) -> None:
        self.now = 100.0
        self.streams = Streams(stall=30, clock=lambda: self.now)

    def look(self, after: float = 0) -> list[MutableMapping[str, Any]]:
        """Let time pass and look for who is stalled; return what was logged."""
        self.now += after
        with capture_logs() as logs:
            assert self.streams.cancel_stalled() is False
        return list(logs)


def test_who_takes_nothing_for_so_long_is_cut_off_once_and_told_of() -> None:
    world = World()
    slow, other = Context(), Context()
    with capture_logs() as logs, world.streams.sending(slow):  # type: ignore[arg-type]  # all that is used
        world.look(29.9)
        assert slow.cancelled == 0
        with world.streams.sending(other):  # type: ignore[arg-type]  # as above
            world.look(0.1)
            world.look(1)
        assert (slow.cancelled, other.cancelled) == (1, 0)
    # Of the one that was cut off, in the block of its call.
    assert [(line["event"], line["seconds"]) for line in logs] == [
        ("stream cut off, its client takes nothing", 30)
    ]


def test_how_long_messages_take_to_make_does_not_count() -> None:
    world = World()
    stream = Context()
    for _ in range(3):
        with world.streams.sending(stream):  # type: ignore[arg-type]  # all that is used
            world.look(29)
        world.look(1000)
    assert stream.cancelled == 0


def test_a_stream_that_fails_is_forgotten() -> None:
    world = World()
    stream = Context()
    with pytest.raises(RuntimeError), world.streams.sending(stream):  # type: ignore[arg-type]  # as above
        raise RuntimeError
    assert world.look(1000) == []
    assert stream.cancelled == 0
