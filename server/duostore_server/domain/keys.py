"""The name of an entity, and what may be one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeAlias

from duostore_server.domain.errors import FieldViolation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_TENANT_BYTES: Final = 64
MAX_KIND_BYTES: Final = 64
MAX_ID_BYTES: Final = 512
MAX_IDEMPOTENCY_KEY_BYTES: Final = 128

# A deployment may have hundreds; those who misspelt one need not be told them all.
_MAX_TOLD: Final = 10

# C0 and C1 control characters and DEL. They name nothing that a person could
# read or type, and NUL cannot be stored by PostgreSQL at all.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class EntityKey:
    """Names one entity; unique in a deployment.

    ``tenant`` may be empty. ``str(key)`` is ``tenant#kind#id``, which is
    unambiguous since neither tenant nor kind may hold a ``#``.
    """

    tenant: str
    kind: str
    id: str

    def __str__(self) -> str:
        """Return ``tenant#kind#id``, the primary key of the projection."""
        return f"{self.tenant}#{self.kind}#{self.id}"


@dataclass(frozen=True, slots=True)
class GenerationKey:
    """Names the generation of a kind in a tenant: what was cached under another is unreachable."""

    tenant: str
    kind: str

    def __str__(self) -> str:
        """Return ``tenant#kind#``, which is no entity's key: ids are not empty."""
        return f"{self.tenant}#{self.kind}#"


@dataclass(frozen=True, slots=True)
class ResultKey:
    """Names the cached result of a query; ``digest``, in hex, is of all that it depends on."""

    tenant: str
    query: str
    digest: str

    def __str__(self) -> str:
        """Return ``tenant##query#digest``, which is no entity's key: kinds are not empty."""
        return f"{self.tenant}##{self.query}#{self.digest}"


# What the cache keeps entries under.
CacheKey: TypeAlias = EntityKey | GenerationKey | ResultKey


def key_violations(key: EntityKey, field: str) -> Iterator[FieldViolation]:
    """Yield all that is wrong with a key, each problem under ``field.part``.

    Whether the kind is configured is not looked at: see ``Policies``.
    """
    yield from part_violations(
        key.tenant, f"{field}.tenant", MAX_TENANT_BYTES, empty_ok=True, hash_ok=False
    )
    yield from part_violations(
        key.kind, f"{field}.kind", MAX_KIND_BYTES, empty_ok=False, hash_ok=False
    )
    yield from part_violations(key.id, f"{field}.id", MAX_ID_BYTES, empty_ok=False, hash_ok=True)


def idempotency_key_violations(text: str, field: str) -> Iterator[FieldViolation]:
    """Yield all that is wrong with an idempotency key; none is needed."""
    yield from part_violations(text, field, MAX_IDEMPOTENCY_KEY_BYTES, empty_ok=True, hash_ok=True)


def part_violations(
    text: str, field: str, limit: int, *, empty_ok: bool, hash_ok: bool
) -> Iterator[FieldViolation]:
    """Yield all that is wrong with one part of a key, of up to ``limit`` bytes."""
    if not text and not empty_ok:
        yield FieldViolation(field, f"must not be empty (1 to {limit} bytes of UTF-8)")
    size = len(text.encode())
    if size > limit:
        yield FieldViolation(field, f"has {size} bytes of UTF-8; at most {limit} are allowed")
    if found := _CONTROL.search(text):
        yield FieldViolation(
            field,
            f"holds the control character U+{ord(found[0]):04X} at position {found.start()}",
        )
    if not hash_ok and "#" in text:
        yield FieldViolation(field, "must not hold '#'")


def key_digest(key: EntityKey) -> str:
    """Return what names a key in the log: ids may be of people.

    The first 16 digits of the SHA-256 of ``str(key)``, which a database can compute too.
    """
    return sha256(str(key).encode()).hexdigest()[:16]


def listed(names: Iterable[str]) -> str:
    """Return configured names for who asked for another: some of them, and how many more."""
    ordered = sorted(names)
    told = ", ".join(ordered[:_MAX_TOLD]) or "none"
    left = len(ordered) - _MAX_TOLD
    return f"{told} and {left} more" if left > 0 else told
