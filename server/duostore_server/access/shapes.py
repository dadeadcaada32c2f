"""The shapes of projections: which are written, which one each reader gets, and their bytes."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from duostore_server.domain.controls import Flag
from duostore_server.domain.entities import AS_SAVED, Form, Projection
from duostore_server.domain.errors import ControlsUnknownError, ProjectionFailedError
from duostore_server.domain.policies import TransformError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import KindPolicy, Policies

OLD: Final = "old"
BOTH: Final = "both"
NEW: Final = "new"

_ALL: Final = 100
_AS_SAVED_ALONE: Final = (AS_SAVED,)


def flags_of(policies: Policies) -> Mapping[str, Flag]:
    """Return the flags by which kinds move from one projection version to the next, by name."""
    flags: dict[str, Flag] = {}
    for kind in policies.names():
        policy = policies.of_kind(kind)
        if policy is None or policy.projection_version == AS_SAVED:
            continue
        new = policy.projection_version
        old = new - 1
        write, read = _names(kind, new)
        flags[write] = Flag(
            write,
            OLD,
            f"Which projection versions of {kind} are written: old ({old}), both, or new ({new}).",
            choices=(OLD, BOTH, NEW),
        )
        flags[read] = Flag(
            read,
            0,
            f"Of how many keys of {kind}, 0 to {_ALL} %, readers get projection version {new}.",
            most=_ALL,
        )
    return flags


class Shapes:
    """Makes the projections of entities, in the shapes that the flags say.

    A shape is the number of a projection version; see ``Projection``. Whatever processes take
    the flags for at one time, no reader gets a wrong document: an item that lacks the shape
    which a reader wants is as good as none. A process that does not know the flags yet writes
    all shapes, so that no other misses one, and answers only what leaves no choice.
    """

    def __init__(
        self,
        policies: Policies,
        encode: Callable[[Entity], bytes],
        flag: Callable[[str], FlagValue | None] | None = None,
    ) -> None:
        """``flag`` returns what a flag of ``flags_of`` is now, None if that is not known yet.

        Without it each has its default.
        """
        self._policies = policies
        self._encode = encode
        flags = flags_of(policies)
        self._flag = flag or (lambda name: flags[name].default)

    def to_write(self, key: EntityKey) -> tuple[int, ...]:
        """Return the shapes in which a key is projected."""
        policy = self._evolving(key)
        if policy is None:
            return _AS_SAVED_ALONE
        new = policy.projection_version
        said = self._flag(_names(key.kind, new)[0])
        if said == NEW:
            return (new,)
        return (new - 1,) if said == OLD else (new - 1, new)

    def to_read(self, key: EntityKey) -> int:
        """Return the shape in which readers get a key; the same for all processes.

        Raises ``ControlsUnknownError`` if that is not known yet.
        """
        shapes = self.readable(key)
        if len(shapes) > 1:
            raise ControlsUnknownError
        return shapes[0]

    def readable(self, key: EntityKey) -> tuple[int, ...]:
        """Return the shapes in which readers may get a key: one, unless that is not known yet.

        If it is not, what is there in one of them alone is what other processes answer too.
        """
        policy = self._evolving(key)
        if policy is None:
            return _AS_SAVED_ALONE
        new = policy.projection_version
        percent = self._flag(_names(key.kind, new)[1])
        if percent is None:
            return new - 1, new
        return (new if isinstance(percent, int) and _place(key) < percent else new - 1,)

    def project(self, entity: Entity) -> Projection:
        """Return what DynamoDB shall hold of a version.

        A shape that the document cannot be brought into is left out: who reads it there is
        told why. If there is none left, DynamoDB says that Aurora is to be asked.
        """
        if entity.data is None:
            return Projection(entity.version, Form.TOMBSTONE)
        shapes = self.to_write(entity.key)
        if shapes == _AS_SAVED_ALONE:
            return Projection(entity.version, Form.VALUE, self._encode(entity))
        payloads: dict[int, bytes] = {}
        for shape in shapes:
            try:
                payloads[shape] = self.payload(entity, shape)
            except ProjectionFailedError:
                continue
        if not payloads:
            return Projection(entity.version, Form.STUB)
        first = payloads.pop(AS_SAVED, None)
        return Projection(entity.version, Form.VALUE, first, tuple(payloads.items()))

    def payload(self, entity: Entity, shape: int) -> bytes:
        """Return the serialized Entity of a version that is no tombstone, in a shape.

        The same entity always gives the same bytes. Raises ``ProjectionFailedError``.
        """
        if shape == AS_SAVED or entity.data is None:
            return self._encode(entity)
        policy = self._policies.find(entity.key)
        transform = None if policy is None else policy.transforms.get(shape)
        if transform is None:
            raise ProjectionFailedError(shape, "the configuration has no such projection version")
        try:
            data = transform(entity.data)
        except TransformError as error:
            raise ProjectionFailedError(shape, str(error)) from error
        return self._encode(replace(entity, data=data))

    def _evolving(self, key: EntityKey) -> KindPolicy | None:
        """Return the policy of a key whose kind has more than one projection version."""
        policy = self._policies.find(key)
        if policy is None or policy.projection_version == AS_SAVED:
            return None
        return policy


def _names(kind: str, shape: int) -> tuple[str, str]:
    return f"projection_write.{kind}.{shape}", f"projection_read.{kind}.{shape}"


def _place(key: EntityKey) -> int:
    """Return the place of a key among a hundred: always the same, and spread evenly."""
    digest = blake2b(str(key).encode(), digest_size=8, person=b"shape").digest()
    return int.from_bytes(digest, "big") % _ALL
