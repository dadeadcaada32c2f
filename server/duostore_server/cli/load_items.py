"""Lines on their way to the service, those of one id in the order of the file."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duostore_server.cli.json_document import DocumentError, id_at, parse_document
from duostore_server.cli.load_lines import MAX_LINE_BYTES
from duostore_server.domain.errors import FieldViolation

if TYPE_CHECKING:
    from duostore_server.cli.load_lines import Line
    from duostore_server.domain.documents import JsonObject


@dataclass(slots=True)
class Item:
    """A line with a document to save.

    ``failed`` is when it first failed, in seconds of the loader's clock.
    """

    line: Line
    id: str
    document: JsonObject
    attempts: int = 0
    failed: float | None = None


def item_of(line: Line, id_path: str) -> Item | None:
    """Return what a line says to save, or None for a blank one.

    Raises ``DocumentError`` if it cannot be saved.
    """
    if line.is_too_long:
        problem = (
            f"has {line.size} bytes; at most {MAX_LINE_BYTES} are allowed in a line "
            "(only its beginning is shown here)"
        )
        raise DocumentError(FieldViolation("line", problem))
    text = line.text
    if line.number == 1:
        # Some programs begin a file with it; JSON does not allow it.
        text = text.removeprefix(codecs.BOM_UTF8)
    if not text.strip():
        return None
    document = parse_document(text)
    return Item(line, id_at(document, id_path), document)


class Lanes:
    """One lane for each id: of its lines only the first is under way, the others wait."""

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Item]] = {}
        self.items = 0
        self.bytes = 0

    def enter(self, item: Item) -> bool:
        """Queue the item in the lane of its id; return whether it is the first."""
        lane = self._lanes.setdefault(item.id, deque())
        lane.append(item)
        self.items += 1
        self.bytes += item.line.size
        return len(lane) == 1

    def leave(self, item: Item) -> Item | None:
        """Remove the item, which is first in its lane; return the one that is first now."""
        lane = self._lanes[item.id]
        lane.popleft()
        self.items -= 1
        self.bytes -= item.line.size
        if lane:
            return lane[0]
        del self._lanes[item.id]
        return None
