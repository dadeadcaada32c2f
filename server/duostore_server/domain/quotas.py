"""What the configuration says of each quota, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from duostore_server.domain.keys import MAX_TENANT_BYTES, part_violations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

    from duostore_server.domain.errors import FieldViolation

MAX_QUOTA_BYTES: Final = 64
MAX_SUBJECT_BYTES: Final = 256

# Unless the configuration says otherwise, a slice is at most this part of the limit.
_LEASE_SHARE: Final = 20


class AlgorithmName(Enum):
    """How a quota counts."""

    FIXED_WINDOW = "fixed_window"
    SLIDING_WINDOW = "sliding_window"
    TOKEN_BUCKET = "token_bucket"  # noqa: S105 - no secret


class Mode(Enum):
    """What a caller wants of a quota."""

    CONSUME = "consume"
    PEEK = "peek"
    RESERVE = "reserve"


@dataclass(frozen=True, slots=True)
class CounterKey:
    """Names what one subject used of one quota; unique in a deployment."""

    tenant: str
    quota: str
    subject: str

    def __str__(self) -> str:
        """Return ``tenant#quota#subject``, unambiguous: only a subject may hold a ``#``."""
        return f"{self.tenant}#{self.quota}#{self.subject}"


@dataclass(frozen=True, slots=True)
class Quota:
    """How one quota is counted.

    ``limit`` units are allowed in a ``window``; with a token bucket, at once, and as many
    again in each window. ``sub_windows`` are the parts of a sliding window. A worker may
    hold slices of up to ``lease`` units (None: a twentieth of the limit), each for
    ``lease_time``. A reservation expires after ``reservation_ttl``: then it is released, or
    counts as used. ``allow_on_outage``: while DynamoDB cannot be asked, all is allowed.
    ``overrides`` are other limits, by ``tenant#subject`` or by subject alone.
    """

    name: str
    limit: int
    window: timedelta
    algorithm: AlgorithmName = AlgorithmName.FIXED_WINDOW
    sub_windows: int = 60
    lease: int | None = None
    lease_time: timedelta = field(kw_only=True)
    reservation_ttl: timedelta = field(kw_only=True)
    release_expired: bool = False
    allow_on_outage: bool = False
    overrides: Mapping[str, int] = field(default_factory=dict)

    def lease_of(self, limit: int) -> int:
        """Return the most units of a slice for a subject with this limit; 0 for no leases."""
        return limit // _LEASE_SHARE if self.lease is None else min(self.lease, limit)


@dataclass(frozen=True, slots=True)
class QuotaAnswer:
    """What a caller is told. Times are nanoseconds since 1970, spans nanoseconds.

    ``remaining`` is what is known to be left, never more than there is. ``retry_after`` is
    None if it was allowed, or never can be.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_time: int | None
    retry_after: int | None = None
    reservation: str = ""
    expire_time: int | None = None
    replayed: bool = False
    unchecked: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """How a reservation was settled, in units.

    ``covered`` is False if more was used than was held, and the rest did not fit.
    """

    committed: int
    refunded: int
    covered: bool
    replayed: bool = False


def counter_key_violations(key: CounterKey) -> Iterator[FieldViolation]:
    """Yield all that is wrong with a counter's key, but for a quota that is not configured."""
    yield from part_violations(key.tenant, "tenant", MAX_TENANT_BYTES, empty_ok=True, hash_ok=False)
    yield from part_violations(key.quota, "quota", MAX_QUOTA_BYTES, empty_ok=False, hash_ok=False)
    yield from part_violations(
        key.subject, "subject", MAX_SUBJECT_BYTES, empty_ok=False, hash_ok=True
    )
