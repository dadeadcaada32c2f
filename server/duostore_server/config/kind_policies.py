"""What the configuration means to the use cases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from duostore_server.domain.policies import (
    Home,
    KindPolicy,
    Policies,
    ProjectionMode,
    SnapshotPolicy,
)

if TYPE_CHECKING:
    from duostore_server.config.kind_settings import Kind, Snapshots
    from duostore_server.config.settings import Settings


def policies(settings: Settings) -> Policies:
    """Return the policies of the configured kinds; their schemas were compiled at load."""
    return Policies({name: _policy(kind) for name, kind in settings.kinds.items()})


def _policy(kind: Kind) -> KindPolicy:
    policy = KindPolicy(
        cache_ttl=kind.cache_ttl,
        absent_ttl=kind.absent_ttl,
        projection=ProjectionMode(kind.projection),
        max_bytes=kind.max_bytes,
        home=Home(kind.home),
        ttl=_time(kind.ttl),
        consolidate_every=_time(kind.consolidate_every),
        snapshots=_snapshots(kind.snapshots),
        derived=kind.is_derived,
        relational=kind.is_relational,
        projection_version=kind.projection_version,
        transforms={
            number: partial(transform.build, max_bytes=kind.max_bytes)
            for number, transform in kind.transforms.items()
        },
    )
    schema = kind.document_schema
    return replace(policy, schema_violations=schema.violations) if schema else policy


def _snapshots(snapshots: Snapshots | None) -> SnapshotPolicy | None:
    if snapshots is None:
        return None
    return SnapshotPolicy(
        consolidate_every=timedelta(seconds=snapshots.consolidate_every),
        keep=timedelta(seconds=snapshots.keep),
    )


def _time(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
