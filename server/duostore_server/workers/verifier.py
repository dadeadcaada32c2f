"""The verifier: looks at some of what was saved, as a reader would, and at random rows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.drift import Drift, Verified
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.domain.keys import key_digest
from duostore_server.domain.policies import Home
from duostore_server.workers.loop import IncompleteRoundError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from duostore_server.access.examining import Examined, Examining
    from duostore_server.access.repairing import Repairing
    from duostore_server.domain.admin_ports import Entities, Verifications
    from duostore_server.domain.drift import Finding, SavedVersion
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies

# So long after a save, and how metrics name that.
AGES: Final = (
    (timedelta(seconds=1), "1s"),
    (timedelta(seconds=60), "60s"),
    (timedelta(minutes=5), "5m"),
)
ROW: Final = "row"

CONSISTENT: Final = "consistent"
INCONSISTENT: Final = "inconsistent"
UNDECIDED: Final = "undecided"

# A look that comes later than this says nothing of its age.
_LATEST: Final = timedelta(seconds=5)
# A save that has a time is committed a moment later.
_SETTLED: Final = timedelta(seconds=0.5)
# Of a verifier that was held up, as far back as it samples.
_LONGEST_SPAN: Final = timedelta(seconds=10)
# Saves that wait for a look: five minutes of 160 a second. More are not taken.
_MOST_WAITING: Final = 50_000
_KEEP: Final = timedelta(days=7)
_PURGED_AT_A_TIME: Final = 1000

_AURORA_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 10.0
_REPAIR_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


class VerifierMetrics(Protocol):
    """Counts what is found."""

    def verified(self, age: str, outcome: str) -> None:
        """Count a look, by how long after a save it was, ``row`` if it was at a random row."""
        ...

    def drifted(self, kind: str, drift: Drift) -> None:
        """Count one thing that does not agree."""
        ...

    def repaired(self, kind: str, ok: bool) -> None:  # noqa: FBT001 - as Metrics has it
        """Count an entity that was projected anew, or could not be."""
        ...


@dataclass(frozen=True, slots=True)
class _Due:
    """A look that is due: at a save of ``version``, or at a random row if that is 0."""

    key: EntityKey
    label: str
    age: timedelta = timedelta()
    version: int = 0


class Verifier:
    """Takes some saves of each second and looks at them 1 s, 60 s and 5 min after.

    And at some rows. What it finds is counted and logged, noted for Explain, and mended if it
    is told to. A look finds the save consistent unless a reader is answered wrongly, or may
    be; what is still on its way when a look is due is inconsistent at that age, though it is
    no drift. Several verifiers may run side by side, each with saves of its own choice.
    """

    def __init__(
        self,
        *,
        entities: Entities,
        verifications: Verifications,
        examining: Examining,
        repairing: Repairing,
        policies: Policies,
        metrics: VerifierMetrics,
        saves: int,
        rows: int,
        repair: bool,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        """``saves`` and ``rows`` are taken in a second; ``repair``: what is found is mended.

        ``examining`` should pause between looks for a fraction of a second alone.
        """
        self._entities = entities
        self._verifications = verifications
        self._examining = examining
        self._repairing = repairing
        self._policies = policies
        self._metrics = metrics
        self._saves = saves
        self._rows = rows
        self._repair = repair
        self._most_waiting = most_waiting
        self._since: datetime | None = None
        # Those of an age wait in the order of their times, nearly.
        self._waiting: tuple[deque[SavedVersion], ...] = tuple(deque() for _ in AGES)

    def run_once(self) -> bool:
        """Take the saves since the last round, and do the looks that are due; return False.

        A round is meant to be done each second. Raises ``StoreError`` if Aurora cannot be
        asked, and ``IncompleteRoundError`` if some looks decided nothing.
        """
        if not (self._saves or self._rows or any(self._waiting)):
            return False
        # By Aurora's clock, of which the times of saves are.
        now = self._entities.time(Deadline.after(_AURORA_SECONDS))
        self._take(now)
        rows = self._random_rows()
        late, saves = self._due(now)
        for look in late:
            self._metrics.verified(look.label, UNDECIDED)
        due = [*rows, *saves]
        examined = self._examine({look.key for look in due})
        for look in due:
            self._metrics.verified(look.label, _outcome(look, examined.get(look.key)))
        drifted = [one for one in examined.values() if one.findings]
        for finding in chain.from_iterable(one.findings for one in drifted):
            self._metrics.drifted(finding.key.kind, finding.drift)
            _tell(finding)
        if self._repair and drifted:
            self._mend(
                [
                    one.key
                    for one in drifted
                    # Those a backfill brings, at its own rate.
                    if not all(finding.drift.is_evolution for finding in one.findings)
                ]
            )
        self._note(due, examined, now)
        if due and not examined:
            raise IncompleteRoundError(f"{len(due)} looks could not be done")
        return False

    def purge(self) -> bool:
        """Forget looks of more than a week ago; return True if there may be more."""
        deadline = Deadline.after(_AURORA_SECONDS)
        before = self._entities.time(deadline) - _KEEP
        return self._verifications.purge(before, _PURGED_AT_A_TIME, deadline) == _PURGED_AT_A_TIME

    def _take(self, now: datetime) -> None:
        until = now - _SETTLED
        since = max(self._since or until - timedelta(seconds=1), until - _LONGEST_SPAN)
        if not self._saves or until <= since:
            return
        most = round(self._saves * (until - since).total_seconds())
        most = min(max(1, most), self._most_waiting - sum(map(len, self._waiting)))
        if most > 0:
            deadline = Deadline.after(_AURORA_SECONDS)
            taken = self._entities.saved(since, until, most, deadline)
            self._waiting[0].extend(
                sorted((save for save in taken if self._is_ours(save.key)), key=_time)
            )
        self._since = until

    def _due(self, now: datetime) -> tuple[list[_Due], list[_Due]]:
        """Return the looks that come too late, and those that are due."""
        late: list[_Due] = []
        due: list[_Due] = []
        for place, (age, label) in enumerate(AGES):
            waiting = self._waiting[place]
            while waiting and waiting[0].time + age <= now:
                save = waiting.popleft()
                look = _Due(save.key, label, age, save.version)
                (late if save.time + age + _LATEST < now else due).append(look)
                if place + 1 < len(AGES):
                    self._waiting[place + 1].append(save)
        return late, due

    def _random_rows(self) -> list[_Due]:
        if not self._rows:
            return []
        keys = self._entities.sample("", self._rows, Deadline.after(_AURORA_SECONDS))
        return [_Due(key, ROW) for key in keys if self._is_ours(key)]

    def _is_ours(self, key: EntityKey) -> bool:
        policy = self._policies.find(key)
        return policy is not None and policy.home is Home.AURORA

    def _examine(self, keys: Collection[EntityKey]) -> Mapping[EntityKey, Examined]:
        try:
            return self._examining.examine(keys, Deadline.after(_LOOK_SECONDS)) if keys else {}
        except (StoreError, DeadlineExceededError):
            return {}

    def _note(
        self, due: Collection[_Due], examined: Mapping[EntityKey, Examined], now: datetime
    ) -> None:
        """Note the looks that decided something; of several at a key the one of the latest age."""
        looks = {
            look.key: Verified(
                look.key, look.age, one.version, now, tuple(each.drift for each in one.findings)
            )
            for look in due
            if (one := examined.get(look.key)) and (one.is_decided or one.findings)
        }
        if looks:
            self._verifications.record(list(looks.values()), Deadline.after(_AURORA_SECONDS))

    def _mend(self, keys: Sequence[EntityKey]) -> None:
        for key, error in self._repairing.repair(keys, Deadline.after(_REPAIR_SECONDS)).items():
            self._metrics.repaired(key.kind, not error)
            if error:
                _log.warning(
                    "entity not repaired", kind=key.kind, key_digest=key_digest(key), error=error
                )
            else:
                _log.info("entity repaired", kind=key.kind, key_digest=key_digest(key))


def _outcome(look: _Due, examined: Examined | None) -> str:
    """Return what a look comes to.

    What is on its way says nothing of a row. Of a save it does: readers get the version by now,
    or a later one, or they do not.
    """
    if examined is None:
        return UNDECIDED
    misleading = [each for each in examined.pending if each.drift.misleads]
    behind = any(each.found_version < look.version for each in misleading)
    if behind or any(each.drift.misleads for each in examined.findings):
        return INCONSISTENT
    if examined.unknown or (misleading and not look.version):
        return UNDECIDED
    return CONSISTENT


def _tell(finding: Finding) -> None:
    """Log a finding: where it is, and no value; the entity by its digest.

    While a kind moves to another projection version all of its entities may lack that.
    """
    fields = {
        "kind": finding.key.kind,
        "key_digest": key_digest(finding.key),
        "drift": finding.drift.value,
        "expected_version": finding.expected_version,
        "found_version": finding.found_version,
        "differences": [f"{each.path}: {each.departure.value}" for each in finding.differences],
    }
    if finding.drift.is_evolution:
        _log.debug("stores do not agree", **fields)
    elif finding.drift.misleads:
        _log.error("stores do not agree", **fields)
    else:
        _log.warning("stores do not agree", **fields)


def _time(save: SavedVersion) -> datetime:
    return save.time
