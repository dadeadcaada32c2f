"""How far a load has come, and of what it is the load."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORMAT: Final = 2
_HASHED_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """By what a file is known again: its size in bytes, and a hash of its first and last MiB."""

    size: int
    digest: str


def fingerprint_of(file: BinaryIO) -> Fingerprint:
    """Return the fingerprint of an open file; leaves its position anywhere."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    digest = hashlib.blake2b(file.read(_HASHED_BYTES), digest_size=32)
    file.seek(max(0, size - _HASHED_BYTES))
    digest.update(file.read(_HASHED_BYTES))
    return Fingerprint(size, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Job:
    """What is loaded where: a load can only be resumed as the same job."""

    input: Fingerprint
    target: str
    tenant: str
    kind: str
    id: str
    if_absent: bool = False

    def differences(self, other: Job) -> Iterator[str]:
        """Yield what ``other`` does otherwise, in the words of the command line."""
        for name in ("target", "tenant", "kind", "id", "if_absent"):
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                yield f"--{name.replace('_', '-')} was {mine!r} and is {others!r} now"


@dataclass(slots=True)
class Counts:
    """How many lines came to what. ``pending`` are those of ``saved`` not yet projected."""

    saved: int = 0
    pending: int = 0
    existed: int = 0
    rejected: int = 0
    blank: int = 0

    @property
    def lines(self) -> int:
        """Return how many lines are finished."""
        return self.saved + self.existed + self.rejected + self.blank


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A load, interrupted.

    ``load_id`` tells it from all others, also of the same job. The first ``line`` lines
    are finished, which end at ``offset``, and of those behind them the numbers in
    ``beyond``, each with the offset of its end. ``rejected_bytes`` of the file of rejected
    lines belong to these.
    """

    job: Job
    load_id: str
    line: int = 0
    offset: int = 0
    beyond: dict[int, int] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    rejected_bytes: int = 0

    def encode(self) -> bytes:
        """Return the checkpoint as JSON, for ``decode``."""
        fields = {"format": _FORMAT, **asdict(self), "beyond": sorted(self.beyond.items())}
        return json.dumps(fields, ensure_ascii=False, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, text: bytes) -> Checkpoint:
        """Return the checkpoint that was encoded; raises ``ValueError`` if it is none."""
        try:
            fields: dict[str, Any] = json.loads(text)
            if fields["format"] != _FORMAT:
                raise ValueError("it was written by another version of this program")
            job = fields["job"]
            return cls(
                job=Job(**{**job, "input": Fingerprint(**job["input"])}),
                load_id=str(fields["load_id"]),
                line=int(fields["line"]),
                offset=int(fields["offset"]),
                beyond={int(number): int(end) for number, end in fields["beyond"]},
                counts=Counts(**fields["counts"]),
                rejected_bytes=int(fields["rejected_bytes"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError("it is no checkpoint of a load") from error
