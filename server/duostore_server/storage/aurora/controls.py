"""Flags and read-only mode, which are set at run time: rows of duostore.control."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC
from typing import TYPE_CHECKING, Final

import structlog
from psycopg.types.numeric import Int8

from duostore_server.domain.controls import MAX_REASON_BYTES, Controlled, ReadOnly, SetFlag
from duostore_server.storage.aurora.control_rows import ControlRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.deadline import Deadline
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Rows

_log = structlog.get_logger(__name__)

_FLAG: Final = "flag"
_READ_ONLY: Final = "read_only"
_WHOLE_NUMBER: Final = re.compile("-?[0-9]{1,18}")

# Values as text: whoever may write the table may put any JSON there.
_READ: Final = """
SELECT current_setting('transaction_read_only'), topic, name, value::text, caller, update_time
FROM (VALUES (1)) AS one
LEFT JOIN duostore.control ON topic IN ('flag', 'read_only')
ORDER BY topic, name
"""

_SET: Final = """
INSERT INTO duostore.control (topic, name, value, caller, update_time)
VALUES (%s, %s, {value}, %s, clock_timestamp())
ON CONFLICT (topic, name) DO UPDATE SET
    value = excluded.value,
    caller = excluded.caller,
    update_time = excluded.update_time
"""
_SET_TEXT: Final = _SET.format(value="to_jsonb(%s::text)")
_SET_NUMBER: Final = _SET.format(value="to_jsonb(%s::bigint)")

_UNSET: Final = "DELETE FROM duostore.control WHERE topic = %s AND name = %s RETURNING name"


class AuroraControls:
    """``admin_ports.Controls`` on PostgreSQL.

    Rows that cannot be read are told in the log once a minute, by their number. Flags among them
    have no value, and what is read-only is passed over if its reason is no string, or empty; one
    that is too long is cut.
    """

    def __init__(self, pool: AuroraPool, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._rows = ControlRows(pool, _READ, _looked_into, complain=_complain, clock=clock)

    def read(self, deadline: Deadline) -> Controlled:
        return self._rows.read(deadline)

    def set_flag(self, name: str, value: FlagValue, caller: str, deadline: Deadline) -> None:
        if isinstance(value, str):
            self._pool.execute(_SET_TEXT, (_FLAG, name, value, caller), deadline)
        else:
            self._pool.execute(_SET_NUMBER, (_FLAG, name, Int8(value), caller), deadline)

    def unset_flag(self, name: str, deadline: Deadline) -> bool:
        return bool(self._pool.execute(_UNSET, (_FLAG, name), deadline))

    def set_read_only(self, kind: str, reason: str | None, caller: str, deadline: Deadline) -> None:
        if reason is None:
            self._pool.execute(_UNSET, (_READ_ONLY, kind), deadline)
        else:
            self._pool.execute(_SET_TEXT, (_READ_ONLY, kind, reason, caller), deadline)


def _complain(count: int) -> None:
    _log.error("controls cannot be read", count=count)


def _looked_into(rows: Rows) -> tuple[Controlled, int]:
    """Return all that is set, and how many rows cannot be read."""
    flags: dict[str, SetFlag] = {}
    read_only: dict[str, ReadOnly] = {}
    unreadable = 0
    for _, topic, name, text, caller, update_time in rows:
        if topic is None:
            continue
        value = _value(text)
        if topic == _FLAG:
            flags[name] = SetFlag(value, caller, update_time.astimezone(UTC))
            unreadable += value is None
        elif isinstance(value, str) and value:
            read_only[name] = ReadOnly(name, _cut(value), caller, update_time.astimezone(UTC))
        else:
            unreadable += 1
    return Controlled(flags, read_only), unreadable


def _value(text: str) -> FlagValue | None:
    """Return a string or a whole number of JSON, None if it is anything else."""
    if text.startswith('"'):
        string: str = json.loads(text)
        return string
    return int(text) if _WHOLE_NUMBER.fullmatch(text) else None


def _cut(reason: str) -> str:
    return reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
