"""Save and Delete: committed in Aurora, then projected and busted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.entities import Change, IfVersion, Saved
from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.policies import ProjectionMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.access.checks import Checks
    from duostore_server.access.propagation import Propagation
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.entities import IfAbsent
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.ports import Authority, Completions


class Writer:
    """Writes one entity at a time.

    Once the authority has committed, nothing that happens to the other stores fails
    the call: what could not be propagated stays in the outbox for the projector.
    """

    def __init__(
        self,
        *,
        authority: Authority,
        propagation: Propagation,
        completions: Completions,
        policies: Policies,
        checks: Checks,
    ) -> None:
        self._authority = authority
        self._propagation = propagation
        self._completions = completions
        self._policies = policies
        self._checks = checks

    def save(
        self,
        key: EntityKey,
        data: JsonObject | None,
        precondition: IfVersion | IfAbsent | None,
        deadline: Deadline,
    ) -> Saved:
        """Create the entity or replace its data; raises as ``Authority.write`` does."""
        document = self._checks.document(key, data, *_version_violations(precondition))
        return self._write(key, document, precondition, deadline)

    def delete(self, key: EntityKey, precondition: IfVersion | None, deadline: Deadline) -> Saved:
        """Leave a tombstone, a version like any other; raises as ``Authority.write`` does."""
        self._checks.key(key, *_version_violations(precondition))
        return self._write(key, None, precondition, deadline)

    def _write(
        self,
        key: EntityKey,
        data: JsonObject | None,
        precondition: IfVersion | IfAbsent | None,
        deadline: Deadline,
    ) -> Saved:
        policy = self._policies.of(key)
        written = self._authority.write(Change(key, data, precondition, policy.due_after), deadline)
        if policy.projection is ProjectionMode.ASYNC:
            return Saved(written.entity, projected=False)
        projected = self._propagation.propagate(written.entity, deadline)
        if projected:
            self._completions.add((written.outbox_id,))
        return Saved(written.entity, projected=projected)


def _version_violations(precondition: IfVersion | IfAbsent | None) -> Iterator[FieldViolation]:
    if isinstance(precondition, IfVersion) and precondition.version < 1:
        yield FieldViolation(
            "if_version",
            f"is {precondition.version}; versions start at 1"
            " (to require that the entity does not exist, set if_absent)",
        )
