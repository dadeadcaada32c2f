"""Snapshot, GetSnapshot and ListSnapshots: what is being written, before it is published."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.access.idempotency import idempotency_of
from duostore_server.domain.errors import FieldViolation, SnapshotNotFoundError
from duostore_server.domain.snapshots import NewSnapshot
from duostore_server.domain.transactions import Save

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from duostore_server.access.checks import Checks
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.keys import EntityKey
    from duostore_server.domain.policies import Policies
    from duostore_server.domain.ports import Snapshots
    from duostore_server.domain.snapshots import Appended, StoredSnapshot

DEFAULT_PAGE_SIZE: Final = 20
MAX_PAGE_SIZE: Final = 100
# What stands around a payload in a list of them.
_AROUND_BYTES: Final = 16

_SEQUENCE_BYTES: Final = 8
_MARK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class SnapshotList:
    """A page: serialized ``duostore.v1.EntitySnapshot``, newest first.

    ``next_page_token`` is empty if there are no more.
    """

    payloads: Sequence[bytes]
    next_page_token: str


class Drafting:
    """Keeps snapshots of entities, for the kinds whose policy says so."""

    def __init__(
        self,
        *,
        snapshots: Snapshots,
        policies: Policies,
        checks: Checks,
        encode: Callable[[EntityKey, JsonObject, datetime], bytes],
        numbered: Callable[[bytes, int], bytes],
        data_of: Callable[[bytes], JsonObject],
        now: Callable[[], datetime],
        keep: timedelta,
        max_answer_bytes: int,
    ) -> None:
        """``encode`` makes a payload, ``numbered`` completes it, ``data_of`` reads its document.

        ``keep`` is how long an idempotency key is remembered at least.
        """
        self._snapshots = snapshots
        self._policies = policies
        self._checks = checks
        self._encode = encode
        self._numbered = numbered
        self._data_of = data_of
        self._now = now
        self._keep = keep
        self._max_answer_bytes = max_answer_bytes

    def snapshot(
        self,
        key: EntityKey,
        data: JsonObject | None,
        deadline: Deadline,
        *,
        idempotency_key: str = "",
    ) -> Appended:
        """Append a snapshot; raises as ``Snapshots.append`` does."""
        document = self._checks.snapshot(key, data, idempotency_key)
        policy = self._policies.snapshots_of(key)
        now = self._now()
        return self._snapshots.append(
            NewSnapshot(
                key=key,
                payload=self._encode(key, document, now),
                time=now,
                in_history=bool(policy.keep),
                consolidate_after=policy.consolidate_every,
                idempotency=idempotency_of(
                    idempotency_key, "Snapshot", [Save(key, document, None)], self._keep
                ),
            ),
            deadline,
        )

    def get(self, key: EntityKey, sequence: int, deadline: Deadline) -> bytes:
        """Return a snapshot, or the newest if ``sequence`` is 0, as a serialized EntitySnapshot.

        Raises ``SnapshotNotFoundError``, and as ``Snapshots.read`` does.
        """
        self._checks.draft(key, *_sequence_violations(sequence))
        stored = self._read(key, sequence, deadline)
        return self._numbered(stored.payload, stored.sequence)

    def data(self, key: EntityKey, sequence: int, deadline: Deadline) -> JsonObject:
        """Return the document of a snapshot of an acceptable key; raises as ``get`` does."""
        return self._data_of(self._read(key, sequence, deadline).payload)

    def list(
        self, key: EntityKey, page_size: int, page_token: str, deadline: Deadline
    ) -> SnapshotList:
        """Return a page of snapshots, newest first, of up to ``page_size`` or what is allowed."""
        violations = []
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            text = f"is {page_size}; 0 (for {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE} are allowed"
            violations.append(FieldViolation("page_size", text))
        before = _sequence_in(page_token, key) if page_token else None
        if page_token and before is None:
            text = "is none that was given for this key; leave it empty to begin"
            violations.append(FieldViolation("page_token", text))
        self._checks.draft(key, *violations)
        page = self._snapshots.page(key, before, page_size or DEFAULT_PAGE_SIZE, deadline)
        payloads: list[bytes] = []
        room = self._max_answer_bytes
        for stored in page.snapshots:
            payload = self._numbered(stored.payload, stored.sequence)
            room -= len(payload) + _AROUND_BYTES
            if payloads and room < 0:
                break
            payloads.append(payload)
        more = page.more or len(payloads) < len(page.snapshots)
        token = _token(page.snapshots[len(payloads) - 1].sequence, key) if more and payloads else ""
        return SnapshotList(payloads, token)

    def _read(self, key: EntityKey, sequence: int, deadline: Deadline) -> StoredSnapshot:
        stored = self._snapshots.read(key, sequence, deadline)
        if stored is None:
            raise SnapshotNotFoundError(sequence)
        return stored


def _sequence_violations(sequence: int) -> tuple[FieldViolation, ...]:
    if sequence < 0:
        return (FieldViolation("sequence", f"is {sequence}; it must be at least 0"),)
    return ()


def _token(sequence: int, key: EntityKey) -> str:
    """Return the token of the page that follows a snapshot."""
    return base64.urlsafe_b64encode(sequence.to_bytes(_SEQUENCE_BYTES) + _mark(key)).decode()


def _sequence_in(token: str, key: EntityKey) -> int | None:
    """Return the sequence below which a page begins, or None if the token is not of the key."""
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except ValueError:
        return None
    if len(raw) != _SEQUENCE_BYTES + _MARK_BYTES or raw[_SEQUENCE_BYTES:] != _mark(key):
        return None
    return int.from_bytes(raw[:_SEQUENCE_BYTES])


def _mark(key: EntityKey) -> bytes:
    """Return by what a token is told to be of a key: a guard against mistakes, no secret."""
    return hashlib.sha256(str(key).encode()).digest()[:_MARK_BYTES]
