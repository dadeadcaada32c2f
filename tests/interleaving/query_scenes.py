"""Who saves and who asks in an execution, and what goes wrong meanwhile."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from tests.interleaving.query_stores import NOTE, ONE, TWO
from tests.support.simulated_memcached import Delivery

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.interleaving.query_stage import QueryStage

Scene: TypeAlias = "Callable[[QueryStage], None]"


def first_query(s: QueryStage) -> None:
    s.saver("saver")
    s.querier("querier")


def save_and_query(s: QueryStage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.querier("querier", times=2)


def generation_is_evicted(s: QueryStage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.querier("querier", times=2)
    s.event("evict", s.evict_generation)


def result_is_evicted(s: QueryStage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.querier("querier", times=2)
    s.event("evict", s.evict_results)


def two_queriers(s: QueryStage) -> None:
    s.prime(cached=True)
    s.evict_results()
    s.saver("saver")
    s.querier("querier1")
    s.querier("querier2")


def two_queriers_and_no_generation(s: QueryStage) -> None:
    s.prime()
    s.saver("saver")
    s.querier("querier1")
    s.querier("querier2")


def two_savers(s: QueryStage) -> None:
    s.prime(ONE, TWO, cached=True)
    s.saver("saver1", ONE)
    s.saver("saver2", ONE, TWO)
    s.querier("querier")


def saver_dies(s: QueryStage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.querier("querier")
    s.projector("projector")
    s.event("kill", lambda: s.kill("saver"))


def row_is_removed(s: QueryStage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.completer("saver")
    s.querier("querier")
    s.event("kill", lambda: s.kill("saver"))


def cache_restarts(s: QueryStage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.querier("querier", times=2)
    s.event("restart", s.node.restart)


def cache_is_cut_off(s: QueryStage) -> None:
    s.prime(cached=True)
    s.saver("saver")
    s.querier("querier", times=2)
    cut_cache(s)


def holder_dies(s: QueryStage) -> None:
    s.prime(cached=True)
    s.evict_results()
    s.querier("querier1")
    s.querier("querier2")
    s.event("kill", lambda: s.kill("querier1"))


def holder_dies_beside_a_saver(s: QueryStage) -> None:
    holder_dies(s)
    s.saver("saver")


def generation_is_placed(s: QueryStage) -> None:
    """By one who has not made it last yet, while others use it."""
    s.prime()
    s.placer("placer")
    s.saver("saver")
    s.querier("querier", times=2)


def generation_cannot_be_read(s: QueryStage) -> None:
    """Its node does not answer readers, though others do."""
    s.prime()
    s.lose_all("get")
    s.saver("saver")
    s.querier("querier", times=2)


def of_two_kinds(s: QueryStage) -> None:
    s.prime(ONE, NOTE)
    s.asker(both=True)()
    s.save("before", NOTE)
    s.saver("saver", ONE)
    s.projector("projector")
    s.querier("querier", both=True)


def lost(command: str, delivery: Delivery) -> Scene:
    """Return a scene in which the answer to a command of the generation is lost."""

    def scene(s: QueryStage) -> None:
        s.prime(cached=command == "delete")
        s.saver("saver")
        s.querier("querier", times=2)
        s.lose_next(command, delivery)
        if delivery is Delivery.LATE:
            s.event("deliver", s.deliver)

    scene.__name__ = f"{command}_is_{delivery.value}"
    return scene


SMALL: list[Scene] = [
    first_query,
    save_and_query,
    generation_is_evicted,
    result_is_evicted,
    two_savers,
    saver_dies,
    row_is_removed,
    cache_restarts,
    cache_is_cut_off,
    holder_dies,
    generation_is_placed,
    generation_cannot_be_read,
    of_two_kinds,
    *(lost(command, delivery) for command in ("add", "cas", "delete") for delivery in Delivery),
]
LARGER: list[Scene] = [two_queriers, two_queriers_and_no_generation, holder_dies_beside_a_saver]


def everything(rng: random.Random) -> Scene:
    """Return a scene of four to ten actors and the faults among them."""

    def perhaps(share: float) -> bool:
        return rng.random() < share

    def scene(s: QueryStage) -> None:
        if perhaps(0.7):
            s.prime(ONE, NOTE, cached=perhaps(0.7))
        s.saver("saver1", times=rng.randint(1, 2))
        s.saver("saver2", *rng.choice([(TWO,), (ONE, TWO), (ONE, NOTE), (NOTE,)]))
        s.querier("querier1", times=2, both=perhaps(0.3))
        s.querier("querier2", times=rng.randint(1, 2), both=perhaps(0.3))
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


def cut_cache(s: QueryStage) -> None:
    s.event("cut cache", partial(s.cut_cache, off=True), partial(s.cut_cache, off=False))


def _death_of(name: str) -> Scene:
    return lambda s: s.event(f"kill {name}", lambda: s.kill(name))


# With the share of the executions in which they take part.
_OTHERS: list[tuple[float, Scene]] = [
    (0.4, lambda s: s.completer("saver1")),
    (0.4, lambda s: s.completer("saver2")),
    (0.3, lambda s: s.querier("querier3", both=True)),
]
_FAULTS: list[Scene] = [
    cut_cache,
    lambda s: s.event("evict generation", s.evict_generation, s.evict_generation),
    lambda s: s.event("evict note's generation", lambda: s.evict_generation("note")),
    lambda s: s.event("evict results", s.evict_results, s.evict_results),
    lambda s: s.event("restart", s.node.restart),
    *map(_death_of, ("saver1", "saver2", "querier1", "projector0")),
]
