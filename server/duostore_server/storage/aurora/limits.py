"""Limits of quotas that are set at run time: rows of duostore.control."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psycopg
import structlog
from psycopg.types.numeric import Int8

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.limits import MAX_LIMIT, LimitKey, limit_key_violations
from duostore_server.storage.aurora.control_rows import ControlRows
from duostore_server.storage.aurora.migrate import MigrationError, connected
from duostore_server.storage.aurora.trips import Statement, Trips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import LiteralString

    from psycopg.abc import Params

    from duostore_server.storage.aurora.connection import Conninfo
    from duostore_server.storage.aurora.pool import AuroraPool
    from duostore_server.storage.aurora.trips import Rows

_log = structlog.get_logger(__name__)

# What a command may take, which somebody is waiting for.
_COMMAND_SECONDS: Final = 10.0
_WHOLE_NUMBER: Final = re.compile("[0-9]{1,13}")

# Values as text: whoever may write the table may put any JSON there.
_READ: Final = """
SELECT current_setting('transaction_read_only'), name, value::text
FROM (VALUES (1)) AS one
LEFT JOIN duostore.control ON topic = 'quota_limit'
"""

_LIST: Final = """
SELECT name, value::text, caller, update_time
FROM duostore.control
WHERE topic = 'quota_limit'
ORDER BY name
"""

_SET: Final = """
INSERT INTO duostore.control (topic, name, value, caller, update_time)
VALUES ('quota_limit', %s, to_jsonb(%s::bigint), %s, clock_timestamp())
ON CONFLICT (topic, name) DO UPDATE SET
    value = excluded.value,
    caller = excluded.caller,
    update_time = excluded.update_time
"""

_UNSET: Final = """
DELETE FROM duostore.control
WHERE topic = 'quota_limit' AND name = %s
RETURNING name
"""


@dataclass(frozen=True, slots=True)
class SetLimit:
    """A row as it is: ``limit`` is None if it cannot be read, of which ``value`` is the JSON.

    ``key`` is whom it is for, as far as its name tells.
    """

    quota: str
    key: LimitKey
    limit: int | None
    value: str
    caller: str
    update_time: datetime


class AuroraLimits:
    """``ports.Limits`` on PostgreSQL.

    Rows that cannot be read are passed over, and told in the log once a minute.
    """

    def __init__(self, pool: AuroraPool, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows = ControlRows(pool, _READ, _looked_into, complain=_complain, clock=clock)

    def read(self, deadline: Deadline) -> Mapping[tuple[str, str], int]:
        return self._rows.read(deadline)


def set_limit(
    conninfo: Conninfo,
    quota: str,
    key: LimitKey,
    limit: int,
    *,
    caller: str,
    within: float = _COMMAND_SECONDS,
) -> None:
    """Set the limit of a subject, whatever was set before. Safe to repeat.

    Gives up after ``within`` seconds. Raises ``StoreUnavailableError`` (and
    ``StoreTimeoutError``) or ``StoreOverloadedError``; ``MigrationError`` if the schema is
    older, or the role may not do it.
    """
    _run(conninfo, _SET, (_name(quota, key), Int8(limit), caller), within)


def unset_limit(
    conninfo: Conninfo, quota: str, key: LimitKey, *, within: float = _COMMAND_SECONDS
) -> bool:
    """Remove what is set for a subject; return whether anything was. As ``set_limit``."""
    return bool(_run(conninfo, _UNSET, (_name(quota, key),), within))


def list_limits(conninfo: Conninfo, *, within: float = _COMMAND_SECONDS) -> Sequence[SetLimit]:
    """Return all that is set, by name, unreadable rows too. As ``set_limit``."""
    rows = _run(conninfo, _LIST, (), within)
    return [
        SetLimit(*_parsed(name), _limit(name, value), value, caller, update_time)
        for name, value, caller, update_time in rows
    ]


def _complain(count: int) -> None:
    _log.error("limits cannot be read", count=count)


def _looked_into(rows: Rows) -> tuple[Mapping[tuple[str, str], int], int]:
    """Return the limits that are set, and how many rows cannot be read."""
    limits = dict(_readable(rows))
    there = len(rows) if rows[0][1] is not None else 0
    return limits, there - len(limits)


def _readable(rows: Rows) -> Iterator[tuple[tuple[str, str], int]]:
    for _, name, value in rows:
        limit = None if name is None else _limit(name, value)
        if limit is not None:
            quota, key = _parsed(name)
            yield (quota, str(key)), limit


def _limit(name: str, value: str) -> int | None:
    """Return the limit that a row sets, or None if it cannot be read."""
    if not _WHOLE_NUMBER.fullmatch(value) or int(value) > MAX_LIMIT:
        return None
    return None if any(limit_key_violations(*_parsed(name))) else int(value)


def _name(quota: str, key: LimitKey) -> str:
    """Return the name of a row: no quota holds a ``#``, so that the first one ends it."""
    return f"{quota}#{key}"


def _parsed(name: str) -> tuple[str, LimitKey]:
    quota, _, key = name.partition("#")
    return quota, LimitKey.parse(key)


def _run(conninfo: Conninfo, query: LiteralString, params: Params, within: float) -> Rows:
    trips = Trips(within, shared=True)
    try:
        with connected(conninfo) as connection:
            return trips.one(
                connection,
                Statement(query, params),
                Deadline.after(within),
                repeatable=True,
                prepare=False,
            )
    except psycopg.errors.UndefinedTable as error:
        raise MigrationError(
            "the database has no table duostore.control: run `duostore migrate`"
        ) from error
