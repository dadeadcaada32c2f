"""The item of an entity at home in DynamoDB: how it is read, and the updates that write it.

A head's number is the version of its entity. Each write leaves a nonce of its own behind,
so that one which botocore sent twice, for the first answer was lost, knows itself again.
A deletion is a tombstone: a head with no payload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.entities import Form
from duostore_server.domain.errors import (
    EntityExistsError,
    EntityNotFoundError,
    VersionMismatchError,
)
from duostore_server.domain.snapshots import Head
from duostore_server.domain.transactions import Applied, IfAbsent, IfVersion
from duostore_server.storage.dynamodb.attributes import ENCODING, PAYLOAD, UnreadableError, whole
from duostore_server.storage.dynamodb.head_items import (
    DIRTY_SHARD,
    DUE_TIME,
    EXPIRE_TIME,
    FORM,
    NONCE,
    NUMBER,
    SWEEP_TIME,
    TIME,
    head_key,
    micros,
    number,
    shard_of,
    time_of,
)
from duostore_server.storage.dynamodb.head_payloads import head_payload, held

if TYPE_CHECKING:
    from collections.abc import Mapping

    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef, UpdateTypeDef

    from duostore_server.domain.errors import RefusalError
    from duostore_server.domain.snapshots import HeadChange
    from duostore_server.storage.dynamodb.items import Item

_CREATE_TIME: Final = "create_time"
# What has expired is swept only after this long, for its versions begin anew then: a
# cached entry and a caller's min_version are to be forgotten by that time.
_SWEPT_AFTER: Final = timedelta(days=7)


def decode_head(item: Mapping[str, Any]) -> Head:
    """Return the head that an item holds; raises ``UnreadableError``.

    A tombstone has its update time for a create time.
    """
    payload = head_payload(item)
    try:
        update_time = time_of(whole(item, TIME))
        return Head(
            version=whole(item, NUMBER),
            payload=payload,
            create_time=update_time if payload is None else time_of(whole(item, _CREATE_TIME)),
            update_time=update_time,
            expire_time=time_of(whole(item, EXPIRE_TIME)) if EXPIRE_TIME in item else None,
        )
    except OverflowError as error:
        raise UnreadableError(f"a time that is none: {error}") from error


def refusal(change: HeadChange, head: Head | None) -> RefusalError | None:
    """Return why a change may not be applied to what is held, if so."""
    version = 0 if head is None else head.version
    live = version if head is not None and head.is_live(change.now) else 0
    match change.precondition:
        case IfVersion(expected):
            return None if live == expected else VersionMismatchError(expected, live)
        case IfAbsent():
            return EntityExistsError(live) if live else None
        case None:
            return None if live or change.payload is not None else EntityNotFoundError(version)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an update takes the head for.

    ``ahead``: its time is later than the writer's clock; otherwise it is not. The time of
    a head never decreases, so that what is ahead stays so, and an update that goes by it
    is not turned away by another writer's clock once more. ``over``: it is this version,
    which has expired.
    """

    ahead: bool = False
    over: int | None = None


