"""C3, C4, C5, C6 and C8 under every order of steps that was tried, and each guard's mutant.

An execution is repeated from its seed, or from its trace: both are in the failure.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tests.interleaving.deployment import KEYS, Deployment, Design, ViolationError
from tests.interleaving.mutants import MUTANTS
from tests.interleaving.scheduler import World, at_random, exhaust

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.interleaving.scheduler import Choose

SEEDS = 20_000

Scene: TypeAlias = "Callable[[Deployment], None]"


def execute(scene: Scene, design: Design, choose: Choose, *, states: bool) -> None:
    """Run one execution and check what holds at each step and at rest."""
    world = World()
    deployment = Deployment(world, design)
    scene(deployment)
    try:
        world.run(choose, states=states)
        deployment.check_at_rest()
    except ViolationError as violation:
        violation.add_note("\n".join(world.trace))
        raise
    finally:
        world.close()


# Small scenes, every order.


def save_and_read(d: Deployment) -> None:
    d.saver("saver")
    d.reader("reader", times=2)
    d.event("evict", d.evict)


def save_and_save(d: Deployment) -> None:
    d.saver("saver1")
    d.saver("saver2")


def save_and_delete(d: Deployment) -> None:
    d.saver("saver")
    d.deleter("deleter")


def saver_dies(d: Deployment) -> None:
    d.saver("saver")
    d.reader("reader")
    d.event("kill", lambda: d.kill("saver"))


def cache_is_cut_off(d: Deployment) -> None:
    d.saver("saver")
    d.reader("reader")
    _cut_cache(d)


def dynamodb_is_cut_off(d: Deployment) -> None:
    d.saver("saver")
    d.reader("reader")
    _cut_dynamodb(d)


def cache_restarts(d: Deployment) -> None:
    d.saver("saver")
    d.reader("reader")
    d.event("restart", d.node.restart)


def two_savers_and_a_reader(d: Deployment) -> None:
    d.saver("saver1")
    d.saver("saver2")
    d.reader("reader")


def two_readers_and_a_restart(d: Deployment) -> None:
    d.saver("saver")
    d.reader("reader1")
    d.reader("reader2")
    d.event("restart", d.node.restart)


def projector_takes_over(d: Deployment) -> None:
    d.saver("saver")
    d.reader("reader")
    d.projector("projector")
    d.event("kill", lambda: d.kill("saver"))


SMALL = [
    save_and_read,
    save_and_save,
    save_and_delete,
    saver_dies,
    cache_is_cut_off,
    dynamodb_is_cut_off,
    cache_restarts,
]
LARGER = [two_savers_and_a_reader, two_readers_and_a_restart, projector_takes_over]


@pytest.mark.parametrize("scene", SMALL, ids=lambda scene: scene.__name__)
def test_every_order_of_a_small_scene_holds(scene: Scene) -> None:
    assert states_of(scene) > 100


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scene", LARGER, ids=lambda scene: scene.__name__)
def test_every_order_of_a_larger_scene_holds(scene: Scene) -> None:
    assert states_of(scene) > 20_000


def states_of(scene: Scene) -> int:
    """Execute a scene in every order; return the number of states."""
    return exhaust(lambda choose: execute(scene, Design(), choose, states=True), most=2_000_000)


# All together, in random orders.


def everything(rng: random.Random) -> Scene:
    """Return a scene of three to nine actors and the faults among them."""

    def scene(d: Deployment) -> None:
        d.saver("saver1", times=rng.randint(1, 2))
        d.saver("saver2", key=rng.choice(KEYS))
        d.reader("reader1", times=2)
        d.reader("reader2")
        if rng.random() < 0.5:
            d.deleter("deleter")
        if rng.random() < 0.3:
            d.batch_reader("batch reader")
        if rng.random() < 0.7:
            d.projector("projector", rounds=2)
        if rng.random() < 0.3:
            d.lose_answers(rng)
            d.event("deliver", d.deliver)
        for fault in rng.sample(_FAULTS, k=rng.randint(0, 3)):
            fault(d)

    return scene


def _cut_cache(d: Deployment) -> None:
    d.event("cut cache", lambda: d.cut(d.node, off=True), lambda: d.cut(d.node, off=False))


def _cut_dynamodb(d: Deployment) -> None:
    d.event(
        "cut DynamoDB", lambda: d.cut(d.dynamodb, off=True), lambda: d.cut(d.dynamodb, off=False)
    )


_FAULTS: list[Scene] = [
    _cut_cache,
    _cut_dynamodb,
    lambda d: d.event("evict", d.evict, d.evict),
    lambda d: d.event("restart", d.node.restart),
    lambda d: d.event("kill saver1", lambda: d.kill("saver1")),
    lambda d: d.event("kill reader1", lambda: d.kill("reader1")),
]


def first_violation(design: Design, seeds: range) -> ViolationError | None:
    """Return what the first execution of these seeds violates that violates anything."""
    for seed in seeds:
        rng = random.Random(seed)
        try:
            execute(everything(rng), design, at_random(rng), states=False)
        except ViolationError as violation:
            violation.add_note(f"seed {seed}")
            return violation
    return None


@pytest.mark.parametrize("tenth", range(10))
def test_no_random_order_of_everything_violates_a_claim(tenth: int) -> None:
    violation = first_violation(Design(), range(tenth * SEEDS // 10, (tenth + 1) * SEEDS // 10))
    if violation is not None:
        raise violation


@pytest.mark.parametrize("mutant", MUTANTS)
def test_each_guard_is_needed(mutant: str) -> None:
    assert first_violation(MUTANTS[mutant], range(SEEDS)) is not None, f"{mutant} survives"
