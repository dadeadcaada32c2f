"""Where tables and pictures for people are drawn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from rich.console import Console

if TYPE_CHECKING:
    from typing import TextIO

# Of a file or a pipe, which has no width of its own.
_PLAIN_WIDTH: Final = 100


def console_on(out: TextIO) -> Console:
    """Return a console that prints texts as they are, coloured on a terminal alone.

    As wide as the terminal; elsewhere as COLUMNS says, or wide enough for most tables.
    """
    console = Console(file=out, highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console
