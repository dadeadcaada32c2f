"""What the states of an entity in all stores come to, in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.domain.drift import Drift
from duostore_server.domain.errors import Store
from duostore_server.domain.explained import Holding

if TYPE_CHECKING:
    from duostore_server.domain.drift import Finding
    from duostore_server.domain.explained import Explained, TierState

_NAMES: Final = {Store.CACHE: "the cache", Store.DYNAMODB: "DynamoDB", Store.AURORA: "Aurora"}
_OLDER: Final = "{store} has {found}, and readers may get that though the newest is {newest}"
_NEWER: Final = "{store} has {found}, which {home} does not have, and readers may get that"
_CONTENT: Final = "{store} has {newest} with another content than {home}, and readers may get that"
_UNREADABLE: Final = "What {store} has cannot be read, and readers pass over it"
_FAULTS: Final = {
    Drift.PROJECTION_OLDER: _OLDER,
    Drift.PROJECTION_NEWER: _NEWER,
    Drift.PROJECTION_MISSING: "{store} has nothing, and readers get {newest} from {home}",
    Drift.PROJECTION_CONTENT: _CONTENT,
    Drift.PROJECTION_UNREADABLE: _UNREADABLE,
    Drift.PROJECTION_ORPHAN: "{store} has {found} of an entity that {home} never had",
    Drift.PROJECTION_VERSION_MISSING: (
        "{store} lacks a projection version that is to be written, whose readers get {newest} "
        "from {home}"
    ),
    Drift.CACHE_OLDER: _OLDER,
    Drift.CACHE_NEWER: _NEWER,
    Drift.CACHE_CONTENT: _CONTENT,
    Drift.CACHE_UNREADABLE: _UNREADABLE,
}
# What may only be on its way.
_LATE: Final = frozenset(
    {
        Drift.PROJECTION_OLDER,
        Drift.PROJECTION_MISSING,
        Drift.PROJECTION_VERSION_MISSING,
        Drift.CACHE_OLDER,
    }
)


def verdict_of(explained: Explained, *, shape: int, pending: bool) -> str:
    """Return what it comes to; ``shape`` is what readers get.

    ``pending``: the newest version may still be on its way.
    """
    home = Store.DYNAMODB if explained.aurora is None else Store.AURORA
    right = explained.dynamodb if explained.aurora is None else explained.aurora
    if right.holding is Holding.UNKNOWN:
        name = _capital(_NAMES[home])
        return f"{name} cannot be asked, so that it cannot be told whether the others are right."
    # The cache comes first, for readers ask it first; what misleads them comes before the rest.
    found = sorted(
        explained.drifts,
        key=lambda each: (not each.drift.misleads, each.drift.store is not Store.CACHE),
    )
    if found:
        fault = _fault(found[0], home, right)
        return f"{fault}: {_remedy(found[0], home, pending=pending)}."
    return f"{_agreement(explained, right, shape)}{_besides(explained)}."


def _fault(finding: Finding, home: Store, right: TierState) -> str:
    version = finding.found_version
    text = _FAULTS[finding.drift].format(
        store=_NAMES[finding.drift.store],
        found=f"version {version}" if version else "that there is none",
        newest=_version(right),
        home=_NAMES[home],
    )
    return _capital(text)


def _remedy(finding: Finding, home: Store, *, pending: bool) -> str:
    if finding.drift in _LATE and pending:
        return "it is on its way"
    if finding.drift is Drift.CACHE_UNREADABLE:
        return "the next one drops it"
    if home is Store.DYNAMODB:
        return "it goes when the entry's time is over, or with the next write"
    kind = finding.key.kind
    if finding.drift is Drift.PROJECTION_VERSION_MISSING:
        return f"`duostore backfill --kind {kind}` brings it"
    return f"`duostore check --kind {kind} --all --repair` mends it"


def _agreement(explained: Explained, right: TierState, shape: int) -> str:
    if right.holding is Holding.NOTHING:
        return "The entity does not exist, and no store says that it does"
    if right.holding is Holding.ABSENT:
        gone = "is deleted" if explained.aurora is not None else "is deleted or has expired"
        return f"The entity {gone}, with {_version(right)}, and no store says otherwise"
    if explained.aurora is not None and explained.dynamodb.holding is Holding.STUB:
        return f"All stores agree on {_version(right)}, which is too large for DynamoDB"
    store = _NAMES[_answers(explained, shape)]
    return f"All stores agree on {_version(right)}, and readers get it from {store}"


def _besides(explained: Explained) -> str:
    tiers = ((Store.CACHE, explained.cache), (Store.DYNAMODB, explained.dynamodb))
    for store, state in tiers:
        if state.holding is Holding.UNKNOWN:
            return f"; but {_NAMES[store]} cannot be asked"
    if explained.cache.holding is Holding.LEASE:
        return "; one is just bringing it to the cache"
    return ""


def _answers(explained: Explained, shape: int) -> Store:
    """Return the store that answers a reader who asks now."""
    if _holds(explained.cache, shape):
        return Store.CACHE
    if explained.aurora is None or _holds(explained.dynamodb, shape):
        return Store.DYNAMODB
    return Store.AURORA


def _holds(state: TierState, shape: int) -> bool:
    return state.holding is Holding.VALUE and shape in state.shapes


def _version(state: TierState) -> str:
    return f"version {state.version}" if state.version else "that there is none"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
