"""Refuses what cannot be accepted, naming every field at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from duostore_server.domain.documents import compact_size, document_violations, normalized
from duostore_server.domain.entities import AS_SAVED
from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.domain.keys import idempotency_key_violations, key_violations
from duostore_server.domain.policies import Home, TransformError
from duostore_server.domain.transactions import Check, FromSnapshot, IfVersion, Save

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import KindPolicy, Policies
    from duostore_server.domain.transactions import Delete, Request

MAX_BATCH_KEYS: Final = 500
MAX_MUTATIONS: Final = 100
# A document may break its schema at every field; nobody reads further than this.
MAX_VIOLATIONS: Final = 100


class Checks:
    """Checks requests against the configured kinds; raises ``InvalidRequestError``."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def key(self, key: EntityKey, *others: FieldViolation) -> None:
        """Accept a key whose parts are well-formed and whose kind is configured."""
        refuse((*self._key(key, "key"), *others))

    def batch(self, keys: Sequence[EntityKey]) -> None:
        """Accept 1 to 500 acceptable keys, none of them twice."""
        refuse(self._batch(keys))

    def write(self, request: Save | Delete, idempotency_key: str) -> Save | Delete:
        """Accept a Save or a Delete; return it with its document normalized."""
        others = idempotency_key_violations(idempotency_key, "idempotency_key")
        return self._write(request, "", *others)

    def draft(self, key: EntityKey, *others: FieldViolation) -> None:
        """Accept a key as ``key`` does, of a kind that keeps snapshots."""
        refuse((*self._key(key, "key"), *self._kept(key, "key.kind"), *others))

    def snapshot(self, key: EntityKey, data: JsonObject | None, idempotency_key: str) -> JsonObject:
        """Accept a document, of a kind that keeps snapshots; return it normalized."""
        wrong = idempotency_key_violations(idempotency_key, "idempotency_key")
        return self.document(key, data, *self._kept(key, "key.kind"), *wrong)

    def transaction(self, requests: Sequence[Request], idempotency_key: str) -> list[Request]:
        """Accept 1 to 100 acceptable requests of one tenant, no key twice, all at home in Aurora.

        Returns them with their documents normalized.
        """
        wrong = [*idempotency_key_violations(idempotency_key, "idempotency_key")]
        if (violation := mutations_violation(len(requests))) is not None:
            raise InvalidRequestError([*wrong, violation])
        accepted: list[Request] = []
        first: dict[EntityKey, int] = {}
        for index, request in enumerate(requests):
            at = f"mutations[{index}].{type(request).__name__.lower()}."
            try:
                others = self._together(request, requests[0].key.tenant, at)
                accepted.append(self._request(request, at, *others))
            except InvalidRequestError as error:
                wrong += error.violations
            if (earlier := first.setdefault(request.key, index)) != index:
                text = f"is the same key as that of mutations[{earlier}]"
                wrong.append(FieldViolation(f"{at}key", text))
        refuse(wrong)
        return accepted

    def document(
        self,
        key: EntityKey,
        data: JsonObject | None,
        *others: FieldViolation,
        at: str = "",
        missing: str = "is required",
    ) -> JsonObject:
        """Accept an acceptable key and a document that its kind allows; return it normalized.

        ``at`` is what the names of its fields begin with, ``missing`` what is said of None.
        The work is linear in the size of the document, whatever it holds: its values are
        looked at only if its size is acceptable, by its schema only if its form is, and whether
        it can be projected in the shapes that readers may get only if its schema allows it.
        """
        field = f"{at}data"
        wrong = [*self._key(key, f"{at}key"), *others]
        if data is None:
            raise InvalidRequestError([*wrong, FieldViolation(field, missing)])
        document: JsonObject = normalized(data)
        policy = self._policies.find(key)
        if policy is not None and (too_large := _size_violation(document, policy, field)):
            raise InvalidRequestError([*wrong, too_large])
        refuse(chain(wrong, document_violations(document, field)))
        allowed = self._policies.of(key)
        found = allowed.schema_violations(document)
        refuse(replace(violation, field=at + violation.field) for violation in found)
        refuse(_shape_violations(document, allowed, field))
        return document

    def _request(self, request: Request, at: str, *others: FieldViolation) -> Request:
        if not isinstance(request, Check):
            return self._write(request, at, *others)
        wrong = _version_violations(request.version, at, "a check requires a version, of 1 or more")
        refuse((*self._key(request.key, f"{at}key"), *wrong, *others))
        return request

    def _write(self, request: Save | Delete, at: str, *others: FieldViolation) -> Save | Delete:
        hint = "versions start at 1"
        if isinstance(request, Save):
            hint += " (to require that the entity does not exist, set if_absent)"
        expected = request.precondition
        version = expected.version if isinstance(expected, IfVersion) else 1
        derived = list(self._derived(request.key, f"{at}key.kind"))
        wrong = [*_version_violations(version, at, hint), *derived, *others]
        if not isinstance(request, Save):
            refuse((*self._key(request.key, f"{at}key"), *wrong))
            return request
        if isinstance(request.content, FromSnapshot):
            wrong += _sequence_violations(request.content, at)
            # Of a derived kind that is all that there is to say.
            wrong += () if derived else self._kept(request.key, f"{at}from_snapshot")
            refuse((*self._key(request.key, f"{at}key"), *wrong))
            return request
        document = self.document(
            request.key,
            request.content,
            *wrong,
            at=at,
            missing="is required, or from_snapshot",
        )
        return replace(request, content=document)

    def _kept(self, key: EntityKey, field: str) -> Iterator[FieldViolation]:
        """Yield a violation if the kind is configured and has no snapshots."""
        policy = self._policies.find(key)
        if policy is not None and policy.derived:
            yield from self._derived(key, field)
        elif policy is not None and policy.home is not Home.AURORA:
            text = f"{key.kind!r} is at home in DynamoDB: such kinds have no snapshots"
            yield FieldViolation(field, text)
        elif policy is not None and policy.snapshots is None:
            yield FieldViolation(field, f"{key.kind!r} is configured to keep no snapshots")

    def _derived(self, key: EntityKey, field: str) -> Iterator[FieldViolation]:
        """Yield a violation if the kind is one that callers can only read."""
        policy = self._policies.find(key)
        if policy is not None and policy.derived:
            text = f"{key.kind!r} is derived: it is computed from what it depends on; save that"
            yield FieldViolation(field, text)

    def _together(self, request: Request, tenant: str, at: str) -> Iterator[FieldViolation]:
        """Yield why a request cannot be part of a transaction of this tenant."""
        if request.key.tenant != tenant:
            text = "is not that of mutations[0]; a transaction is of one tenant"
            yield FieldViolation(f"{at}key.tenant", text)
        policy = self._policies.find(request.key)
        if policy is not None and policy.home is not Home.AURORA:
            text = "is at home in DynamoDB, and can take no part in a transaction"
            yield FieldViolation(f"{at}key.kind", text)

    def _key(self, key: EntityKey, field: str) -> Iterator[FieldViolation]:
        yield from key_violations(key, field)
        yield from self._policies.violations(key, field)

    def _batch(self, keys: Sequence[EntityKey]) -> Iterator[FieldViolation]:
        if (violation := batch_size_violation(len(keys))) is not None:
            yield violation
            return
        first: dict[EntityKey, int] = {}
        for index, key in enumerate(keys):
            yield from self._key(key, f"keys[{index}]")
            if (earlier := first.setdefault(key, index)) != index:
                yield FieldViolation(f"keys[{index}]", f"is the same key as keys[{earlier}]")


