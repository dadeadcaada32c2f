"""Refuses what cannot be asked of a quota, naming every field at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.access.checks import refuse
from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.keys import (
    MAX_TENANT_BYTES,
    idempotency_key_violations,
    listed,
    part_violations,
)
from duostore_server.domain.quotas import MAX_QUOTA_BYTES, Mode, counter_key_violations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duostore_server.domain.quotas import CounterKey, Quota

MAX_RESERVATION_BYTES: Final = 64


def check_ask(
    quotas: Mapping[str, Quota], key: CounterKey, cost: int, mode: Mode, idempotency_key: str
) -> None:
    """Raise ``InvalidRequestError`` for a Quota that cannot be answered."""
    refuse(_ask_violations(quotas, key, cost, mode, idempotency_key))


def check_settle(tenant: str, reservation: str, *, cost: int | None, release: bool | None) -> None:
    """Raise ``InvalidRequestError`` for a SettleQuota that cannot be done."""
    refuse(_settle_violations(tenant, reservation, cost=cost, release=release))


def _ask_violations(
    quotas: Mapping[str, Quota], key: CounterKey, cost: int, mode: Mode, idempotency_key: str
) -> Iterator[FieldViolation]:
    yield from counter_key_violations(key)
    if key.quota not in quotas and 1 <= len(key.quota.encode()) <= MAX_QUOTA_BYTES:
        told = f"(configured: {listed(quotas)})"
        yield FieldViolation("quota", f"{key.quota!r} is not a configured quota {told}")
    if cost < 0:
        yield FieldViolation("cost", f"is {cost}; it must be at least 0, which stands for 1")
    yield from idempotency_key_violations(idempotency_key, "idempotency_key")
    if idempotency_key and mode is Mode.PEEK:
        yield FieldViolation("idempotency_key", "is of no use with MODE_PEEK, which debits nothing")


def _settle_violations(
    tenant: str, reservation: str, *, cost: int | None, release: bool | None
) -> Iterator[FieldViolation]:
    yield from part_violations(tenant, "tenant", MAX_TENANT_BYTES, empty_ok=True, hash_ok=False)
    yield from part_violations(
        reservation, "reservation", MAX_RESERVATION_BYTES, empty_ok=False, hash_ok=False
    )
    if cost is None and release is None:
        yield FieldViolation("settlement", "cost or release is required")
    if cost is not None and cost < 0:
        yield FieldViolation("cost", f"is {cost}; it must be at least 0")
    if release is False:
        yield FieldViolation("release", "must be true if set")
