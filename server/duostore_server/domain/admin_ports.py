"""What operating the service needs of the stores, beside what the calls need.

As in ``ports``: one conformance suite each, the same errors, safe to call from many threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from duostore_server.domain.backfills import (
        Advanced,
        Backfill,
        BackfillPart,
        BackfillState,
        Batch,
    )
    from duostore_server.domain.controls import Controlled, FlagValue
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import SavedVersion, Verified
    from duostore_server.domain.entities import Entity, Projection
    from duostore_server.domain.keys import EntityKey


class Controls(Protocol):
    """What is set while the service runs: rows of Aurora."""

    def read(self, deadline: Deadline) -> Controlled:
        """Return all that is set; linearizable. Rows that cannot be read are told in the log."""
        ...

    def set_flag(self, name: str, value: FlagValue, caller: str, deadline: Deadline) -> None:
        """Set a flag, whatever was set before. Safe to repeat."""
        ...

    def unset_flag(self, name: str, deadline: Deadline) -> bool:
        """Forget what is set of a flag; return whether anything was."""
        ...

    def set_read_only(self, kind: str, reason: str | None, caller: str, deadline: Deadline) -> None:
        """Refuse writes of a kind, or of all if it is empty; with ``reason`` None take them again.

        Safe to repeat.
        """
        ...


@dataclass(frozen=True, slots=True)
class EntityPage:
    """Some entities of a kind in the order of tenant and id.

    ``last`` is where to go on, None at the end; there may be no entities, and more to come.
    """

    entities: Sequence[Entity]
    last: EntityKey | None


class Entities(Protocol):
    """The entities of Aurora, many at a time."""

    def page(
        self,
        kind: str,
        after: EntityKey | None,
        until: EntityKey | None,
        limit: int,
        deadline: Deadline,
    ) -> EntityPage:
        """Return up to ``limit`` entities of a kind with keys after one and up to another.

        Newest committed versions, tombstones included. Each page sees what was committed before
        it. Bounded in bytes too: large documents make pages smaller. Takes time in proportion
        to what it returns, however many other kinds and tenants there are.
        """
        ...

    def sample(self, kind: str, limit: int, deadline: Deadline) -> Sequence[EntityKey]:
        """Return the keys of about ``limit`` entities at random, of all kinds if it is empty.

        In time that does not grow with the table. At most ``limit``; all of them if there are
        no more than that.
        """
        ...

    def estimate(self, kind: str, deadline: Deadline) -> int:
        """Return about how many entities there are, of all kinds if it is empty."""
        ...

    def time(self, deadline: Deadline) -> datetime:
        """Return what time it is by the clock that the times of entities are of."""
        ...

    def saved(
        self, since: datetime, until: datetime, limit: int, deadline: Deadline
    ) -> Sequence[SavedVersion]:
        """Return up to ``limit`` versions of times after ``since`` up to ``until``, at random.

        Of those that are committed by now.
        """
        ...


class Verifications(Protocol):
    """What the verifier found when it last looked at an entity: a table of Aurora."""

    def record(self, looks: Sequence[Verified], deadline: Deadline) -> None:
        """Note looks of different keys, each instead of the one before. Safe to repeat."""
        ...

    def last(self, key: EntityKey, deadline: Deadline) -> Verified | None:
        """Return the last look at a key."""
        ...

    def purge(self, before: datetime, limit: int, deadline: Deadline) -> int:
        """Remove up to ``limit`` looks from before a time; return how many."""
        ...


class Backfills(Protocol):
    """Backfills and how far they have come: tables of Aurora.

    Of each kind there is one at a time, whose parts may be claimed by many processes.
    """

    def start(
        self, kind: str, *, rate: int, parts: int, caller: str, deadline: Deadline
    ) -> Backfill:
        """Begin a backfill in up to ``parts`` parts of about one size, or go on with a paused one.

        One that is running is returned as it is; its rate is set anew unless ``rate`` is 0. Of
        many that start at once one begins.
        """
        ...

    def move(
        self, kind: str, state: BackfillState, caller: str, deadline: Deadline
    ) -> Backfill | None:
        """Pause or cancel what is running or paused; None if nothing is. Safe to repeat.

        Once it returns no part can be advanced, but for batches that are under way.
        """
        ...

    def find(self, kind: str, deadline: Deadline) -> Backfill | None:
        """Return the newest backfill of a kind, ended or not; linearizable."""
        ...

    def unfinished(self, deadline: Deadline) -> Sequence[Backfill]:
        """Return those that are running or paused."""
        ...

    def claim(
        self, kinds: Collection[str], limit: int, deadline: Deadline
    ) -> Sequence[BackfillPart]:
        """Take up to ``limit`` parts of running backfills of these kinds, for a few seconds.

        As ``Outbox.claim``: a part is given to nobody else until its claim runs out. The rate
        is shared by all parts that are claimed now, by whomever.
        """
        ...

    def hold(self, part: BackfillPart, deadline: Deadline) -> BackfillPart | None:
        """Hold a part for as long again; return it with the rate that it has now.

        None if the claim is another's by now, or the backfill does not run any more.
        """
        ...

    def advance(self, part: BackfillPart, batch: Batch, deadline: Deadline) -> Advanced:
        """Note that a batch is done and hold the part for as long again.

        The part goes on unless it has come to its end, or the backfill does not run any more;
        if the claim is another's by now, the batch does not count either. With the last part it
        is done. A batch is counted once, and told as counted, though the answer be lost.
        """
        ...


@dataclass(frozen=True, slots=True)
class HeldItem:
    """What DynamoDB holds of a key, byte for byte.

    ``fault`` says why readers are not answered from it, empty if they are; ``projection`` is then
    what can be read of it, or a stub. ``raw`` is the item as the store's folder knows it.
    """

    key: EntityKey
    projection: Projection
    fault: str
    stored_bytes: int
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some items of the projection table; ``next`` is where to go on, None at the end."""

    items: Sequence[HeldItem]
    next: str | None


class ProjectionItems(Protocol):
    """The items of projections as they are, readable or not: DynamoDB."""

    def inspect(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, HeldItem]:
        """Return what is held of each key; strongly consistent. Missing keys are left out."""
        ...

    def replace(self, found: HeldItem, by: Projection | None, deadline: Deadline) -> bool:
        """Put a projection in the place of exactly what was found, or nothing if it is None.

        Returns False, with nothing changed, if anything of the item has changed since. Whoever
        calls it sees to it that what is right is projected afterwards: this alone may go back
        in version. Safe to repeat.
        """
        ...

    def fits(self, key: EntityKey, projection: Projection) -> bool:
        """Return whether a put or a replacement would hold this, rather than its stub.

        Asks nobody.
        """
        ...

    def page(self, start: str | None, limit: int, deadline: Deadline) -> ItemPage:
        """Return up to ``limit`` items of the table from ``start`` on; strongly consistent.

        Items whose key cannot be read are left out.
        """
        ...

    def sample(self, limit: int, deadline: Deadline) -> Sequence[HeldItem]:
        """Return up to ``limit`` items of places of the table taken at random."""
        ...
