"""What goes into calls and comes out of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Key:
    """Names one entity; unique in a deployment. ``tenant`` is empty in a single-tenant one.

    Raises ``TypeError`` if a part is not a string. What the strings may contain is the
    server's to say: see ``EntityKey`` in ``entity.proto``.
    """

    kind: str
    id: str
    tenant: str = ""

    def __post_init__(self) -> None:
        for name in ("kind", "id", "tenant"):
            part: object = getattr(self, name)
            if not isinstance(part, str):
                raise TypeError(
                    f"{name} is {part!r}, of type {type(part).__name__}; send a str"
                    " (ids that are numbers: str(number))"
                )


class Store(StrEnum):
    """The store that answered a read. ``UNKNOWN`` if the server knows more than this client."""

    CACHE = "cache"
    DYNAMODB = "dynamodb"
    AURORA = "aurora"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Entity:
    """One version of an entity.

    ``version`` is 1 for the first save and one more for each further save or delete; it
    is what ``min_version`` and ``if_version`` take. In ``data`` whole numbers are ``int``
    and all others ``float``. Times are aware and in UTC.

    ``served_from`` says which store answered, of a batch the slowest that was asked;
    ``cached_time``, set if that was the cache, when the answer was put there (the oldest
    of a batch). The answer is equally good from every store, so neither counts in a
    comparison.
    """

    tenant: str
    kind: str
    id: str
    version: int
    data: dict[str, Any] = field(hash=False)
    create_time: datetime
    update_time: datetime
    served_from: Store = field(compare=False)
    cached_time: datetime | None = field(compare=False)

    @property
    def key(self) -> Key:
        """Return the name of the entity."""
        return Key(self.kind, self.id, self.tenant)


@dataclass(frozen=True, slots=True)
class Saved:
    """A write, or a deletion, that is committed and cannot be lost.

    ``version`` is the version that it created: a read with it as ``min_version`` sees
    this write or a newer one, whatever fails. ``projected`` says that every read that
    starts from now on sees it even without; if False, they do normally within two
    seconds. ``update_time`` is aware and in UTC.
    """

    version: int
    update_time: datetime
    projected: bool
