"""SQL of the configuration, taken apart: text, and the places where parameters go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Text:
    """A stretch of SQL as the file has it; ``line`` is where it begins, counted from 1."""

    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A place where the file has ``:name``. The value of the parameter is sent beside the SQL."""

    name: str
    line: int


Part: TypeAlias = Text | Placeholder


@dataclass(frozen=True, slots=True)
class SqlStatement:
    """One statement, without its semicolon. Its parts in their order are all of its text."""

    parts: tuple[Part, ...]

    def placeholders(self) -> Iterator[Placeholder]:
        """Yield the places of parameters, in order; a parameter may have several."""
        for part in self.parts:
            if isinstance(part, Placeholder):
                yield part


@dataclass(frozen=True, slots=True)
class SqlFile:
    """A file of one statement or more. ``digest`` is the SHA-256 of its bytes, in hex.

    Nothing that a caller sends ever becomes a part of it.
    """

    path: str
    statements: tuple[SqlStatement, ...]
    digest: str

    @property
    def statement(self) -> SqlStatement:
        """Return the only statement of a file that was found to have one."""
        (statement,) = self.statements
        return statement

    def placeholders(self) -> Iterator[Placeholder]:
        """Yield the places of parameters in all statements."""
        for statement in self.statements:
            yield from statement.placeholders()
