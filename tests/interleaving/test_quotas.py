"""C7 under every order of steps that was tried, and each guard's mutant.

An execution is repeated from its seed, or from its trace: both are in the failure.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.interleaving.claims import ViolationError
from tests.interleaving.quota_mutants import MUTANTS, scene_of
from tests.interleaving.quota_scenes import SMALL, everything
from tests.interleaving.quota_stage import QuotaDesign, QuotaStage
from tests.interleaving.scheduler import World, at_random, exhaust

if TYPE_CHECKING:
    from tests.interleaving.quota_scenes import Scene
    from tests.interleaving.scheduler import Choose

SEEDS = 2_000
MOST_STATES = 100_000


def execute(scene: Scene, design: QuotaDesign, choose: Choose, *, states: bool) -> int:
    """Run one execution and check what holds at rest; return how many calls were allowed."""
    world = World()
    stage = QuotaStage(world, scene.quota, design)
    stage.is_exact = scene.exact
    try:
        scene.play(stage)
        world.run(choose, states=states)
        stage.check_at_rest()
    except ViolationError as violation:
        violation.add_note("\n".join(world.trace))
        raise
    finally:
        world.close()
    return len(stage.calls)


def states_of(scene: Scene, design: QuotaDesign, *, prune: bool = True) -> int:
    """Execute a scene in every order; return the number of states."""

    def run(choose: Choose) -> None:
        execute(scene, design, choose, states=True)

    return exhaust(run, most=MOST_STATES, prune=prune)


def execute_seeds(seeds: range, design: QuotaDesign) -> int:
    """Execute everything in random orders; return how many calls were allowed."""
    allowed = 0
    for seed in seeds:
        rng = random.Random(seed)
        try:
            allowed += execute(everything(rng), design, at_random(rng), states=False)
        except ViolationError as violation:
            violation.add_note(f"seed {seed}")
            raise
    return allowed


@pytest.mark.parametrize("scene", SMALL, ids=lambda scene: scene.name)
def test_every_order_of_a_small_scene_holds(scene: Scene) -> None:
    assert states_of(scene, QuotaDesign()) > 10


@pytest.mark.parametrize("tenth", range(10))
def test_no_random_order_of_everything_over_admits(tenth: int) -> None:
    seeds = range(tenth * SEEDS // 10, (tenth + 1) * SEEDS // 10)
    assert execute_seeds(seeds, QuotaDesign()) > 3 * len(seeds)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_guard_is_needed(name: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(ViolationError) as violation:
        states_of(scene_of(mutant), mutant.design)
    assert violation.value.claim == mutant.claim


@pytest.mark.parametrize(
    "name", ["two consume", "two consume, bucket", "reserved and settled for more"]
)
def test_what_is_pruned_was_seen_before(name: str) -> None:
    (scene,) = (scene for scene in SMALL if scene.name == name)
    assert states_of(scene, QuotaDesign(), prune=False) == states_of(scene, QuotaDesign())
