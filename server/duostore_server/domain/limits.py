"""Limits of single subjects, which override the limit of a quota."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.quotas import AlgorithmName, CounterKey, counter_key_violations

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of any quota and any subject.
MAX_LIMIT: Final = 10**12

_TOKENS_A_SECOND: Final = 10**9
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class LimitKey:
    """Whom a limit is for: a subject of one tenant or, if ``tenant`` is None, of every tenant.

    Of the latter no subject holds a ``#``: what holds one names its tenant, be it empty.
    """

    tenant: str | None
    subject: str

    @classmethod
    def parse(cls, text: str) -> LimitKey:
        """Return what ``str`` was made of; never fails, since any subject may be asked for."""
        tenant, parted, subject = text.partition("#")
        return cls(tenant, subject) if parted else cls(None, text)

    def __str__(self) -> str:
        """Return ``tenant#subject``, or the subject alone: unambiguous, as no tenant has a #."""
        return self.subject if self.tenant is None else f"{self.tenant}#{self.subject}"


def limit_key_violations(quota: str, key: LimitKey) -> Iterator[FieldViolation]:
    """Yield all that is wrong with whom a limit of a quota is for."""
    yield from counter_key_violations(CounterKey(key.tenant or "", quota, key.subject))
    if key.tenant is None and "#" in key.subject:
        yield FieldViolation("subject", "holds '#': then its tenant has to be named")


def most_units(algorithm: AlgorithmName, window: timedelta) -> int:
    """Return the highest limit that can be counted so."""
    if algorithm is AlgorithmName.TOKEN_BUCKET:
        tokens = window // _MICROSECOND * _TOKENS_A_SECOND // 1_000_000
        return min(MAX_LIMIT, tokens)
    return MAX_LIMIT
