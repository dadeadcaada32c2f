"""Looks at what all stores hold of some keys, and says what does not agree for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.domain.drift import Drift
from duostore_server.domain.errors import Store, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from duostore_server.access.judging import Judge
    from duostore_server.domain.admin_ports import HeldItem, ProjectionItems
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import Finding
    from duostore_server.domain.entities import Entity, Peeked, PendingChange
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.ports import Authority, Cache, Outbox

# How long after its commit a change may take to be where it is read.
GRACE: Final = timedelta(seconds=10)
# Between looks at what may be on its way.
PAUSES: Final = (0.1, 0.4, 1.0, 2.0)

MOST_KEYS: Final = 100
# Of documents, at their kinds' limits: what is held of them at a time is a few times as much.
_MOST_BYTES: Final = 32 * 1024 * 1024

# What may be on its way; all else is wrong at once, since versions never change.
_TRANSIENT: Final = frozenset(
    {
        Drift.PROJECTION_OLDER,
        Drift.PROJECTION_MISSING,
        Drift.PROJECTION_VERSION_MISSING,
        Drift.CACHE_OLDER,
    }
)


@dataclass(frozen=True, slots=True)
class Look:
    """What all stores held of a key at about one time, and what does not agree.

    ``unknown`` are the stores that could not be asked; nothing is found of those.
    """

    key: EntityKey
    entity: Entity | None
    item: HeldItem | None
    entry: Peeked | None
    findings: tuple[Finding, ...]
    unknown: frozenset[Store]


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of all looks at a key.

    ``version`` is what Aurora had, 0 if nothing. ``findings`` do not agree for good; ``pending``,
    of the last look, are on their way, or changed from look to look. ``unknown`` are the stores
    that could not be asked then.
    """

    key: EntityKey
    version: int
    findings: tuple[Finding, ...]
    pending: tuple[Finding, ...]
    unknown: frozenset[Store]

    @property
    def is_decided(self) -> bool:
        """Whether there is no more than ``findings``."""
        return not self.pending and not self.unknown


@dataclass(slots=True)
class _Case:
    """A key while it is looked at."""

    version: int = 0
    found: dict[Store, Finding] = field(default_factory=dict)
    # Of the look before: what was not as new as Aurora, and was not known to be on its way.
    suspected: dict[Store, Finding] = field(default_factory=dict)
    pending: dict[Store, Finding] = field(default_factory=dict)
    # The id of the outbox row that stood then, if one did.
    change: int | None = None
    unknown: frozenset[Store] = frozenset()
    is_open: bool = True


