"""What does not fit together, as checks find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duostore_server.config.entries import Key


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit. ``paths`` are the keys involved, the one to change first."""

    paths: tuple[Key, ...]
    message: str
