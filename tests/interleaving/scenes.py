"""Who does what in an execution, and what goes wrong meanwhile.

Nearly all begin with a version 1 that is projected, and cached where readers shall come
upon it: in an empty deployment there is nothing stale to be read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from duostore_server.access.shapes import BOTH, NEW
from duostore_server.domain.transactions import IfVersion
from tests.interleaving.deployment import Flags
from tests.interleaving.stores import ASYNC, ASYNC_OTHER, PROJECTED, STATE

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.interleaving.actors import Stage

Scene: TypeAlias = "Callable[[Stage], None]"


def first_saves(s: Stage) -> None:
    s.saver("saver", times=2)
    s.reader("reader")


def save_and_read(s: Stage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.completer("saver")
    s.reader("reader", times=2)
    s.event("evict", s.evict, s.evict)


def save_and_save(s: Stage) -> None:
    s.prime()
    s.saver("saver1")
    s.saver("saver2")
    s.reader("reader")


def save_and_delete(s: Stage) -> None:
    s.prime()
    s.saver("saver")
    s.deleter("deleter")
    s.reader("reader")


def saver_dies(s: Stage) -> None:
    s.prime()
    s.saver("saver")
    s.reader("reader")
    s.projector("projector")
    s.event("kill", lambda: s.kill("saver"))


def deleter_dies(s: Stage) -> None:
    s.prime()
    s.deleter("deleter")
    s.reader("reader")
    s.projector("projector")
    s.event("kill", lambda: s.kill("deleter"))


def two_readers(s: Stage) -> None:
    s.prime()
    s.reader("reader1")
    s.saver("saver")
    s.reader("reader2", times=2, tokens=False)


def cache_is_cut_off(s: Stage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.completer("saver")
    s.reader("reader", times=2)
    cut_cache(s)


def dynamodb_is_cut_off(s: Stage) -> None:
    s.prime()
    s.saver("saver")
    s.completer("saver")
    s.reader("reader")
    cut_dynamodb(s)


def aurora_is_cut_off(s: Stage) -> None:
    """What is projected is read without Aurora: reads are not excused."""
    s.prime()
    s.saver("saver")
    s.completer("saver")
    s.reader("reader")
    s.claims.writes_may_fail = True
    s.event("cut Aurora", lambda: s.cut_aurora(off=True), lambda: s.cut_aurora(off=False))


def cache_restarts(s: Stage) -> None:
    s.prime()
    s.saver("saver")
    s.completer("saver")
    s.reader("reader")
    s.event("restart", s.node.restart)


def restart_between_reads(s: Stage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.reader("reader", times=2)
    s.event("restart", s.node.restart)


def own_write_is_read(s: Stage) -> None:
    """The projector has not come yet, so the cache and DynamoDB hold what was before."""
    s.prime(ASYNC, cached=True)
    s.client("client", ASYNC)
    s.event("evict", lambda: s.evict(ASYNC))


def async_saves(s: Stage) -> None:
    s.saver("saver", ASYNC)
    s.saver("other saver", ASYNC_OTHER)
    s.projector("projector", rounds=2)


def two_projectors(s: Stage) -> None:
    s.prime(ASYNC)
    s.saver("saver", ASYNC, times=2)
    s.projector("projector1")
    s.projector("projector2")
    s.event("kill", lambda: s.kill("projector1"))


def completion_is_late(s: Stage) -> None:
    s.prime()
    s.saver("saver1")
    s.completer("saver1")
    s.saver("saver2")
    s.event("kill", lambda: s.kill("saver2"))


def two_editors(s: Stage) -> None:
    s.prime(cached=True)
    s.editor("editor1")
    s.editor("editor2")


def strong_read(s: Stage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.reader("reader", strong=True)
    s.event("kill", lambda: s.kill("saver"))


def too_large_for_dynamodb(s: Stage) -> None:
    s.statements = False
    s.prime()
    s.saver("saver", large=True)
    s.completer("saver")
    s.reader("reader", times=2)


def dynamodb_lags(s: Stage) -> None:
    """Version 2 was committed and not projected when DynamoDB is cut off."""
    s.prime(ASYNC)
    writer = s.make_writer("before")
    s.write(ASYNC, partial(writer.save, ASYNC, {"by": "before"}, None))
    s.cut(s.dynamodb, off=True)
    s.reader("reader", ASYNC, times=2, tokens=False)
    s.event("mend DynamoDB", lambda: s.cut(s.dynamodb, off=False))
    s.event("evict", lambda: s.evict(ASYNC))


def state_is_saved_and_read(s: Stage) -> None:
    s.prime(STATE, cached=True)
    s.saver("saver", STATE)
    s.reader("reader", STATE, times=2)
    s.event("evict", lambda: s.evict(STATE))


def state_of_two_savers(s: Stage) -> None:
    s.prime(STATE, cached=True)
    s.saver("saver1", STATE)
    s.saver("saver2", STATE)
    s.reader("reader", STATE)
    s.event("evict", lambda: s.evict(STATE))


def saver_of_state_dies(s: Stage) -> None:
    s.prime(STATE, cached=True)
    s.saver("saver", STATE)
    s.deleter("deleter", STATE)
    s.reader("reader", STATE)
    s.event("kill", lambda: s.kill("saver"))


def state_without_aurora(s: Stage) -> None:
    """What is at home in DynamoDB is written and read all the same."""
    s.prime(STATE)
    s.cut_aurora(off=True)
    s.editor("editor", STATE)
    s.reader("reader", STATE)


def two_repeat(s: Stage) -> None:
    s.prime()
    s.repeater("repeater1", times=1)
    s.repeater("repeater2", times=1)
    s.event("kill", lambda: s.kill("repeater1"))


def two_repeat_state(s: Stage) -> None:
    s.prime(STATE)
    s.repeater("repeater1", STATE)
    s.repeater("repeater2", STATE, times=1)
    s.event("kill", lambda: s.kill("repeater1"))


def two_repeat_what_had_to_be(s: Stage) -> None:
    s.prime()
    s.repeater("repeater1", times=1, precondition=IfVersion(1))
    s.repeater("repeater2", times=1, precondition=IfVersion(1))
    s.event("kill", lambda: s.kill("repeater1"))


def two_repeat_what_state_had_to_be(s: Stage) -> None:
    s.prime(STATE)
    s.repeater("repeater1", STATE, precondition=IfVersion(1))
    s.repeater("repeater2", STATE, times=1, precondition=IfVersion(1))
    s.event("kill", lambda: s.kill("repeater1"))


def state_of_two_savers_and_two_readers(s: Stage) -> None:
    s.prime(STATE, cached=True)
    s.saver("saver1", STATE)
    s.saver("saver2", STATE)
    s.reader("reader1", STATE)
    s.reader("reader2", STATE)
    s.event("evict", lambda: s.evict(STATE), lambda: s.evict(STATE))


def two_readers_and_a_restart(s: Stage) -> None:
    two_readers(s)
    s.event("restart", s.node.restart)


def two_savers_and_a_projector(s: Stage) -> None:
    save_and_save(s)
    s.projector("projector")
    s.event("kill", lambda: s.kill("saver1"))


def cache_is_cut_off_from_two(s: Stage) -> None:
    cache_is_cut_off(s)
    s.reader("reader2")


def shapes_begin_to_differ(s: Stage) -> None:
    """Some processes know already that both shapes are written, and that the second is read."""
    s.prime(cached=True)
    s.saver("saver", flags=Flags(BOTH))
    s.reader("reader")
    s.reader("reader of the second", flags=Flags(BOTH, 100))


def first_shape_is_retired(s: Stage) -> None:
    """A process writes the second shape alone, and another knows of the first alone."""
    s.prime(flags=Flags(NEW))
    s.saver("saver of the second", flags=Flags(NEW, 100))
    s.reader("reader")


def second_shape_is_left_behind(s: Stage) -> None:
    """Both shapes are there, and then a process writes that knows of the first alone."""
    s.prime(flags=Flags(BOTH))
    s.saver("saver")
    s.reader("reader of the second", flags=Flags(BOTH, 100))


def first_shape_is_brought_back(s: Stage) -> None:
    s.prime(flags=Flags(NEW))
    s.saver("saver")
    s.reader("reader", times=2, flags=Flags(BOTH))


SMALL = [
    shapes_begin_to_differ,
    first_shape_is_retired,
    second_shape_is_left_behind,
    first_shape_is_brought_back,
    first_saves,
    save_and_read,
    save_and_save,
    save_and_delete,
    saver_dies,
    deleter_dies,
    two_readers,
    restart_between_reads,
    cache_is_cut_off,
    dynamodb_is_cut_off,
    aurora_is_cut_off,
    cache_restarts,
    own_write_is_read,
    async_saves,
    two_projectors,
    completion_is_late,
    two_editors,
    strong_read,
    too_large_for_dynamodb,
    dynamodb_lags,
    state_is_saved_and_read,
    state_of_two_savers,
    saver_of_state_dies,
    state_without_aurora,
    two_repeat,
    two_repeat_state,
    two_repeat_what_had_to_be,
    two_repeat_what_state_had_to_be,
]
LARGER = [
    state_of_two_savers_and_two_readers,
    two_readers_and_a_restart,
    two_savers_and_a_projector,
    cache_is_cut_off_from_two,
]


def everything(rng: random.Random) -> Scene:
    """Return a scene of four to twelve actors and the faults among them."""

    def perhaps(share: float) -> bool:
        return rng.random() < share

    def scene(s: Stage) -> None:
        if perhaps(0.5):
            s.prime(cached=perhaps(0.5))
        s.statements = perhaps(0.8)
        s.saver("saver1", times=rng.randint(1, 2), large=not s.statements and perhaps(0.5))
        s.saver("saver2", rng.choice(PROJECTED))
        s.reader("reader1", times=2)
        s.reader("reader2", strong=perhaps(0.1))
        for share, add in _OTHERS:
            if perhaps(share):
                add(s)
        for number in range(rng.choice((0, 1, 1, 2))):
            s.projector(f"projector{number}", rounds=2)
        if perhaps(0.3):
            s.lose_answers(rng)
            s.event("deliver", s.deliver)
        for fault in rng.sample(_FAULTS, k=rng.randint(0, 3)):
            fault(s)

    return scene


def cut_cache(s: Stage) -> None:
    s.event("cut cache", lambda: s.cut(s.node, off=True), lambda: s.cut(s.node, off=False))


def cut_dynamodb(s: Stage) -> None:
    s.claims.state_may_fail = True
    s.event(
        "cut DynamoDB", lambda: s.cut(s.dynamodb, off=True), lambda: s.cut(s.dynamodb, off=False)
    )


def cut_aurora(s: Stage) -> None:
    s.claims.reads_may_fail = s.claims.writes_may_fail = True
    s.event("cut Aurora", lambda: s.cut_aurora(off=True), lambda: s.cut_aurora(off=False))


def _death_of(name: str) -> Scene:
    return lambda s: s.event(f"kill {name}", lambda: s.kill(name))


# With the share of the executions in which they take part.
_OTHERS: list[tuple[float, Scene]] = [
    (0.4, lambda s: s.completer("saver1")),
    (0.4, lambda s: s.completer("saver2")),
    (0.4, lambda s: s.deleter("deleter")),
    (0.2, lambda s: s.batch_reader("batch reader")),
    (0.1, lambda s: s.client("client")),
    (0.1, lambda s: s.client("async client", ASYNC)),
    (0.2, lambda s: s.editor("editor")),
    (0.2, lambda s: s.repeater("repeater1")),
    (0.2, lambda s: s.repeater("repeater2")),
    (0.2, lambda s: s.saver("state saver1", STATE)),
    (0.2, lambda s: s.saver("state saver2", STATE, times=2)),
    (0.2, lambda s: s.deleter("state deleter", STATE)),
    (0.2, lambda s: s.reader("state reader1", STATE, times=2)),
    (0.2, lambda s: s.reader("state reader2", STATE)),
    (0.2, lambda s: s.editor("state editor", STATE)),
    (0.1, lambda s: s.repeater("state repeater1", STATE)),
    (0.1, lambda s: s.repeater("state repeater2", STATE)),
]
_FAULTS: list[Scene] = [
    cut_cache,
    cut_dynamodb,
    cut_aurora,
    lambda s: s.event("evict", s.evict, s.evict),
    lambda s: s.event("evict state", lambda: s.evict(STATE)),
    lambda s: s.event("restart", s.node.restart),
    *map(_death_of, ("saver1", "reader1", "deleter", "projector0")),
]
