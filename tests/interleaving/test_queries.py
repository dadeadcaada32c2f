"""Q1 and Q2 under every order of steps that was tried, and each guard's mutant.

An execution is repeated from its seed, or from its trace: both are in the failure.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.interleaving.claims import ViolationError
from tests.interleaving.query_mutants import MUTANTS
from tests.interleaving.query_scenes import (
    LARGER,
    SMALL,
    everything,
    first_query,
    lost,
    save_and_query,
)
from tests.interleaving.query_stage import QueryDesign, QueryStage
from tests.interleaving.scheduler import World, at_random, exhaust
from tests.support.simulated_memcached import Delivery

if TYPE_CHECKING:
    from tests.interleaving.query_scenes import Scene
    from tests.interleaving.scheduler import Choose

SEEDS = 1_000
ORDERS = 300
MOST_STATES = 1_000_000


def execute(scene: Scene, design: QueryDesign, choose: Choose, *, states: bool) -> tuple[int, int]:
    """Run one execution and check what holds; return the answers, and those from the cache."""
    world = World()
    stage = QueryStage(world, design)
    try:
        scene(stage)
        world.run(choose, states=states)
        stage.check_at_rest()
    except ViolationError as violation:
        violation.add_note("\n".join(world.trace))
        raise
    finally:
        world.close()
    return stage.answers, stage.hits


def states_of(scene: Scene, design: QueryDesign, *, prune: bool = True) -> int:
    """Execute a scene in every order; return the number of states."""

    def run(choose: Choose) -> None:
        execute(scene, design, choose, states=True)

    return exhaust(run, most=MOST_STATES, prune=prune)


def execute_seeds(seeds: range, design: QueryDesign) -> tuple[int, int]:
    """Execute everything in random orders; return the answers, and those from the cache."""
    answers = hits = 0
    for seed in seeds:
        rng = random.Random(seed)
        try:
            answered, hit = execute(everything(rng), design, at_random(rng), states=False)
        except ViolationError as violation:
            violation.add_note(f"seed {seed}")
            raise
        answers += answered
        hits += hit
    return answers, hits


@pytest.mark.parametrize("scene", SMALL, ids=lambda scene: scene.__name__)
def test_every_order_of_a_small_scene_holds(scene: Scene) -> None:
    assert states_of(scene, QueryDesign()) > 20


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scene", LARGER, ids=lambda scene: scene.__name__)
def test_every_order_of_a_larger_scene_holds(scene: Scene) -> None:
    assert states_of(scene, QueryDesign()) > 5_000


@pytest.mark.parametrize("scene", LARGER, ids=lambda scene: scene.__name__)
def test_no_random_order_of_a_larger_scene_violates_a_claim(scene: Scene) -> None:
    for seed in range(ORDERS):
        execute(scene, QueryDesign(), at_random(random.Random(seed)), states=False)


def test_no_random_order_of_everything_violates_a_claim() -> None:
    answers, hits = execute_seeds(range(SEEDS), QueryDesign())
    assert answers > 5 * SEEDS
    assert hits > answers // 5


@pytest.mark.parametrize("name", MUTANTS)
def test_each_guard_is_needed(name: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(ViolationError) as violation:
        states_of(mutant.scene, mutant.design)
    assert violation.value.claim == mutant.claim


@pytest.mark.parametrize("name", MUTANTS)
def test_random_orders_come_upon_the_mutant_too(name: str) -> None:
    with pytest.raises(ViolationError):
        execute_seeds(range(SEEDS), MUTANTS[name].design)


def test_a_counter_would_do_if_nothing_were_ever_evicted() -> None:
    mutant = MUTANTS["a counter in place of a nonce"]
    assert states_of(save_and_query, mutant.design) > 20


@pytest.mark.parametrize(
    "scene",
    [first_query, save_and_query, lost("cas", Delivery.LOST)],
    ids=lambda scene: scene.__name__,
)
def test_what_is_pruned_was_seen_before(scene: Scene) -> None:
    assert states_of(scene, QueryDesign(), prune=False) == states_of(scene, QueryDesign())