@dataclass(frozen=True, slots=True)
class HeadWrite:
    """A change on its way into the table; ``held`` are the attributes of its payload, if any.

    ``nonce`` is new with each change, and the same whenever it is tried again.
    """

    table: str
    change: HeadChange
    nonce: bytes
    held: Item

    def attempt_after(self, head: Head | None) -> Attempt:
        """Return the next attempt, after one that met a head which does not refuse the change."""
        if head is None:
            return Attempt()
        now = self.change.now
        expired = head.payload is not None and not head.is_live(now)
        return Attempt(head.update_time > now, head.version if expired else None)

    def applied_to(self, head: Head | None) -> Applied:
        """Return what the change makes of exactly this head."""
        if head is None:
            return Applied(1, self.change.now)
        return Applied(head.version + 1, max(self.change.now, head.update_time))

    def update(self, attempt: Attempt) -> UpdateTypeDef:
        """Return the update whose condition is all that the change and the attempt require.

        It leaves a time alone that is ahead of it.
        """
        made = _Update()
        time = made.name(TIME) if attempt.ahead else self._now(made)
        self._assign(made, time, anew=attempt.over is not None)
        return made.request(self, self._condition(made, attempt))

    def update_of(self, head: Head | None, time: datetime) -> UpdateTypeDef:
        """Return the update of exactly this head, which was seen to allow the change."""
        made = _Update()
        anew = head is None or not head.is_live(self.change.now)
        self._assign(made, made.value("time", number(micros(time))), anew=anew)
        if head is None:
            return made.request(self, made.is_new())
        held = made.value("held", number(head.version))
        return made.request(self, f"{made.name(NUMBER)} = {held}")

    def _assign(self, made: _Update, time: str, *, anew: bool) -> None:
        """Assign what the head is to hold; ``time`` is an operand."""
        change = self.change
        zero, one = made.value("zero", number(0)), made.value("one", number(1))
        made.assign(NUMBER, f"if_not_exists({made.name(NUMBER)}, {zero}) + {one}")
        made.assign(NONCE, made.value("nonce", {"B": self.nonce}))
        made.assign(TIME, time)
        if change.payload is None:
            made.assign(FORM, made.form(Form.TOMBSTONE))
            made.remove(_CREATE_TIME)
        else:
            made.assign(FORM, made.form(Form.VALUE))
            kept = f"if_not_exists({made.name(_CREATE_TIME)}, {time})"
            made.assign(_CREATE_TIME, time if anew else kept)
        for name in (PAYLOAD, ENCODING):
            if name in self.held:
                made.assign(name, made.value(name, self.held[name]))
            else:
                made.remove(name)
        self._assign_ends(made)
        if change.consolidate_after is not None:
            made.assign(DIRTY_SHARD, made.value("shard", {"S": shard_of(change.key)}))
            due = made.value("due", number(micros(change.now + change.consolidate_after)))
            made.assign(DUE_TIME, f"if_not_exists({made.name(DUE_TIME)}, {due})")

    def _assign_ends(self, made: _Update) -> None:
        """Let the entity expire, and what is left of it be swept.

        It is not swept if Aurora is brought it: there its versions may not begin anew.
        """
        now, ttl = self.change.now, self.change.ttl
        if ttl is None or self.change.payload is None:
            made.remove(EXPIRE_TIME)
        else:
            made.assign(EXPIRE_TIME, made.value("expire", number(micros(now + ttl))))
        if ttl is None or self.change.consolidate_after is not None:
            made.remove(SWEEP_TIME)
        else:
            swept = int((now + ttl + _SWEPT_AFTER).timestamp())
            made.assign(SWEEP_TIME, made.value("sweep", number(swept)))

    def _condition(self, made: _Update, attempt: Attempt) -> str:
        comparison = ">" if attempt.ahead else "<="
        met = f"{made.name(NONCE)} <> :nonce AND {made.name(TIME)} {comparison} {self._now(made)}"
        if attempt.over is not None:
            return f"{met} AND {made.name(NUMBER)} = {made.value('over', number(attempt.over))}"
        match self.change.precondition:
            case IfAbsent():
                return self._or_new(made, attempt, f"{met} AND {made.is_form(Form.TOMBSTONE)}")
            case IfVersion(version):
                expected = made.value("expected", number(version))
                return f"{met} AND {self._live(made)} AND {made.name(NUMBER)} = {expected}"
            case None if self.change.payload is None:
                return f"{met} AND {self._live(made)}"
            case None:
                return self._or_new(made, attempt, f"{met} AND {self._unexpired(made)}")

    def _or_new(self, made: _Update, attempt: Attempt, condition: str) -> str:
        return condition if attempt.ahead else f"{made.is_new()} OR ({condition})"

    def _live(self, made: _Update) -> str:
        return f"{made.is_form(Form.VALUE)} AND {self._unexpired(made)}"

    def _unexpired(self, made: _Update) -> str:
        expire_time = made.name(EXPIRE_TIME)
        return f"(attribute_not_exists({expire_time}) OR {expire_time} > {self._now(made)})"

    def _now(self, made: _Update) -> str:
        return made.value("now", number(micros(self.change.now)))


def head_write(table: str, change: HeadChange, nonce: bytes, *, compress_above: int) -> HeadWrite:
    """Return the write of a change; raises ``InvalidRequestError`` if no item could hold it."""
    if change.payload is None:
        return HeadWrite(table, change, nonce, {})
    payload = held(change.key, change.payload, compress_above=compress_above)
    return HeadWrite(table, change, nonce, payload)


@dataclass(slots=True)
class _Update:
    """An update in the making. All names are aliased, since DynamoDB reserves some for itself."""

    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, AttributeValueTypeDef] = field(default_factory=dict)
    assigned: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def name(self, attribute: str) -> str:
        self.names[f"#{attribute}"] = attribute
        return f"#{attribute}"

    def value(self, name: str, value: AttributeValueTypeDef) -> str:
        self.values[f":{name}"] = value
        return f":{name}"

    def form(self, form: Form) -> str:
        return self.value(f"form_{form.value}", {"S": form.value})

    def is_form(self, form: Form) -> str:
        return f"{self.name(FORM)} = {self.form(form)}"

    def is_new(self) -> str:
        return f"attribute_not_exists({self.name('pk')})"

    def assign(self, attribute: str, operand: str) -> None:
        self.assigned.append(f"{self.name(attribute)} = {operand}")

    def remove(self, attribute: str) -> None:
        self.removed.append(self.name(attribute))

    def request(self, write: HeadWrite, condition: str) -> UpdateTypeDef:
        expression = f"SET {', '.join(self.assigned)}"
        if self.removed:
            expression += f" REMOVE {', '.join(self.removed)}"
        return {
            "TableName": write.table,
            "Key": head_key(write.change.key),
            "UpdateExpression": expression,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": self.names,
            "ExpressionAttributeValues": self.values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
