"""A picture of what a command prints: an SVG that needs no font and no network."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.terminal_theme import TerminalTheme

if TYPE_CHECKING:
    from rich.console import RenderableType

PICTURE_WIDTH: Final = 100
_ID: Final = "duostore"

# Light and dark, of text and of the background; then of the colours of a terminal, in its order.
_TEXT: Final = ("#1f2328", "#e6edf3")
_BACKGROUND: Final = ("#ffffff", "#0d1117")
_COLOURS: Final = (
    ("#1f2328", "#484f58"),
    ("#cf222e", "#ff7b72"),
    ("#1a7f37", "#3fb950"),
    ("#9a6700", "#d29922"),
    ("#0969da", "#58a6ff"),
    ("#8250df", "#bc8cff"),
    ("#1b7c83", "#39c5cf"),
    ("#6e7781", "#b1bac4"),
    ("#6e7781", "#8b949e"),
    ("#cf222e", "#ff7b72"),
    ("#1a7f37", "#3fb950"),
    ("#9a6700", "#d29922"),
    ("#0969da", "#58a6ff"),
    ("#8250df", "#bc8cff"),
    ("#1b7c83", "#39c5cf"),
    ("#8c959f", "#f0f6fc"),
)
_ALL: Final = (_TEXT, _BACKGROUND, *_COLOURS)
_GREY: Final = 10
# Of rich, for dark backgrounds alone.
_CHROME_STROKE: Final = "rgba(255,255,255,0.35)"

_FORMAT: Final = """\
<svg viewBox="0 0 {{width}} {{height}}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>{title}</title>
<style>
svg {{{{ {light} }}}}
@media (prefers-color-scheme: dark) {{{{ svg {{{{ {dark} }}}} }}}}
.{id}-matrix {{{{
  font: {{char_height}}px/{{line_height}}px ui-monospace, Menlo, Consolas, monospace;
}}}}
.{id}-title {{{{ font: bold 18px system-ui, sans-serif; }}}}
{{styles}}
</style>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})">
{{backgrounds}}
<g class="{id}-matrix">
{{matrix}}
</g>
</g>
</svg>
"""


def picture_of(view: RenderableType, title: str) -> str:
    """Return what is seen on a terminal 100 characters wide, as an SVG.

    Its colours are those that the reader prefers, light or dark.
    """
    console = Console(
        file=io.StringIO(),
        record=True,
        width=PICTURE_WIDTH,
        force_terminal=True,
        color_system="standard",
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(view)
    text = console.export_svg(
        title=title, theme=_placeholders(), code_format=_format(title), unique_id=_ID
    )
    # One line may be cut off by the next, which all of them have room for.
    text = re.sub(r' clip-path="[^"]*"', "", text)
    # The ends of lines are taken for text.
    text = re.sub(r"<text [^>]*>\s*</text>", "\n", text)
    text = text.replace(_CHROME_STROKE, f"var(--c{_GREY})")
    for number in range(len(_ALL)):
        text = text.replace(_placeholder_hex(number), f"var(--c{number})")
    return re.sub(r"[ \t]+\n", "\n", text)


def _format(title: str) -> str:
    def variables(scheme: int) -> str:
        return " ".join(f"--c{number}: {pair[scheme]};" for number, pair in enumerate(_ALL))

    braced = escape(title).replace("{", "{{").replace("}", "}}")
    return _FORMAT.format(title=braced, id=_ID, light=variables(0), dark=variables(1))


def _placeholders() -> TerminalTheme:
    """Return a theme whose colours are numbers, to be replaced by variables."""
    text, background, *colours = [_placeholder(number) for number in range(len(_ALL))]
    return TerminalTheme(background, text, colours[:8], colours[8:])


def _placeholder(number: int) -> tuple[int, int, int]:
    return (1, 2, 100 + number)


def _placeholder_hex(number: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*_placeholder(number))
