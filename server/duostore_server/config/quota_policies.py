"""What the configuration of quotas means to the use cases."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.config.values import duration_text
from duostore_server.domain.quotas import AlgorithmName
from duostore_server.domain.quotas import Quota as QuotaPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duostore_server.config.entries import Key
    from duostore_server.config.quota_settings import Quota
    from duostore_server.config.settings import Settings

# A slice lasts for no larger part of a window, so that what nobody uses of it is back soon.
_LEASES_A_WINDOW: Final = 20


def quotas(settings: Settings) -> Mapping[str, QuotaPolicy]:
    """Return how the configured quotas are counted, by name."""
    return {name: _policy(name, quota) for name, quota in settings.quotas.items()}


def notes(settings: Settings) -> Mapping[Key, str]:
    """Return what is in force of quotas where the settings alone do not say it, by key."""
    found: dict[Key, str] = {}
    for name, policy in quotas(settings).items():
        quota, at = settings.quotas[name], ("quotas", name)
        if quota.lease is None:
            found[*at, "lease"] = f"{policy.lease_of(policy.limit)}, a twentieth of the limit"
        if quota.sub_windows is None and policy.algorithm is AlgorithmName.SLIDING_WINDOW:
            found[*at, "sub_windows"] = f"{policy.sub_windows}"
        in_force = policy.lease_time.total_seconds()
        if in_force < quota.lease_time:
            found[*at, "lease_time"] = f"{duration_text(in_force)}, a twentieth of the window"
    return found


def _policy(name: str, quota: Quota) -> QuotaPolicy:
    window = timedelta(seconds=quota.window)
    return QuotaPolicy(
        name=name,
        limit=quota.limit,
        window=window,
        algorithm=AlgorithmName(quota.algorithm),
        sub_windows=quota.parts,
        lease=quota.lease,
        lease_time=min(timedelta(seconds=quota.lease_time), window / _LEASES_A_WINDOW),
        reservation_ttl=timedelta(seconds=quota.reservation_ttl),
        release_expired=quota.expired_reservations == "released",
        allow_on_outage=quota.on_outage == "allow",
        overrides=dict(quota.overrides),
    )
