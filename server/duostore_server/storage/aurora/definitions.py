"""What a read model is for one of its sources, told apart by a digest."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duostore_server.domain.read_models import ReadModel, Source

# Shared by who recomputes documents, until that is committed; whoever changes what
# ``duostore.read_model`` has waits for them. An advisory lock, since its queue is fair.
LOCK: Final = int.from_bytes(b"readmodl", "big")


def digest_of(model: ReadModel, source: Source) -> str:
    """Return what ``duostore.read_model`` has for a source while this configuration holds.

    It changes with the SQL that computes the documents, with that which finds those that a
    change touches, and with the fields that it is told.
    """
    return digest([model.sql.digest, source.ids.digest, *source.fields])


def digest(parts: Sequence[str]) -> str:
    """Return a SHA-256 of strings, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
