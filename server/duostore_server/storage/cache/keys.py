"""The memcached keys of what is cached."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from duostore_server.storage.cache.entries import FORMAT

if TYPE_CHECKING:
    from duostore_server.domain.keys import CacheKey

MAX_BYTES: Final = 250

_DIGEST_BYTES: Final = 32
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Namespace:
    """Gives what one deployment caches its memcached keys.

    A key is the name, the entry format's number, a sign and what is named: as it is
    after ``=`` if memcached can take it (printable ASCII, no space, 250 bytes in all),
    its BLAKE2b digest after ``~`` otherwise. The sign keeps the two forms apart, and a
    name can hold neither sign nor dot, so no key of one namespace begins another's.

    Two names that shared a digest would be served each other's data. With 256 bits
    the odds of one such pair among 10^12 hashed keys are 10^24 / 2^257, below 10^-53,
    and to make one on purpose takes about 2^128 tries.

    The format's number keeps a new release from reading old entries; it also means
    that during a roll-over neither release invalidates the other's entries, which are
    then bounded by their TTL alone.
    """

    def __init__(self, name: str) -> None:
        """``name``: 1 to 32 ASCII letters, digits, ``_`` or ``-``; else ``ValueError``."""
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"the namespace {name!r} is not 1 to 32 ASCII letters, digits, '_' or '-'"
            )
        self._plain = f"{name}.{FORMAT}="
        self._hashed = f"{name}.{FORMAT}~"
        self._room = MAX_BYTES - len(self._plain)

    def key(self, named: CacheKey) -> bytes:
        """Return the memcached key of what is named, of at most 250 bytes."""
        text = str(named)
        if len(text) <= self._room and text.isascii() and text.isprintable() and " " not in text:
            return f"{self._plain}{text}".encode("ascii")
        digest = blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
        return f"{self._hashed}{digest}".encode("ascii")
