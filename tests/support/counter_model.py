"""What a step requires of a counter and makes of it, in memory and in plain words.

A reference for the algorithms, which plan the steps, and for the stores, which do them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from duostore_server.domain.counters import BUCKET_SLOT, Begin, Counter, HoldName, Lower, Raise

if TYPE_CHECKING:
    from duostore_server.domain.counters import Lease, Step


def applied(counter: Counter | None, step: Step) -> Counter | None:
    """Return the counter after a step; None if what the step requires does not hold."""
    changed = _changed(counter, step.change)
    if changed is None:
        return None
    leases, holds = _leases(changed, step), _holds(changed, step)
    if leases is None or holds is None:
        return None
    for each in step.forget:
        if isinstance(each, HoldName):
            holds.pop(each, None)
        else:
            leases.pop(each, None)
    levels = {slot: level for slot, level in changed.levels.items() if slot not in step.drop}
    return replace(changed, levels=levels, leases=leases, holds=holds)


def _leases(counter: Counter, step: Step) -> dict[str, Lease] | None:
    leases = dict(counter.leases)
    if step.ended is not None:
        worker, lease = step.ended
        if leases.pop(worker, None) != lease:
            return None
    if step.lease is not None:
        worker, lease = step.lease
        # What was set already is not set again: the step was done before.
        if counter.leases.get(worker) == lease:
            return None
        leases[worker] = lease
    return leases


def _holds(counter: Counter, step: Step) -> dict[HoldName, int] | None:
    holds = dict(counter.holds)
    held = sum(amount for hold, amount in holds.items() if hold.slot == BUCKET_SLOT)
    if step.held is not None and held > step.held:
        return None
    if step.hold is not None:
        hold, amount = step.hold
        holds[hold] = holds.get(hold, 0) + amount
    if step.unhold is not None:
        hold, amount = step.unhold
        if holds.get(hold, -1) < amount:
            return None
        holds[hold] -= amount
    if step.release is not None:
        hold, amount = step.release
        if holds.pop(hold, None) != amount:
            return None
    return holds


def _changed(counter: Counter | None, change: Raise | Begin | Lower | None) -> Counter | None:
    """Return the counter after a change alone; None if what it requires does not hold."""
    match change:
        case Begin():
            return _begun(counter, change)
        case Raise() if counter is not None and _may_rise(counter, change):
            return _with_level(counter, change.slot, counter.level(change.slot) + change.amount)
        case Lower() if counter is not None and _may_sink(counter, change):
            lowered = _with_level(counter, change.slot, counter.level(change.slot) - change.amount)
            return replace(lowered, refunded=counter.refunded + change.amount)
        case None:
            return counter
    return None


def _begun(counter: Counter | None, begin: Begin) -> Counter | None:
    if counter is None:
        return Counter(begin.slot, {begin.slot: begin.level})
    if begin.after != counter.epoch or counter.level(counter.epoch) > begin.most:
        return None
    return replace(_with_level(counter, begin.slot, begin.level), epoch=begin.slot)


def _may_rise(counter: Counter, change: Raise) -> bool:
    level = counter.level(change.slot)
    return (
        counter.epoch == change.slot
        and level <= change.most
        and (change.above is None or level > change.above)
    )


def _may_sink(counter: Counter, change: Lower) -> bool:
    """A level is there, and is not lowered below 0."""
    return (
        change.slot in counter.levels
        and counter.level(change.slot) >= change.amount
        and change.refunded in {None, counter.refunded}
        and (change.most is None or counter.level(change.slot) <= change.most)
    )


def _with_level(counter: Counter, slot: int, level: int) -> Counter:
    return replace(counter, levels={**counter.levels, slot: level})