def batch_size_violation(count: int) -> FieldViolation | None:
    """Return what is wrong with a batch of so many keys; None if nothing is."""
    if 1 <= count <= MAX_BATCH_KEYS:
        return None
    return FieldViolation("keys", f"has {count} keys; 1 to {MAX_BATCH_KEYS} are allowed")


def mutations_violation(count: int) -> FieldViolation | None:
    """Return what is wrong with a transaction of so many mutations; None if nothing is."""
    if 1 <= count <= MAX_MUTATIONS:
        return None
    return FieldViolation("mutations", f"has {count}; 1 to {MAX_MUTATIONS} are allowed")


def _version_violations(version: int, at: str, hint: str) -> Iterator[FieldViolation]:
    if version < 1:
        yield FieldViolation(f"{at}if_version", f"is {version}; {hint}")


def _sequence_violations(content: FromSnapshot, at: str) -> Iterator[FieldViolation]:
    if content.sequence < 0:
        text = f"is {content.sequence}; it must be at least 0"
        yield FieldViolation(f"{at}from_snapshot", text)


def _size_violation(document: JsonObject, policy: KindPolicy, field: str) -> FieldViolation | None:
    size = compact_size(document)
    if size <= policy.max_bytes:
        return None
    return FieldViolation(
        field, f"has {size} bytes as compact JSON; its kind allows {policy.max_bytes}"
    )


def _shape_violations(
    document: JsonObject, policy: KindPolicy, field: str
) -> Iterator[FieldViolation]:
    """Yield the shapes which readers may get and the document cannot be brought into."""
    if policy.relational:
        return  # What is projected is not the document, but what the read model makes of it.
    for shape in (policy.projection_version - 1, policy.projection_version):
        if shape > AS_SAVED:
            try:
                policy.transforms[shape](document)
            except TransformError as error:
                text = f"cannot be brought into the shape of projection version {shape}: {error}"
                yield FieldViolation(field, text)


def refuse(violations: Iterable[FieldViolation]) -> None:
    """Raise ``InvalidRequestError`` if there are any violations, telling up to 100 of them."""
    listed: list[FieldViolation] = []
    for violation in violations:
        if len(listed) == MAX_VIOLATIONS:
            listed.append(FieldViolation("", f"there are more than {MAX_VIOLATIONS} violations"))
            break
        listed.append(violation)
    if listed:
        raise InvalidRequestError(listed)