class Examining:
    """Compares DynamoDB and the cache with Aurora, beside live traffic and with no lock.

    A look asks the cache and DynamoDB first and Aurora after them. What they had then and
    Aurora does not is wrong whatever else goes on: Aurora never goes back, and the content
    of a version never changes. What was older or missing may only be late. It is drift if
    it is still not there at a later look, while no outbox row says that it is being brought,
    or the same one at both looks that has said so for longer than ``grace``. A row that has
    another id, or is gone, was changed or completed in between: a key that is saved all the
    time may keep a row for as long, and each of its versions is brought in no time.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        items: ProjectionItems,
        cache: Cache,
        outbox: Outbox,
        judge: Judge,
        policies: Policies,
        pause: Callable[[float], object],
        grace: timedelta = GRACE,
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        """``pauses`` are the seconds between looks: there is one look more than pauses."""
        self._authority = authority
        self._items = items
        self._cache = cache
        self._outbox = outbox
        self._judge = judge
        self._policies = policies
        self._pause = pause
        self._grace = grace
        self._pauses = tuple(pauses)

    def examine(
        self,
        keys: Collection[EntityKey],
        deadline: Deadline,
        *,
        seen: Mapping[EntityKey, Entity] | None = None,
    ) -> dict[EntityKey, Examined]:
        """Return what came of each key, of kinds at home in Aurora.

        Aurora need not be asked for what was ``seen`` in it just before, and agrees. Raises
        ``StoreError`` if Aurora cannot be asked, and ``DeadlineExceededError``.
        """
        examined: dict[EntityKey, Examined] = {}
        for lot in self.lots(keys):
            examined |= self._examine(lot, seen or {}, deadline)
        return examined

    def look(
        self,
        keys: Collection[EntityKey],
        deadline: Deadline,
        *,
        seen: Mapping[EntityKey, Entity] | None = None,
    ) -> dict[EntityKey, Look]:
        """Look at the stores once; raises as ``examine``.

        One call of each store, or none of Aurora if all keys were ``seen``; of the findings
        there nothing follows but that it has to be looked at again.
        """
        unknown = set()
        entries: Mapping[EntityKey, Peeked] = {}
        items: Mapping[EntityKey, HeldItem] = {}
        try:
            entries = self._cache.peek(keys)
        except StoreError:
            unknown.add(Store.CACHE)
        try:
            items = self._items.inspect(keys, deadline)
        except StoreError:
            unknown.add(Store.DYNAMODB)
        entities = seen if seen is not None else self._authority.read(keys, deadline)
        return {
            key: Look(
                key,
                entities.get(key),
                items.get(key),
                entries.get(key),
                tuple(
                    finding
                    for finding in self._judge.findings(
                        key, entities.get(key), item=items.get(key), entry=entries.get(key)
                    )
                    if finding.drift.store not in unknown
                ),
                frozenset(unknown),
            )
            for key in keys
        }

    def lots(self, keys: Collection[EntityKey], most: int = MOST_KEYS) -> Iterator[list[EntityKey]]:
        """Yield the keys in lots of up to ``most``, small enough to be looked at together."""
        lot: list[EntityKey] = []
        size = 0
        for key in keys:
            policy = self._policies.find(key)
            largest = 0 if policy is None else policy.max_bytes
            if lot and (len(lot) == most or size + largest > _MOST_BYTES):
                yield lot
                lot, size = [], 0
            lot.append(key)
            size += largest
        if lot:
            yield lot

    def _examine(
        self, keys: Sequence[EntityKey], seen: Mapping[EntityKey, Entity], deadline: Deadline
    ) -> dict[EntityKey, Examined]:
        cases = {key: _Case() for key in keys}
        if known := [key for key in keys if key in seen]:
            # Whatever agrees, agrees in whatever order it was read.
            for look in self.look(known, deadline, seen=seen).values():
                if not look.findings and not look.unknown:
                    cases[look.key].version = look.entity.version if look.entity else 0
                    cases[look.key].is_open = False
        for number, pause in enumerate((0.0, *self._pauses)):
            open_ = [key for key, case in cases.items() if case.is_open]
            if not open_:
                break
            if number:
                self._pause(pause)
            self._look_again(open_, cases, deadline)
        return {key: _examined(key, case) for key, case in cases.items()}

    def _look_again(
        self, keys: Sequence[EntityKey], cases: Mapping[EntityKey, _Case], deadline: Deadline
    ) -> None:
        looks = self.look(keys, deadline)
        late = [look.key for look in looks.values() if any(map(is_transient, look.findings))]
        changes = self._outbox.find(late, deadline) if late else {}
        for look in looks.values():
            change = changes.get(look.key)
            id_ = None if change is None else change.id
            _add(cases[look.key], look, id_, pending=self._is_pending(change))

    def _is_pending(self, change: PendingChange | None) -> bool:
        return change is not None and change.age < self._grace


def is_transient(finding: Finding) -> bool:
    """Whether what was found may only be late."""
    return finding.drift in _TRANSIENT


def is_behind(finding: Finding, version: int) -> bool:
    """Whether a store does not even have a version that it should have had before."""
    if finding.found_version == finding.expected_version:
        # It lacks something of the version itself.
        return finding.found_version <= version
    return finding.found_version < version


def _add(case: _Case, look: Look, change: int | None, *, pending: bool) -> None:
    """Bring what a look found together with the look before it."""
    before = case.suspected if case.change == change else {}
    case.suspected, case.pending, case.change = {}, {}, change
    case.version = look.entity.version if look.entity else 0
    for finding in look.findings:
        store = finding.drift.store
        if store in case.found:
            continue
        if not is_transient(finding):
            case.found[store] = finding
        elif pending:
            case.pending[store] = finding
        elif store in before and is_behind(finding, before[store].expected_version):
            case.found[store] = finding
        else:
            case.suspected[store] = finding
    case.unknown = look.unknown
    case.is_open = bool(case.suspected or case.pending)


def _examined(key: EntityKey, case: _Case) -> Examined:
    return Examined(
        key,
        case.version,
        tuple(case.found.values()),
        (*case.pending.values(), *case.suspected.values()),
        case.unknown,
    )
