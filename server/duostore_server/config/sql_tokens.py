"""The words of PostgreSQL's SQL, as far as parameters and statements hang on them."""

# ruff: noqa: PLC0415 - a tokenizer takes 17 MB and a tenth of a second; the processes of a
# service are handed files that were read, and need none

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlglot import Token, TokenType
    from sqlglot.tokens import Tokenizer


class Mark(Enum):
    """What a place in a file is to us."""

    WORD = "word"  # whatever is not one of the others
    PLACEHOLDER = "placeholder"
    NUMBERED = "numbered"  # $1, which only the driver may write
    END = "end"  # a semicolon


@dataclass(frozen=True, slots=True)
class Place:
    """A stretch of a file, from ``start`` up to ``end``, that is neither space nor comment."""

    mark: Mark
    start: int
    end: int


class UnreadableError(ValueError):
    """A text is no SQL: at ``position`` begins what does not end or cannot be."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(
            "here begins a string, a quoted name or a comment that does not end or cannot be read"
        )


# PostgreSQL's own rule for what goes on with a name.
_NAME: Final = re.compile(r"[^\W\d][\w$]*")
_DIGITS: Final = re.compile(r"\d+")


def places(text: str) -> Iterator[Place]:
    """Yield the places of a text, in order; raises ``UnreadableError``.

    A colon directly followed by a name is a placeholder, the name included; not so in
    strings, quoted names, comments, and after another colon (``::`` is a cast).
    """
    from sqlglot import TokenType

    done = 0
    for token in _tokens(text):
        # The name after a colon may be a part of a longer token: of GROUP BY, or of x'00'.
        start, end = max(token.start, done), token.end + 1
        if end <= done:
            continue
        mark = Mark.WORD
        if token.token_type is TokenType.SEMICOLON:
            mark = Mark.END
        elif token.token_type is TokenType.COLON and (name := _NAME.match(text, end)):
            mark, end = Mark.PLACEHOLDER, name.end()
        elif token.token_type is TokenType.PARAMETER and text[start] == "$":
            number = _DIGITS.match(text, end)
            mark, end = (Mark.NUMBERED, number.end()) if number else (mark, end)
        yield Place(mark, start, end)
        done = end


@cache
def _tokenizer() -> type[Tokenizer]:
    from sqlglot.dialects.postgres import Postgres

    class Uncommanded(Postgres.Tokenizer):
        # Else CALL and the like would swallow the rest of their statement as one string.
        COMMANDS: ClassVar[set[TokenType]] = set()

    return Uncommanded


def _tokens(text: str) -> list[Token]:
    from sqlglot.errors import TokenError

    try:
        return _tokenized(text)
    except TokenError as error:
        found = re.search(r":(\d+)$", str(error.__cause__))
        position = int(found[1]) if found else _open_comment(text)
    raise UnreadableError(min(position, len(text) - 1))


def _open_comment(text: str) -> int:
    """Return where a comment begins that does not end, of which the tokenizer tells no place."""
    from sqlglot.errors import TokenError

    # Up to any other, also one within, something would be open.
    for begin in reversed([found.start() for found in re.finditer(r"/\*", text)]):
        try:
            _tokenized(text[:begin])
        except TokenError:
            continue
        return begin
    return 0


def _tokenized(text: str) -> list[Token]:
    return _tokenizer()(dialect="postgres").tokenize(text)
