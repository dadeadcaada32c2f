"""Runs actors one step at a time, in an order that is chosen from outside.

Each actor is production code on a greenlet of its own. The simulated stores call ``World.step``
just before an operation takes effect; there the actor is suspended until it is chosen again.
So an execution is decided by its choices alone, and can be repeated from them.

Two executions in the same state go on alike, so that one of them need not. That holds only if
the state is all that the rest depends on: of the stores what they hold, of an actor that is
not at its end all that it has seen. A step sees the store that its label names. Whatever else
an actor sees (the clock, a counter, what was promised so far) it has to ``observe``.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeAlias

import greenlet

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Hashable

# Picks one of so many actors; may ask for the state of the execution.
Choose: TypeAlias = "Callable[[int, Callable[[], Hashable]], int]"


class Dead(BaseException):
    """Thrown into actors that are left over when an execution ends."""


class Pruned(BaseException):
    """The state that an execution has come to was explored before."""


class Actor:
    """A piece of work with a name. ``local`` stands for all that it has seen so far."""

    def __init__(self, name: str, work: Callable[[], None], hub: greenlet.greenlet) -> None:
        self.name = name
        self.killed = False
        self.label = "start"
        self.local: Hashable = 0
        self.error: BaseException | None = None
        self._greenlet = greenlet.greenlet(self._run, parent=hub)
        self._work = work

    @property
    def enabled(self) -> bool:
        """Whether the actor has steps left."""
        return not self.killed and not self._greenlet.dead

    def resume(self) -> None:
        """Let the actor do its next step, up to the one after it."""
        self._greenlet.switch()
        if self.error is not None:
            raise self.error

    def bury(self) -> None:
        """End a left-over actor; its stores answer no more."""
        if self._greenlet:  # started, and not at its end
            self._greenlet.throw(Dead)

    def _run(self) -> None:
        try:
            self._work()
        except Dead:
            pass
        except BaseException as error:  # noqa: BLE001 - carried over to the hub
            self.error = error


class World:
    """One execution: its actors, and what holds after each of their steps."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.trace: list[str] = []
        # What the store that a label names holds, and what everything but the actors does.
        self.seen_at: Callable[[str], Hashable] = lambda _: 0
        self.held: Callable[[], Hashable] = lambda: 0
        self.after_step: Callable[[], None] = lambda: None
        self._hub = greenlet.getcurrent()
        self._running: Actor | None = None
        self._remembers = False
        self._closed = False

    def actor(self, name: str, work: Callable[[], None]) -> Actor:
        """Add an actor."""
        actor = Actor(name, work, self._hub)
        self.actors.append(actor)
        return actor

    def step(self, label: str) -> None:
        """Suspend the calling actor until it is chosen; a no-op outside the execution."""
        if self._closed:
            raise Dead
        if self._running is None:
            return
        self._running.label = label
        self._hub.switch()
        if self._closed:
            raise Dead

    def observe(self, value: Hashable) -> None:
        """Take note of what the calling actor has seen elsewhere than in a store's step."""
        if self._remembers and self._running is not None:
            self._running.local = hash((self._running.local, value))

    def current_name(self) -> str:
        """Return the name of the calling actor; empty outside of the execution."""
        return self._running.name if self._running else ""

    def state(self) -> Hashable:
        """Return what the rest of the execution depends on."""
        return (
            tuple((a.label, a.local) if a.enabled else None for a in self.actors),
            self.held(),
        )

    def run(self, choose: Choose, *, states: bool) -> None:
        """Run all actors to their ends; ``states`` tells whether ``choose`` looks at states."""
        self._remembers = states
        while enabled := [actor for actor in self.actors if actor.enabled]:
            chosen = enabled[choose(len(enabled), self.state)]
            self.trace.append(f"{chosen.name}:{chosen.label}")
            if states:
                chosen.local = hash((chosen.local, chosen.label, self.seen_at(chosen.label)))
            self._running = chosen
            chosen.resume()
            self._running = None
            self.after_step()

    def close(self) -> None:
        """End what was left over."""
        self._closed = True
        for actor in self.actors:
            actor.bury()


def exhaust(execute: Callable[[Choose], None], *, most: int, prune: bool = True) -> int:
    """Execute in every order, states seen before left out; return how many states there were.

    Raises ``AssertionError`` if there are more than ``most``: then nothing was exhausted.
    States are told apart by their hashes, 64 bits wide. Without ``prune`` nothing is left
    out, which is slow and comes to the same number.
    """
    seen: set[int] = set()
    prefix: list[int] | None = []
    while prefix is not None:
        branch = _Branch(prefix, seen, prune=prune)
        with contextlib.suppress(Pruned):
            execute(branch.choose)
        assert len(seen) <= most, f"more than {most} states"
        prefix = branch.next_prefix()
    return len(seen)


class _Branch:
    """One execution of many: choices as given, then always the first."""

    def __init__(self, prefix: list[int], seen: set[int], *, prune: bool) -> None:
        self._prefix = prefix
        self._seen = seen
        self._prune = prune
        self._trail: list[tuple[int, int]] = []

    def choose(self, count: int, state: Callable[[], Hashable]) -> int:
        depth = len(self._trail)
        choice = 0
        if depth < len(self._prefix):
            choice = self._prefix[depth]
        else:
            digest = hash(state())
            if self._prune and digest in self._seen:
                raise Pruned
            self._seen.add(digest)
        self._trail.append((choice, count))
        return choice

    def next_prefix(self) -> list[int] | None:
        """Return the choices that lead to the next branch; None if this was the last."""
        while self._trail and self._trail[-1][0] + 1 == self._trail[-1][1]:
            self._trail.pop()
        if not self._trail:
            return None
        *before, (last, _) = self._trail
        return [*(choice for choice, _ in before), last + 1]


def at_random(rng: random.Random) -> Choose:
    """Return a chooser that now and then lets one actor run on for a while."""
    favourite = 0.0

    def choose(count: int, _: object) -> int:
        nonlocal favourite
        if rng.random() < 0.2:
            favourite = rng.random()
        if rng.random() < 0.5:
            return int(favourite * count)
        return rng.randrange(count)

    return choose
