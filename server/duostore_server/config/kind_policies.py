"""What the configuration means to the use cases."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode

if TYPE_CHECKING:
    from duostore_server.config.settings import Kind, Settings


def policies(settings: Settings) -> Policies:
    """Return the policies of the configured kinds; their schemas were compiled at load."""
    return Policies({name: _policy(kind) for name, kind in settings.kinds.items()})


def _policy(kind: Kind) -> KindPolicy:
    policy = KindPolicy(
        cache_ttl=kind.cache_ttl,
        absent_ttl=kind.absent_ttl,
        projection=ProjectionMode(kind.projection),
        max_bytes=kind.max_bytes,
    )
    schema = kind.document_schema
    return replace(policy, schema_violations=schema.violations) if schema else policy
