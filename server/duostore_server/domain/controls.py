"""What is set while the service runs: flags, and what is read-only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

FlagValue: TypeAlias = str | int

MAX_REASON_BYTES: Final = 200
# Of a flag: that of its kind, what it is about, and a number.
MAX_NAME_BYTES: Final = 128


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag that the service asks for: what it is if nothing is set, and what it may be.

    A flag of strings has ``choices``; one of whole numbers is 0 to ``most``.
    """

    name: str
    default: FlagValue
    description: str
    choices: tuple[str, ...] = ()
    most: int = 0

    def problem(self, value: object) -> str | None:
        """Return what is wrong with a value; None if the flag may be that."""
        if self.choices:
            if isinstance(value, str) and value in self.choices:
                return None
            return f"must be one of {', '.join(self.choices)}"
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= self.most:
            return None
        return f"must be a whole number, 0 to {self.most}"


@dataclass(frozen=True, slots=True)
class SetFlag:
    """What was set of a flag, by whom and when; ``value`` None is a row that cannot be read."""

    value: FlagValue | None
    caller: str
    update_time: datetime


@dataclass(frozen=True, slots=True)
class ReadOnly:
    """Why writes of a kind, or of all if ``kind`` is empty, are refused; who said so and when."""

    kind: str
    reason: str
    caller: str
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Controlled:
    """All that is set: flags by name, and what is read-only by kind, all by the empty name."""

    flags: Mapping[str, SetFlag] = field(default_factory=dict)
    read_only: Mapping[str, ReadOnly] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FlagState:
    """A flag and what is set of it.

    ``default`` is None of one that nobody asks for, and so is ``value`` of what cannot be read.
    ``caller`` and ``update_time`` are of what is set.
    """

    name: str
    value: FlagValue | None
    default: FlagValue | None = None
    description: str = ""
    is_set: bool = False
    caller: str = ""
    update_time: datetime | None = None

    @property
    def used(self) -> bool:
        """Whether anything asks for it."""
        return self.default is not None
