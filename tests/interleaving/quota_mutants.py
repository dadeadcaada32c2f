"""The counting of quotas with one guard left out at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duostore_server.access.counting import Counting
from duostore_server.access.leasing import Leasing
from duostore_server.domain.counters import Begin, Raise
from tests.interleaving.quota_scenes import SMALL, WINDOW
from tests.interleaving.quota_stage import QuotaDesign, Resent
from tests.support.quota_stack import SECOND

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from duostore_server.access.accounts import Account
    from duostore_server.domain.counters import Grant, GrantStepped, Settlement, Step, Stepped
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import Counters
    from duostore_server.domain.quotas import CounterKey
    from tests.interleaving.quota_scenes import Scene

_ANY = 10**30


@dataclass(frozen=True, slots=True)
class _Altered:
    """Counters whose steps are altered on the way."""

    delegate: Counters
    alter: Callable[[Step], Step]

    def read(self, keys: Collection[CounterKey], deadline: Deadline) -> Any:
        return self.delegate.read(keys, deadline)

    def apply(self, key: CounterKey, step: Step, deadline: Deadline) -> Stepped:
        return self.delegate.apply(key, self.alter(step), deadline)

    def record(
        self, grant: Grant, step: Step, now: int, deadline: Deadline, instead: Grant | None = None
    ) -> GrantStepped:
        return self.delegate.record(grant, self.alter(step), now, deadline, instead)

    def find(self, tenant: str, id_: str, deadline: Deadline) -> Grant | None:
        return self.delegate.find(tenant, id_, deadline)

    def settle(
        self, grant: Grant, settlement: Settlement, step: Step | None, deadline: Deadline
    ) -> GrantStepped:
        return self.delegate.settle(grant, settlement, step and self.alter(step), deadline)


def _altered(alter: Callable[[Step], Step]) -> QuotaDesign:
    return QuotaDesign(counters=lambda delegate: _Altered(delegate, alter))


def _raises_to(more: int) -> QuotaDesign:
    """Let a level be raised from so much more than there is room for."""

    def alter(step: Step) -> Step:
        if not isinstance(step.change, Raise):
            return step
        return replace(step, change=replace(step.change, most=step.change.most + more))

    return _altered(alter)


def _begins_anyway(step: Step) -> Step:
    """Begin a slot whatever the level of the one before has become."""
    if not isinstance(step.change, Begin):
        return step
    return replace(step, change=replace(step.change, most=_ANY))


def _holds_anyway(step: Step) -> Step:
    """Debit whatever is held by now."""
    return step if step.held is None else replace(step, held=_ANY)


class _ReturnsWhatever(Resent):
    """Is sent returns of slices that do not require their leases' entries."""

    def update_item(self, **request: Any) -> dict[str, Any]:
        return super().update_item(**_without(request, r"#n\d+ = ", "lease_"))


class _SettlesAgain(Resent):
    """Is sent settlements that do not require that there was none."""

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        return super().transact_write_items(**_of_actions(request, "", "settled_"))


class _ReleasesWhatever(Resent):
    """Is sent releases of what expired that do not require all of it to be held still."""

    def update_item(self, **request: Any) -> dict[str, Any]:
        return super().update_item(**_without(request, r"#n\d+ = ", "hold_"))


class _GrantsAgain(Resent):
    """Is sent grants that do not require that there was none."""

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        return super().transact_write_items(**_of_actions(request, "", "forget_time"))


class _OutlivesItsTime(Leasing):
    """Admits from a slice for as long as there is something left of it."""

    def _left(self, account: Account) -> int:
        return 0 if account.slice is None else account.slice.left


class _TakesWhatItSawForGood(Counting):
    """Denies what did not fit when the counter was seen."""

    def rules_out(self, account: Account, units: int, now: int) -> bool:
        seen = account.seen
        return seen is not None and account.algorithm.change(seen, units, now) is None


def _of_actions(request: Mapping[str, Any], clause: str, attribute: str) -> dict[str, Any]:
    actions = [
        {kind: _without(action, clause, attribute) for kind, action in each.items()}
        for each in request["TransactItems"]
    ]
    return {**request, "TransactItems": actions}


def _without(request: Mapping[str, Any], clause: str, attribute: str) -> dict[str, Any]:
    """Return a request with no condition of that form on attributes whose names begin so."""
    names = request.get("ExpressionAttributeNames", {})
    kept = [
        each
        for each in re.split(r" AND (?![^(]*\))", request.get("ConditionExpression", ""))
        if not (
            re.match(clause, each)
            and any(
                names.get(alias, "").startswith(attribute) for alias in re.findall(r"#\w+", each)
            )
        )
    ]
    left = {**request, "ConditionExpression": " AND ".join(kept)}
    if not any(kept):
        del left["ConditionExpression"]
    used = f"{left.get('UpdateExpression', '')} {left.get('ConditionExpression', '')}"
    for substitutes in ("ExpressionAttributeNames", "ExpressionAttributeValues"):
        given = left.get(substitutes, {})
        left[substitutes] = {a: given[a] for a in given if re.search(rf"{a}\b", used)}
        if not left[substitutes]:
            del left[substitutes]
    return left


@dataclass(frozen=True, slots=True)
class Mutant:
    """A design with a fault, the claim that it breaks first in ``scene``, whatever the order."""

    claim: str
    scene: str
    design: QuotaDesign


MUTANTS: Mapping[str, Mutant] = {
    "a fixed window admits one more": Mutant("C7", "two consume", _raises_to(1)),
    "a sliding window admits one more": Mutant("C7", "two consume, sliding", _raises_to(1)),
    "a bucket admits one more": Mutant(
        "C7", "two consume, bucket", _raises_to(round(WINDOW * SECOND) // 2)
    ),
    "a sub-window begins, whatever was used": Mutant(
        "C7", "a sub-window begins", _altered(_begins_anyway)
    ),
    "a bucket begins, whatever was used": Mutant(
        "C7", "two consume, bucket", _altered(_begins_anyway)
    ),
    "a slice outlives its window": Mutant(
        "C7", "slices are cut off", QuotaDesign(leasing=_OutlivesItsTime)
    ),
    "a slice outlives its lease": Mutant(
        "C7", "slices outlast the window", QuotaDesign(leasing=_OutlivesItsTime)
    ),
    "a slice is returned again": Mutant(
        "C7", "the answer to a return is lost", QuotaDesign(dynamodb=_ReturnsWhatever)
    ),
    "a settlement is done again": Mutant(
        "C7", "two reserved, one released twice", QuotaDesign(dynamodb=_SettlesAgain)
    ),
    "what was settled is released": Mutant(
        "C7",
        "reserved and expired within the window",
        QuotaDesign(dynamodb=_ReleasesWhatever),
    ),
    "a bucket does not look at what is held": Mutant(
        "C7", "two reserve, bucket", _altered(_holds_anyway)
    ),
    "a key is granted again": Mutant("C2", "two repeat", QuotaDesign(dynamodb=_GrantsAgain)),
    "a denial is remembered for good": Mutant(
        "exact", "reserved and released", QuotaDesign(counting=_TakesWhatItSawForGood)
    ),
}


def scene_of(mutant: Mutant) -> Scene:
    """Return the scene of a mutant."""
    (scene,) = (scene for scene in SMALL if scene.name == mutant.scene)
    return scene
