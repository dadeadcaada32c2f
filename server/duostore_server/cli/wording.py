"""How names, spans and shares are told to people."""

from __future__ import annotations

import math
import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from duostore_server.cli.answers import name_shown

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from duostore.v1 import entity_pb2

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
_SHOWN_UNITS: Final = 2
_NANOSECOND: Final = 1e-9
_PERCENT_DIGITS: Final = 3


def printable(text: str) -> str:
    """Return a text of others as it can do a terminal no harm."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def key_told(key: entity_pb2.EntityKey) -> str:
    """Return a key as the arguments of a command, such as ``proposal p1 --tenant acme``."""
    tenant = f" --tenant {shlex.quote(key.tenant)}" if key.tenant else ""
    return printable(f"{shlex.quote(key.kind)} {shlex.quote(key.id)}{tenant}")


def whose(kind: str) -> str:
    """Return what is spoken of: a kind, or the whole service if it is empty."""
    return printable(kind) or "the whole service"


def word(enum: Any, number: int, prefix: str) -> str:  # noqa: ANN401 - protobuf's types are its own
    """Return an enum's value as a word, such as ``aurora`` for STORE_AURORA."""
    return name_shown(enum, number).removeprefix(prefix).lower()


def seconds_of(moment: Timestamp | Duration) -> float:
    """Return a length in seconds, or a moment as seconds of the epoch."""
    return moment.seconds + moment.nanos * _NANOSECOND


def span(seconds: float) -> str:
    """Return a length of time in its two largest units, such as ``2 h 5 min``."""
    if seconds < 1:
        return milliseconds(seconds)
    if seconds < 10:  # noqa: PLR2004 - from then on tenths say nothing
        return f"{math.floor(seconds * 10) / 10:g} s"
    left = int(seconds)
    parts: list[str] = []
    for unit, length in _UNITS:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count:,} {unit}")
        if parts and (len(parts) == _SHOWN_UNITS or not count):
            break
    return " ".join(parts)


def milliseconds(seconds: float) -> str:
    """Return a short length of time, such as ``3.1 ms``."""
    return f"{max(seconds, 0) * 1000:.3g} ms" if seconds < 1 else span(seconds)


def utc(moment: Timestamp) -> str:
    """Return a moment to the second, such as ``2026-11-24 04:05:06 UTC``."""
    return f"{datetime.fromtimestamp(moment.seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def ago(moment: Timestamp, now: float) -> str:
    """Return how long ago something was, by a clock that may be behind."""
    passed = now - seconds_of(moment)
    return "just now" if passed < 1 else f"{span(passed)} ago"


def percent(share: float) -> str:
    """Return a share, rounded down: what is not all is never told to be."""
    scale = 10**_PERCENT_DIGITS
    # A product such as 0.29 * 100 is below what it should be.
    return f"{math.floor(round(share * 100 * scale, 6)) / scale:g} %"


def counted(number: int, one: str, many: str) -> str:
    """Return how many there are, as people say it."""
    return f"{number:,} {one if number == 1 else many}"
