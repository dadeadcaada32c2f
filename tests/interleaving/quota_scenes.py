"""Who asks for a quota in an execution, and what goes wrong meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from duostore_server.domain.quotas import AlgorithmName, Mode, Quota
from tests.interleaving.claims import ViolationError
from tests.support.quota_stack import quota

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.interleaving.quota_stage import QuotaStage, Worker

WINDOW = 12.0
SUB_WINDOWS = 3
SUB_WINDOW = WINDOW / SUB_WINDOWS
LEASE_TIME = 0.5
EXPIRES_AFTER = 16.0
FIXED, SLIDING, BUCKET = AlgorithmName


@dataclass(frozen=True, slots=True)
class Scene:
    """A quota, and what is done with it. A quota that leases has slices of so many units."""

    name: str
    play: Callable[[QuotaStage], None]
    algorithm: AlgorithmName = FIXED
    limit: int = 2
    lease: int = 0
    releases: bool = True
    expires_after: float = EXPIRES_AFTER
    # Whether nothing is denied for which there is room; not if what is returned takes longer
    # than anybody reckons with it.
    exact: bool = True

    @property
    def quota(self) -> Quota:
        """The quota that it is about."""
        return quota(
            self.limit,
            algorithm=self.algorithm,
            window=WINDOW,
            sub_windows=SUB_WINDOWS,
            lease=self.lease,
            lease_time=LEASE_TIME,
            reservation_ttl=self.expires_after,
            release_expired=self.releases,
        )


Act: TypeAlias = "Callable[[QuotaStage, Worker], None]"


def consume(s: QuotaStage, worker: Worker, cost: int = 1) -> None:
    """Ask for units."""
    asked = worker.ask(cost)
    if asked is not None and asked[1] is not None:
        s.calls.append(asked[1])


def consume_once(s: QuotaStage, worker: Worker, cost: int, key: str, times: int = 2) -> None:
    """Ask for units with a key, so many times, answered or not; they are debited once."""
    allowed = False
    for _ in range(times):
        asked = worker.ask(cost, key=key)
        if asked is None:
            continue
        answer, call = asked
        if allowed and not answer.allowed:
            raise ViolationError("C2", f"{key} was allowed, and is not when it is repeated")
        if call is not None:
            allowed = True
            s.allow_once(key, call)


def reserve(s: QuotaStage, worker: Worker, cost: int = 1) -> None:
    """Hold units, for whoever settles them."""
    asked = worker.ask(cost, Mode.RESERVE)
    if asked is None:
        return
    answer, call = asked
    if call is not None:
        s.calls.append(call)
        s.reservations.append((answer.reservation, call))


def settle(s: QuotaStage, worker: Worker, cost: int | None, which: int = 0) -> None:
    """Settle what was reserved, if it has been: commit a cost, or release it (None)."""
    s.world.observe(tuple(name for name, _ in s.reservations))
    if len(s.reservations) > which:
        name, call = s.reservations[which]
        worker.settle(call, name, cost)


def drain(_: QuotaStage, worker: Worker) -> None:
    """End the process as it should be ended."""
    worker.drain()


def look_after(_: QuotaStage, worker: Worker) -> None:
    """Return slices that nobody uses."""
    worker.look_after()


def process(s: QuotaStage, name: str, *acts: Act, worker: Worker | None = None) -> None:
    """Add a process that does these, one after the other; it may be one that has begun."""
    actual = worker or s.worker(name)
    if s.quota.lease:
        actual.in_demand()

    def work() -> None:
        for number, act in enumerate(acts):
            if number:
                # What is answered from memory takes no other step.
                s.world.step("next")
            act(s, actual)

    s.world.actor(name, work)


def passes(s: QuotaStage, *seconds: float) -> None:
    """Let time go by, so much at a time, at any time."""
    s.event("time passes", *(partial(s.pass_, each) for each in seconds))


def two_consume(s: QuotaStage) -> None:
    process(s, "a", consume, consume)
    process(s, "b", consume, consume)


def three_consume(s: QuotaStage) -> None:
    two_consume(s)
    process(s, "c", consume)


def a_window_begins(s: QuotaStage) -> None:
    two_consume(s)
    passes(s, WINDOW - SUB_WINDOW / 2, SUB_WINDOW)


def a_sub_window_begins(s: QuotaStage) -> None:
    consume(s, s.worker("before"))
    process(s, "a", consume, consume)
    process(s, "b", consume, consume)
    passes(s, SUB_WINDOW)


def it_fills(s: QuotaStage) -> None:
    two_consume(s)
    passes(s, WINDOW / 2)


def slices(s: QuotaStage) -> None:
    process(s, "a", consume, consume, consume, drain)
    process(s, "b", *[consume] * 4)


def slices_are_cut_off(s: QuotaStage) -> None:
    """It is taken already, and its time or its window may end before each admission."""
    s.pass_(WINDOW - SUB_WINDOW / 2)
    a = s.worker("a").in_demand()
    for _ in range(2):
        consume(s, a)
    process(s, "a", consume, consume, worker=a)
    process(s, "b", consume, consume)
    passes(s, LEASE_TIME, SUB_WINDOW)


def slices_outlast_the_window(s: QuotaStage) -> None:
    """By when it could be used, what was debited for a slice has filled again."""
    a = s.worker("a").in_demand()
    for _ in range(2):
        consume(s, a)
    process(s, "a", consume, consume, worker=a)
    process(s, "b", *[consume] * 3)
    passes(s, WINDOW)


def a_slice_is_not_used(s: QuotaStage) -> None:
    process(s, "a", consume, consume, look_after, consume)
    process(s, "b", consume, consume, consume)
    passes(s, LEASE_TIME / 2)


def the_holder_of_a_slice_dies(s: QuotaStage) -> None:
    process(s, "a", *[consume] * 4)
    process(s, "b", *[consume] * 4)
    s.event("kill", lambda: s.kill("a"))


def the_answer_to_a_return_is_lost(s: QuotaStage) -> None:
    a = s.worker("a").in_demand()
    for _ in range(2):
        consume(s, a)
    process(s, "a", drain, worker=a)
    process(s, "b", *[consume] * 4)
    s.event("lose an answer", s.lose_next_answer)


def two_reserve(s: QuotaStage) -> None:
    process(s, "a", partial(reserve, cost=2))
    process(s, "b", partial(reserve, cost=2))
    process(s, "c", consume, consume)


def reserved_and_released(s: QuotaStage) -> None:
    reserve(s, s.worker("before"))
    process(s, "a", partial(settle, cost=None))
    process(s, "b", partial(settle, cost=None))
    process(s, "c", consume, consume, consume)


def two_reserved_one_released_twice(s: QuotaStage) -> None:
    """Both are held under one name, so that what one holds could be given back for the other."""
    before = s.worker("before")
    reserve(s, before)
    reserve(s, before)
    process(s, "a", partial(settle, cost=None), *[consume] * 3)
    process(s, "b", partial(settle, cost=None))


def reserved_and_settled_for_more(s: QuotaStage) -> None:
    reserve(s, s.worker("before"))
    process(s, "a", partial(settle, cost=2))
    process(s, "b", consume, consume)


def reserved_and_expired(s: QuotaStage) -> None:
    """It expires between any two steps of those who settle it, or need the room."""
    s.pass_(WINDOW - 1)
    reserve(s, s.worker("before"), 2)
    process(s, "a", partial(settle, cost=1))
    process(s, "b", consume, consume)
    passes(s, EXPIRES_AFTER - 1, 3)


def reserved_and_expired_within_the_window(s: QuotaStage) -> None:
    """As a window longer than reservations live has it."""
    before = s.worker("before")
    consume(s, before)
    reserve(s, before, 2)
    process(s, "a", partial(settle, cost=1))
    process(s, "b", *[consume] * 3)
    passes(s, 3, 3)


def more_was_used_at_the_expiry(s: QuotaStage) -> None:
    """What is settled for more than was reserved makes no room of its own hold."""
    reserve(s, s.worker("before"), 2)
    process(s, "a", partial(settle, cost=3))
    process(s, "b", consume, consume)
    passes(s, 4)


def two_repeat(s: QuotaStage) -> None:
    s.counts_exactly = True
    process(s, "a", partial(consume_once, cost=1, key="k", times=1))
    process(s, "b", partial(consume_once, cost=1, key="k", times=2))
    process(s, "c", consume)


SMALL = [
    Scene("two consume", two_consume),
    Scene("two consume, sliding", two_consume, SLIDING),
    Scene("two consume, bucket", two_consume, BUCKET),
    Scene("three consume", three_consume),
    Scene("a window begins", a_window_begins),
    Scene("a window begins, sliding", a_window_begins, SLIDING),
    Scene("a sub-window begins", a_sub_window_begins, SLIDING),
    Scene("it fills", it_fills, BUCKET),
    Scene("slices", slices, lease=2, limit=5),
    Scene("slices of a bucket", slices, BUCKET, lease=2, limit=5),
    Scene("slices are cut off", slices_are_cut_off, lease=2, limit=4),
    Scene(
        "slices are cut off, sliding", slices_are_cut_off, SLIDING, lease=2, limit=4, exact=False
    ),
    Scene("slices outlast the window", slices_outlast_the_window, BUCKET, lease=2, limit=4),
    Scene("a slice is not used", a_slice_is_not_used, lease=2, limit=4),
    Scene("a slice of a bucket is not used", a_slice_is_not_used, BUCKET, lease=2, limit=4),
    Scene("the holder of a slice dies", the_holder_of_a_slice_dies, lease=2, limit=5),
    Scene("the answer to a return is lost", the_answer_to_a_return_is_lost, lease=2, limit=4),
    Scene("two reserve", two_reserve, limit=3),
    Scene("two reserve, bucket", two_reserve, BUCKET, limit=3),
    Scene("reserved and released", reserved_and_released),
    Scene("reserved and released, bucket", reserved_and_released, BUCKET),
    Scene("two reserved, one released twice", two_reserved_one_released_twice, limit=3),
    Scene("reserved and settled for more", reserved_and_settled_for_more),
    Scene("reserved and settled for more, bucket", reserved_and_settled_for_more, BUCKET),
    Scene("reserved and expired", reserved_and_expired),
    Scene("reserved and expired, sliding", reserved_and_expired, SLIDING),
    Scene("reserved and expired, bucket", reserved_and_expired, BUCKET),
    Scene("reserved, expired and used, bucket", reserved_and_expired, BUCKET, releases=False),
    Scene("more was used at the expiry", more_was_used_at_the_expiry, limit=3, expires_after=4.0),
    Scene(
        "more was used at the expiry, bucket",
        more_was_used_at_the_expiry,
        BUCKET,
        limit=3,
        expires_after=4.0,
    ),
    Scene(
        "reserved and expired within the window",
        reserved_and_expired_within_the_window,
        limit=3,
        expires_after=4.0,
    ),
    Scene(
        "reserved, expired and used within the window",
        reserved_and_expired_within_the_window,
        limit=3,
        releases=False,
        expires_after=4.0,
    ),
    Scene(
        "reserved and expired while it fills",
        reserved_and_expired_within_the_window,
        BUCKET,
        limit=3,
        expires_after=4.0,
    ),
    Scene("two repeat", two_repeat),
]


def everything(rng: random.Random) -> Scene:
    """Return a scene of two to four processes and the faults among them."""
    algorithm = rng.choice(list(AlgorithmName))

    def act(number: int) -> Act:
        kinds: list[tuple[int, Any]] = [
            (8, partial(consume, cost=rng.choice((1, 1, 2)))),
            (2, partial(consume_once, cost=1, key=f"k{rng.randint(0, 1)}")),
            (2, partial(reserve, cost=rng.randint(1, 2))),
            (3, partial(settle, cost=rng.choice((None, 0, 1, 3)), which=rng.randint(0, 1))),
            (1, look_after),
            (1 if number else 0, drain),
        ]
        weights, acts = zip(*kinds, strict=True)
        chosen: Act = rng.choices(acts, weights)[0]
        return chosen

    def play(s: QuotaStage) -> None:
        names = ("a", "b", "c", "d")[: rng.randint(2, 4)]
        for name in names:
            process(s, name, *(act(number) for number in range(rng.randint(2, 6))))
        if rng.random() < 0.6:
            passes(s, *(rng.choice(_SPANS) for _ in range(rng.randint(1, 3))))
        if rng.random() < 0.3:
            s.lose_answers(rng)
            s.event("deliver", s.dynamodb.deliver)
        if rng.random() < 0.3:
            s.event("kill", lambda: s.kill("a"))

    return Scene(
        "everything",
        play,
        algorithm,
        limit=rng.randint(3, 6),
        lease=rng.choice((0, 2, 3)),
        releases=rng.random() < 0.5,
    )


_SPANS = (0.1, LEASE_TIME / 2, LEASE_TIME, 1.0, SUB_WINDOW, WINDOW / 2, WINDOW, EXPIRES_AFTER)
