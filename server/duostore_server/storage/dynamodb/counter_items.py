"""The items of the counter table: what was used of a quota, and what was granted by name.

A counter (pk ``count#`` and its key) has flat attributes alone, so that each can be named
by a condition and changed by itself:

    epoch                   the newest slot
    level_<slot>            its level
    lease_<worker>          what that worker has leased: ``amount until nonce``
    hold_<slot>_<until>     what reservations hold of a slot
    held                    the sum of these, of a token bucket
    refunded                what was given back since the counter exists

A grant has pk ``grant#tenant#id`` and, once it is settled, the attributes ``settled_...``.
Times are nanoseconds since 1970, but for ``sweep_time``: see ``head_items``.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.counters import Counter, Grant, HoldName, Lease, Settlement
from duostore_server.domain.quotas import CounterKey
from duostore_server.storage.dynamodb.attributes import UnreadableError, attribute
from duostore_server.storage.dynamodb.head_items import EXPIRE_TIME, SWEEP_TIME, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from types_boto3_dynamodb.type_defs import AttributeValueTypeDef

    from duostore_server.storage.dynamodb.items import Item

EPOCH: Final = "epoch"
HELD: Final = "held"
REFUNDED: Final = "refunded"
FORGET_TIME: Final = "forget_time"
# There is a settlement if there is this attribute of it.
COMMITTED: Final = "settled_committed"

_LEVEL: Final = "level_"
_LEASE: Final = "lease_"
_HOLD: Final = "hold_"

_QUOTA: Final = "quota"
_SUBJECT: Final = "subject"
NONCE: Final = "nonce"
_REQUEST_HASH: Final = "request_hash"
_COST: Final = "cost"
_SLOT: Final = "slot"
_AMOUNT: Final = "amount"
_HOLD_SLOT: Final = "hold_slot"
_HOLD_UNTIL: Final = "hold_until"
_SETTLED_COST: Final = "settled_cost"
_SETTLED_REFUNDED: Final = "settled_refunded"
_COVERED: Final = "settled_covered"

_SECOND: Final = 1_000_000_000
_SWEPT_AFTER_SECONDS: Final = 24 * 3600


def counter_pk(key: CounterKey) -> str:
    """Return the partition key of a counter."""
    return f"count#{key}"


def grant_pk(tenant: str, id_: str) -> str:
    """Return the partition key of a grant."""
    return f"grant#{tenant}#{id_}"


def level_name(slot: int) -> str:
    """Return the attribute that holds the level of a slot."""
    return f"{_LEVEL}{slot}"


def lease_name(worker: str) -> str:
    """Return the attribute that holds the lease of a worker."""
    return f"{_LEASE}{worker}"


def hold_name(hold: HoldName) -> str:
    """Return the attribute that holds what is held under a name."""
    return f"{_HOLD}{hold.slot}_{hold.until}"


def encode_lease(lease: Lease) -> AttributeValueTypeDef:
    """Return a lease as an attribute; equal for equal leases alone."""
    return {"S": f"{lease.amount} {lease.until} {lease.nonce}"}


def decode_counter(item: Mapping[str, Any]) -> Counter:
    """Return the counter that an item holds; raises ``UnreadableError``."""
    levels: dict[int, int] = {}
    leases: dict[str, Lease] = {}
    holds: dict[HoldName, int] = {}
    for name in item:
        if name.startswith(_LEVEL):
            (slot,) = _numbers(name, _LEVEL, 1)
            levels[slot] = _integer(item, name)
        elif name.startswith(_LEASE):
            leases[name.removeprefix(_LEASE)] = _lease(attribute(item, name, "S"))
        elif name.startswith(_HOLD):
            slot, until = _numbers(name, _HOLD, 2)
            holds[HoldName(slot, until)] = _integer(item, name)
    epoch = _integer(item, EPOCH)
    if epoch not in levels:
        raise UnreadableError(f"slot {epoch} has no level")
    held = _integer(item, HELD) if HELD in item else 0
    return Counter(epoch, levels, leases, holds, _integer(item, REFUNDED), held)


def encode_grant(grant: Grant) -> Item:
    """Return the item that holds a grant which is not settled."""
    item: Item = {
        "pk": {"S": grant_pk(grant.counter.tenant, grant.id)},
        NONCE: {"S": grant.nonce},
        _QUOTA: {"S": grant.counter.quota},
        _SUBJECT: {"S": grant.counter.subject},
        _COST: number(grant.cost),
        _SLOT: number(grant.slot),
        _AMOUNT: number(grant.amount),
        FORGET_TIME: number(grant.forget_time),
        SWEEP_TIME: number(grant.forget_time // _SECOND + _SWEPT_AFTER_SECONDS),
    }
    if grant.request_hash:
        item[_REQUEST_HASH] = {"B": grant.request_hash}
    if grant.hold is not None:
        item[_HOLD_SLOT] = number(grant.hold.slot)
        item[_HOLD_UNTIL] = number(grant.hold.until)
    if grant.expire_time is not None:
        item[EXPIRE_TIME] = number(grant.expire_time)
    return item


def encode_settlement(settlement: Settlement) -> Item:
    """Return the attributes that a grant has besides once it is settled."""
    item: Item = {
        COMMITTED: number(settlement.committed),
        _SETTLED_REFUNDED: number(settlement.refunded),
        _COVERED: {"BOOL": settlement.covered},
    }
    if settlement.cost is not None:
        item[_SETTLED_COST] = number(settlement.cost)
    return item


def decode_grant(item: Mapping[str, Any]) -> Grant:
    """Return the grant that an item holds; raises ``UnreadableError``."""
    _, tenant, id_ = attribute(item, "pk", "S").split("#", 2)
    held = _HOLD_SLOT in item
    return Grant(
        counter=CounterKey(tenant, attribute(item, _QUOTA, "S"), attribute(item, _SUBJECT, "S")),
        id=id_,
        nonce=attribute(item, NONCE, "S"),
        request_hash=attribute(item, _REQUEST_HASH, "B") if _REQUEST_HASH in item else b"",
        cost=_integer(item, _COST),
        slot=_integer(item, _SLOT),
        amount=_integer(item, _AMOUNT),
        forget_time=_integer(item, FORGET_TIME),
        hold=HoldName(_integer(item, _HOLD_SLOT), _integer(item, _HOLD_UNTIL)) if held else None,
        expire_time=_integer(item, EXPIRE_TIME) if EXPIRE_TIME in item else None,
        settlement=_settlement(item) if COMMITTED in item else None,
    )


def _settlement(item: Mapping[str, Any]) -> Settlement:
    return Settlement(
        cost=_integer(item, _SETTLED_COST) if _SETTLED_COST in item else None,
        committed=_integer(item, COMMITTED),
        refunded=_integer(item, _SETTLED_REFUNDED),
        covered=attribute(item, _COVERED, "BOOL"),
    )


def _lease(text: str) -> Lease:
    amount, _, rest = text.partition(" ")
    until, _, nonce = rest.partition(" ")
    if not (amount.isdecimal() and until.isdecimal() and nonce):
        raise UnreadableError(f"lease {text!r}")
    return Lease(int(amount), int(until), nonce)


def _numbers(name: str, prefix: str, count: int) -> list[int]:
    """Return the whole numbers that an attribute's name has after its prefix."""
    parts = name.removeprefix(prefix).split("_")
    if len(parts) != count or not all(part.isdecimal() for part in parts):
        raise UnreadableError(f"attribute {name!r}")
    return [int(part) for part in parts]


def _integer(item: Mapping[str, Any], name: str) -> int:
    """Return an attribute that is a whole number, at least 0, however many digits it has.

    A number with many zeros at its end may be shown with an exponent.
    """
    text: str = attribute(item, name, "N")
    if text.isdecimal():
        return int(text)
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise UnreadableError(f"{name} {text!r}") from None
    if value < 0 or value != value.to_integral_value():
        raise UnreadableError(f"{name} {text!r}")
    return int(value)
