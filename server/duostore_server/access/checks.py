"""Refuses what cannot be accepted, naming every field at once."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from duostore_server.domain.documents import compact_size, document_violations, normalized
from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.domain.keys import key_violations

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import KindPolicy, Policies

MAX_BATCH_KEYS: Final = 500
# A document may break its schema at every field; nobody reads further than this.
MAX_VIOLATIONS: Final = 100


class Checks:
    """Checks requests against the configured kinds; raises ``InvalidRequestError``."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    def key(self, key: EntityKey, *others: FieldViolation) -> None:
        """Accept a key whose parts are well-formed and whose kind is configured."""
        _refuse((*self._key(key, "key"), *others))

    def batch(self, keys: Sequence[EntityKey]) -> None:
        """Accept 1 to 500 acceptable keys, none of them twice."""
        _refuse(self._batch(keys))

    def document(
        self, key: EntityKey, data: JsonObject | None, *others: FieldViolation
    ) -> JsonObject:
        """Accept an acceptable key and a document that its kind allows; return it normalized.

        The work is linear in the size of the document, whatever it holds: its values are
        looked at only if its size is acceptable, and by its schema only if its form is.
        """
        wrong = [*self._key(key, "key"), *others]
        if data is None:
            raise InvalidRequestError([*wrong, FieldViolation("data", "is required")])
        document: JsonObject = normalized(data)
        policy = self._policies.find(key)
        if policy is not None and (too_large := _size_violation(document, policy)):
            raise InvalidRequestError([*wrong, too_large])
        _refuse(chain(wrong, document_violations(document, "data")))
        _refuse(self._policies.of(key).schema_violations(document))
        return document

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


def _size_violation(document: JsonObject, policy: KindPolicy) -> FieldViolation | None:
    size = compact_size(document)
    if size <= policy.max_bytes:
        return None
    return FieldViolation(
        "data", f"has {size} bytes as compact JSON; its kind allows {policy.max_bytes}"
    )


def _refuse(violations: Iterable[FieldViolation]) -> None:
    listed: list[FieldViolation] = []
    for violation in violations:
        if len(listed) == MAX_VIOLATIONS:
            listed.append(FieldViolation("", f"there are more than {MAX_VIOLATIONS} violations"))
            break
        listed.append(violation)
    if listed:
        raise InvalidRequestError(listed)
