"""The limit that is in force for each subject: set at run time, configured, or the quota's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.limits import LimitKey

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.domain.ports import Limits
    from duostore_server.domain.quotas import CounterKey, Quota

    # By tenant and subject; the tenant is None of limits that hold in every tenant.
    _Table: TypeAlias = Mapping[tuple[str | None, str], int]

# What is read every second is not waited for much longer.
_READ_SECONDS: Final = 1.0


class LimitsInForce:
    """Knows the limits of all subjects, those that are set at run time as of the last refresh.

    Of several that fit a subject holds, in this order: what is set at run time for it in its
    tenant, then for it in every tenant; what is configured, the same way; the limit of the
    quota. Until the first refresh, and for quotas of which nothing is set, the configuration
    holds. Safe to use from many threads.
    """

    def __init__(self, quotas: Mapping[str, Quota], limits: Limits) -> None:
        self._quotas = quotas
        self._limits = limits
        self._set: Mapping[tuple[str, str], int] = {}
        # Never changed, but replaced as a whole; quotas without overrides are left out.
        self._tables = self._merged()

    def of(self, quota: Quota, key: CounterKey) -> int:
        """Return the limit in force for a subject of a quota. Asks no store."""
        table = self._tables.get(quota.name)
        if table is None:
            return quota.limit
        limit = table.get((key.tenant, key.subject))
        return table.get((None, key.subject), quota.limit) if limit is None else limit

    def refresh(self) -> bool:
        """Read what is set at run time; return False, for there is never more to do at once.

        What was known before stays in force if it raises, as ``Limits.read`` does.
        """
        found = self._limits.read(Deadline.after(_READ_SECONDS))
        if found != self._set:
            self._set = found
            self._tables = self._merged()
        return False

    def _merged(self) -> Mapping[str, _Table]:
        now: dict[str, dict[tuple[str | None, str], int]] = {}
        for (name, text), limit in self._set.items():
            key = LimitKey.parse(text)
            now.setdefault(name, {})[key.tenant, key.subject] = limit
        tables = {}
        for name, quota in self._quotas.items():
            found = now.get(name, {})
            configured = {}
            for text, limit in quota.overrides.items():
                key = LimitKey.parse(text)
                # What is set for every tenant goes before what is configured for one.
                if (None, key.subject) not in found:
                    configured[key.tenant, key.subject] = limit
            if table := {**configured, **found}:
                tables[name] = table
        return tables
