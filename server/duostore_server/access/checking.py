"""CheckConsistency: compares what the stores hold, many entities at a time, and mends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from duostore_server.access.checks import refuse
from duostore_server.domain.drift import CheckProgress, FoundDrift
from duostore_server.domain.errors import DeadlineExceededError, FieldViolation, StoreError
from duostore_server.domain.keys import listed
from duostore_server.domain.policies import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from duostore_server.access.examining import Examined, Examining
    from duostore_server.access.repairing import Repairing
    from duostore_server.access.walking import Lot, Walking
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import Drift
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.ports import Authority

MAX_SAMPLE: Final = 1_000_000

_TOLD_EVERY_SECONDS: Final = 0.5
# Drifts that are told at a time: each names a key, and up to 20 places.
_MOST_TOLD: Final = 25


@dataclass(slots=True)
class _Tally:
    """What a check has come to."""

    total: int
    checked: int = 0
    drifts: int = 0
    repaired: int = 0
    undecided: int = 0
    # Not told yet.
    found: list[FoundDrift] = field(default_factory=list)

    def progress(self, *, done: bool = False) -> CheckProgress:
        """Return how far it is, with the next of what is not told yet."""
        told, self.found = self.found[:_MOST_TOLD], self.found[_MOST_TOLD:]
        total = self.checked if done else max(self.total, self.checked)
        return CheckProgress(
            self.checked, total, tuple(told), self.drifts, self.repaired, self.undecided, done
        )


class Checking:
    """Compares DynamoDB and the cache with Aurora, and Aurora with DynamoDB for orphans.

    Takes a hundred keys at a time, in three or four calls of the stores, so that what it holds
    does not grow with what there is.
    """

    def __init__(
        self,
        *,
        walking: Walking,
        authority: Authority,
        examining: Examining,
        repairing: Repairing,
        policies: Policies,
        drifted: Callable[[str, Drift], None],
        repaired: Callable[[str, bool], None],
        clock: Callable[[], float],
    ) -> None:
        """``drifted`` and ``repaired`` count, by kind; ``clock`` gives seconds, monotonic."""
        self._walking = walking
        self._authority = authority
        self._examining = examining
        self._repairing = repairing
        self._policies = policies
        self._drifted = drifted
        self._repaired = repaired
        self._clock = clock

    def check(
        self, kind: str, sample: int | None, deadline: Deadline, *, repair: bool
    ) -> Generator[CheckProgress, None, None]:
        """Compare so many entities and items taken at random, all if ``sample`` is None.

        Of a kind, or of all that are at home in Aurora if it is empty. Yields how far it is
        about twice a second, each drift as it is found, and at the end a last time; what was
        yielded as repaired is, whenever the caller stops. Raises ``InvalidRequestError`` at
        once; ``StoreError`` if the stores cannot be walked; ``DeadlineExceededError``.
        """
        refuse(self._violations(kind, sample))
        kinds = (kind,) if kind else self._policies.at_home(Home.AURORA)
        return self._check(kinds, sample, deadline, repair=repair)

    def _check(
        self, kinds: Sequence[str], sample: int | None, deadline: Deadline, *, repair: bool
    ) -> Generator[CheckProgress, None, None]:
        tally = _Tally(self._walking.estimate(kinds, sample, deadline))
        yield tally.progress()
        told = self._clock()
        for lot in self._walking.lots(kinds, sample, deadline):
            if deadline.is_abandoned():
                raise DeadlineExceededError
            found = self._examine(lot, tally, deadline)
            self._add(found, tally, deadline, repair=repair)
            while tally.found or self._clock() - told >= _TOLD_EVERY_SECONDS:
                yield tally.progress()
                told = self._clock()
        yield tally.progress(done=True)

    def _examine(self, lot: Lot, tally: _Tally, deadline: Deadline) -> Mapping[EntityKey, Examined]:
        keys = lot.keys
        tally.checked += len(keys)
        try:
            if lot.of_items and keys:
                # What Aurora has was walked, or is as likely to be drawn as all else.
                rows = self._authority.read(keys, deadline)
                keys = [key for key in keys if key not in rows]
            found = self._examining.examine(keys, deadline, seen=lot.seen)
        except StoreError:
            tally.undecided += len(lot.keys)
            return {}
        tally.undecided += sum(not one.is_decided and not one.findings for one in found.values())
        return found

    def _add(
        self,
        found: Mapping[EntityKey, Examined],
        tally: _Tally,
        deadline: Deadline,
        *,
        repair: bool,
    ) -> None:
        """Count what was found, after it was repaired if it is to be."""
        drifted = {key: one.findings for key, one in found.items() if one.findings}
        errors = self._repairing.repair(drifted, deadline) if repair and drifted else {}
        for key, findings in drifted.items():
            error = errors.get(key)
            is_repaired = error == ""
            if error is not None:
                self._repaired(key.kind, is_repaired)
            for finding in findings:
                self._drifted(key.kind, finding.drift)
                tally.drifts += 1
                tally.repaired += is_repaired
                tally.found.append(FoundDrift(finding, is_repaired, error or ""))

    def _violations(self, kind: str, sample: int | None) -> Iterator[FieldViolation]:
        policy = self._policies.of_kind(kind)
        if kind and policy is None:
            known = listed(self._policies.at_home(Home.AURORA))
            text = f"{kind!r} is not a configured kind (at home in Aurora: {known})"
            yield FieldViolation("kind", text)
        elif policy is not None and policy.home is not Home.AURORA:
            text = f"{kind!r} is at home in DynamoDB: Aurora has nothing to compare it with"
            yield FieldViolation("kind", text)
        if sample is not None and not 1 <= sample <= MAX_SAMPLE:
            yield FieldViolation("sample", f"is {sample}; it must be 1 to {MAX_SAMPLE:,}")
