"""Pages of results: each is a slice of one result, which its token names."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.query_params import canonical

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.queries import QueryCall, Result

DIGEST_BYTES: Final = 16

_CALL_BYTES: Final = 8
_TOKEN: Final = struct.Struct(f">I{DIGEST_BYTES}s{_CALL_BYTES}s")


@dataclass(frozen=True, slots=True)
class PageToken:
    """Where a page begins: how many rows are before it, of which result of which call."""

    offset: int
    rows: bytes
    call: bytes

    def __str__(self) -> str:
        """Return the token as callers get it."""
        raw = _TOKEN.pack(self.offset, self.rows, self.call)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> PageToken | None:
        """Return what a text stands for that was made by ``str``; None if it was not."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            token = cls(*_TOKEN.unpack(raw))
        except (ValueError, binascii.Error, struct.error):
            return None
        return token if token.offset else None


def call_digest(call: QueryCall) -> bytes:
    """Return what tells one call from another: query, tenant and values, not its SQL."""
    text = json.dumps([call.query.name, call.tenant, canonical(call.values)])
    return blake2b(text.encode(), digest_size=_CALL_BYTES).digest()


def rows_digest(result: Result) -> bytes:
    """Return what tells one result from another: columns and rows, not its time."""
    columns = [[column.name, column.type] for column in result.columns]
    text = json.dumps([columns, result.rows], separators=(",", ":"))
    return blake2b(text.encode(), digest_size=DIGEST_BYTES).digest()


def page_violations(size: int, text: str) -> Iterator[FieldViolation]:
    """Yield what is wrong with the size and the token of a page."""
    if size < 0:
        yield FieldViolation("page_size", f"is {size}; it must be at least 0")
    if text and PageToken.parse(text) is None:
        yield FieldViolation("page_token", "is not the next_page_token of any answer")
