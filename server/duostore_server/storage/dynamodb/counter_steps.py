"""The update that does a step of a counter: what it requires is its condition, all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from duostore_server.domain.counters import BUCKET_SLOT, Begin, Lower, Raise
from duostore_server.storage.dynamodb.counter_items import (
    EPOCH,
    HELD,
    REFUNDED,
    counter_pk,
    encode_lease,
    hold_name,
    lease_name,
    level_name,
)
from duostore_server.storage.dynamodb.head_items import SWEEP_TIME, number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, UpdateTypeDef

    from duostore_server.domain.counters import HoldName, Step
    from duostore_server.domain.quotas import CounterKey

# DynamoDB takes expressions of 4 KB. What no longer counts may as well go with a later step.
_MAX_SWEPT: Final = 100
_SECOND: Final = 1_000_000_000
_SWEPT_AFTER_SECONDS: Final = 24 * 3600


def step_update(table: str, key: CounterKey, step: Step) -> UpdateTypeDef:
    """Return the update that does a step, to be made by itself or in a transaction.

    The counter may be swept a day after it no longer matters. A lease that is
    there already, by its nonce, is in the way of the step that sets it, so that one which
    is sent again knows itself. No level is ever lowered below 0. Raises ``ValueError`` if
    parts of the step contradict each other.
    """
    made = _Update()
    if step.until:
        made.assign(SWEEP_TIME, made.number(step.until // _SECOND + _SWEPT_AFTER_SECONDS))
    _change(made, step)
    _leases(made, step)
    _holds(made, step)
    for attribute in islice(_no_longer_counted(step), _MAX_SWEPT):
        made.remove(attribute)
    return made.request(table, key)


def is_done_once(step: Step) -> bool:
    """Return whether a step that was done is in its own way, should it be sent again."""
    if step.lease is not None or step.ended is not None or step.release is not None:
        return True
    return isinstance(step.change, Lower) and step.change.refunded is not None


def _change(made: _Update, step: Step) -> None:
    match step.change:
        case Raise(slot, amount, most, above):
            level = made.name(level_name(slot))
            made.require(f"{made.name(EPOCH)} = {made.number(slot)}")
            made.require(f"{level} <= {made.number(most)}")
            if above is not None:
                made.require(f"{level} > {made.number(above)}")
            made.assign(level_name(slot), f"{level} + {made.number(amount)}")
        case Begin(slot, level, after, most):
            is_new = f"attribute_not_exists({made.name('pk')})"
            if after is None:
                made.require(is_new)
            else:
                is_after = f"{made.name(EPOCH)} = {made.number(after)}"
                fits = f"{made.name(level_name(after))} <= {made.number(most)}"
                made.require(f"({is_new} OR ({is_after} AND {fits}))")
            made.assign(EPOCH, made.number(slot))
            made.assign(level_name(slot), made.number(level))
            made.assign(REFUNDED, f"if_not_exists({made.name(REFUNDED)}, {made.number(0)})")
        case Lower(slot, amount, refunded, most):
            level, back = made.name(level_name(slot)), made.name(REFUNDED)
            made.require(f"{level} >= {made.number(amount)}")
            if refunded is not None:
                made.require(f"{back} = {made.number(refunded)}")
            if most is not None:
                made.require(f"{level} <= {made.number(most)}")
            made.assign(level_name(slot), f"{level} - {made.number(amount)}")
            made.assign(REFUNDED, f"{back} + {made.number(amount)}")
        case None:
            # What is not a counter is not to become half of one.
            made.require(f"attribute_exists({made.name('pk')})")


def _leases(made: _Update, step: Step) -> None:
    if step.lease is not None:
        worker, lease = step.lease
        entry = made.value(encode_lease(lease))
        made.require(f"{made.name(lease_name(worker))} <> {entry}")
        made.assign(lease_name(worker), entry)
    if step.ended is not None:
        worker, lease = step.ended
        made.require(f"{made.name(lease_name(worker))} = {made.value(encode_lease(lease))}")
        if step.lease is None or step.lease[0] != worker:
            made.remove(lease_name(worker))


def _holds(made: _Update, step: Step) -> None:
    if step.hold is not None:
        hold, amount = step.hold
        held = f"if_not_exists({made.name(hold_name(hold))}, {made.number(0)})"
        made.assign(hold_name(hold), f"{held} + {made.number(amount)}")
    if step.unhold is not None:
        hold, amount = step.unhold
        name, less = made.name(hold_name(hold)), made.number(amount)
        made.require(f"{name} >= {less}")
        made.assign(hold_name(hold), f"{name} - {less}")
    if step.release is not None:
        hold, amount = step.release
        made.require(f"{made.name(hold_name(hold))} = {made.number(amount)}")
        made.remove(hold_name(hold))
    _held(made, step)


def _held(made: _Update, step: Step) -> None:
    """Keep count of what a token bucket holds, and require that it is no more."""
    change, name = step.change, HELD
    more = _of_bucket(step.hold)
    less = _of_bucket(step.unhold) + _of_bucket(step.release)
    if isinstance(change, Begin) and step.held is not None and change.after != change.slot:
        # It was no bucket before, or is new: whatever was held is not.
        made.assign(name, made.number(more))
        return
    if step.held is not None:
        held, most = made.name(name), made.number(step.held)
        made.require(f"(attribute_not_exists({held}) OR {held} <= {most})")
    if more > less:
        held = f"if_not_exists({made.name(name)}, {made.number(0)})"
        made.assign(name, f"{held} + {made.number(more - less)}")
    elif more < less:
        # What was held before it was kept count of is not to make it negative.
        down = made.number(less - more)
        made.assign(name, f"if_not_exists({made.name(name)}, {down}) - {down}")


def _of_bucket(part: tuple[HoldName, int] | None) -> int:
    return part[1] if part is not None and part[0].slot == BUCKET_SLOT else 0


def _no_longer_counted(step: Step) -> Iterator[str]:
    yield from (level_name(slot) for slot in step.drop)
    for each in step.forget:
        yield lease_name(each) if isinstance(each, str) else hold_name(each)


@dataclass(slots=True)
class _Update:
    """An update in the making. All names are aliased: some are DynamoDB's own, some any text."""

    _names: dict[str, str] = field(default_factory=dict)
    _values: dict[str, AttributeValueTypeDef] = field(default_factory=dict)
    _required: list[str] = field(default_factory=list)
    _assigned: dict[str, str] = field(default_factory=dict)
    _removed: dict[str, str] = field(default_factory=dict)

    def name(self, attribute: str) -> str:
        return self._names.setdefault(attribute, f"#n{len(self._names)}")

    def value(self, value: AttributeValueTypeDef) -> str:
        alias = f":v{len(self._values)}"
        self._values[alias] = value
        return alias

    def number(self, value: int) -> str:
        return self.value(number(value))

    def require(self, condition: str) -> None:
        self._required.append(condition)

    def assign(self, attribute: str, operand: str) -> None:
        self._once(attribute)
        self._assigned[attribute] = operand

    def remove(self, attribute: str) -> None:
        self._once(attribute)
        self._removed[attribute] = self.name(attribute)

    def _once(self, attribute: str) -> None:
        if attribute in self._assigned or attribute in self._removed:
            raise ValueError(f"two parts of a step change {attribute!r}")

    def request(self, table: str, key: CounterKey) -> UpdateTypeDef:
        assigned = (f"{self.name(name)} = {operand}" for name, operand in self._assigned.items())
        clauses = {"SET": tuple(assigned), "REMOVE": tuple(self._removed.values())}
        expression = " ".join(f"{verb} {', '.join(each)}" for verb, each in clauses.items() if each)
        update: UpdateTypeDef = {
            "TableName": table,
            "Key": {"pk": {"S": counter_pk(key)}},
            "UpdateExpression": expression,
            "ConditionExpression": " AND ".join(self._required),
            "ExpressionAttributeNames": {alias: name for name, alias in self._names.items()},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
        if self._values:
            update["ExpressionAttributeValues"] = self._values
        return update
