"""What the protocol promises, held against what happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from duostore_server.domain.entities import Entity
    from duostore_server.domain.errors import StoreError
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.transactions import Outcome


class ViolationError(AssertionError):
    """A claim of the protocol does not hold."""

    def __init__(self, claim: str, what: str) -> None:
        self.claim = claim
        super().__init__(f"{claim}: {what}")


@dataclass(slots=True)
class Claims:
    """What was promised so far, and whether it holds."""

    written: dict[EntityKey, dict[int, Any]] = field(default_factory=dict)
    # The newest version that was acknowledged as projected.
    acknowledged: dict[EntityKey, int] = field(default_factory=dict)
    highest: dict[tuple[str, EntityKey], int] = field(default_factory=dict)
    # With Aurora out of reach a call may fail, though not if it can do without.
    reads_may_fail: bool = False
    writes_may_fail: bool = False
    # And so of what is at home in DynamoDB, with that out of reach.
    state_may_fail: bool = False
    reads: int = 0
    unanswered: int = 0

    def committed(self, key: EntityKey, version: int, data: Any) -> None:
        """Take note of a commit: versions have no gaps (C3), and none is made twice (C2).

        A document that says to be ``once`` is of a Save that several callers repeat.
        """
        versions = self.written.setdefault(key, {})
        if version != len(versions) + 1:
            raise ViolationError("C3", f"version {version} after {len(versions)}")
        if data and "once" in data and data in versions.values():
            raise ViolationError("C2", f"{data} was applied again, as version {version}")
        versions[version] = data

    def answered(self, key: EntityKey, outcome: Outcome, once: Any = None) -> None:
        """Take note of what a writer was told; of a repeated Save, the version that it made."""
        (applied,) = outcome.answer
        if once is not None and self.written[key].get(applied.version) != once:
            raise ViolationError("C2", f"{once} was answered with version {applied.version}")
        if outcome.projected:
            self.acknowledged[key] = max(self.acknowledged.get(key, 0), applied.version)

    def newest(self, key: EntityKey) -> int:
        """Return the version that was committed last, 0 if there is none."""
        return len(self.written.get(key, ()))

    def saw(
        self, key: EntityKey, version: int, found: Entity | None, *, promised: int, token: int
    ) -> None:
        """Check an answer to a reader.

        It had shown ``token``, which is at least what it had seen or written itself; when
        it asked, everybody was promised version ``promised``.
        """
        self.reads += 1
        if version < token:
            raise ViolationError("C4", f"{key} read at {version}, with min_version {token}")
        if version < promised:
            raise ViolationError("C6", f"{key} read at {version}, {promised} was acknowledged")
        expected = self.written.get(key, {}).get(version)
        if (found.data if found else None) != expected:
            raise ViolationError("C3", f"{key} at {version} is {expected}, read as {found}")

    def read_failed(self, error: StoreError, *, excused: bool = False) -> None:
        """Take note of a read without an answer: there is none while its home is up (C10)."""
        if excused:
            return
        self.reads += 1
        self.unanswered += 1
        if not self.reads_may_fail:
            raise ViolationError("C10", f"a read was not answered: {error!r}")

    def write_failed(self, error: StoreError, *, excused: bool) -> None:
        """Take note of a write that failed: there is none while its home is up (C10)."""
        if not (excused or self.writes_may_fail):
            raise ViolationError("C10", f"a write failed: {error!r}")

    def holds(self, tier: str, key: EntityKey, version: int) -> None:
        """Check that what a tier holds is not older than what it held before (C5)."""
        before = self.highest.get((tier, key), 0)
        if version < before:
            raise ViolationError("C5", f"{tier} of {key} went back from {before} to {version}")
        self.highest[tier, key] = version

    def state(self) -> Hashable:
        """Return all that the checks to come depend on."""
        return (
            tuple(
                (str(key), tuple(map(repr, versions.values())))
                for key, versions in self.written.items()
            ),
            frozenset(self.acknowledged.items()),
            frozenset(self.highest.items()),
        )
