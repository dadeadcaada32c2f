"""C3 to C6, C8 and C10 under every order of steps that was tried, and each guard's mutant.

An execution is repeated from its seed, or from its trace: both are in the failure.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.interleaving.actors import Stage
from tests.interleaving.claims import ViolationError
from tests.interleaving.deployment import Design
from tests.interleaving.mutants import MUTANTS
from tests.interleaving.scenes import (
    LARGER,
    SMALL,
    async_saves,
    everything,
    restart_between_reads,
    state_of_two_savers_and_two_readers,
    two_editors,
)
from tests.interleaving.scheduler import World, at_random, exhaust

if TYPE_CHECKING:
    from tests.interleaving.claims import Claims
    from tests.interleaving.scenes import Scene
    from tests.interleaving.scheduler import Choose

SEEDS = 10_000
SEEDS_FOR_A_MUTANT = 3_000
ORDERS = 3_000
MOST_STATES = 2_000_000


def execute(scene: Scene, design: Design, choose: Choose, *, states: bool) -> Claims:
    """Run one execution and check what holds at each step and at rest."""
    world = World()
    stage = Stage(world, design)
    try:
        scene(stage)
        world.run(choose, states=states)
        stage.check_at_rest()
    except ViolationError as violation:
        violation.add_note("\n".join(world.trace))
        raise
    finally:
        world.close()
    return stage.claims


def states_of(scene: Scene, design: Design, *, prune: bool = True) -> int:
    """Execute a scene in every order; return the number of states."""

    def run(choose: Choose) -> None:
        execute(scene, design, choose, states=True)

    return exhaust(run, most=MOST_STATES, prune=prune)


def execute_seeds(seeds: range, design: Design) -> tuple[int, int]:
    """Execute everything in random orders; return the reads, and those without an answer."""
    reads = unanswered = 0
    for seed in seeds:
        rng = random.Random(seed)
        try:
            claims = execute(everything(rng), design, at_random(rng), states=False)
        except ViolationError as violation:
            violation.add_note(f"seed {seed}")
            raise
        reads += claims.reads
        unanswered += claims.unanswered
    return reads, unanswered


@pytest.mark.parametrize("scene", SMALL, ids=lambda scene: scene.__name__)
def test_every_order_of_a_small_scene_holds(scene: Scene) -> None:
    assert states_of(scene, Design()) > 20


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scene", LARGER, ids=lambda scene: scene.__name__)
def test_every_order_of_a_larger_scene_holds(scene: Scene) -> None:
    assert states_of(scene, Design()) > 5_000


@pytest.mark.parametrize("tenth", range(10))
def test_no_random_order_of_everything_violates_a_claim(tenth: int) -> None:
    seeds = range(tenth * SEEDS // 10, (tenth + 1) * SEEDS // 10)
    reads, unanswered = execute_seeds(seeds, Design())
    assert reads > 3 * len(seeds)
    assert unanswered < reads // 50, "only with Aurora cut off may a read fail, and few need it"


def orders_of(scene: Scene, design: Design) -> None:
    """Execute a scene in random orders: one that is too large for all of them."""
    for seed in range(ORDERS):
        try:
            execute(scene, design, at_random(random.Random(seed)), states=False)
        except ViolationError as violation:
            violation.add_note(f"seed {seed}")
            raise


def test_no_random_order_of_two_savers_and_two_readers_of_a_state_violates_a_claim() -> None:
    orders_of(state_of_two_savers_and_two_readers, Design())


def test_there_it_is_found_out_who_deletes_before_he_writes() -> None:
    mutant = MUTANTS["deletes before it writes, at home in DynamoDB"]
    with pytest.raises(ViolationError) as violation:
        orders_of(state_of_two_savers_and_two_readers, mutant.design)
    assert violation.value.claim == "C6"


@pytest.mark.parametrize("name", MUTANTS)
def test_each_guard_is_needed(name: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(ViolationError) as violation:
        states_of(mutant.scene, mutant.design)
    assert violation.value.claim == mutant.claim


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.at_random])
def test_random_orders_come_upon_the_mutant_too(name: str) -> None:
    with pytest.raises(ViolationError):
        execute_seeds(range(SEEDS_FOR_A_MUTANT), MUTANTS[name].design)


@pytest.mark.parametrize(
    "scene",
    [restart_between_reads, async_saves, two_editors],
    ids=lambda scene: scene.__name__,
)
def test_what_is_pruned_was_seen_before(scene: Scene) -> None:
    assert states_of(scene, Design(), prune=False) == states_of(scene, Design())
