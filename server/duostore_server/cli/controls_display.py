"""What is set while the service runs, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table
from rich.text import Text

from duostore_server.cli.answers_admin import flag_value
from duostore_server.cli.wording import ago, printable, whose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from duostore.v1 import admin_pb2

_UNUSED: Final = "nobody asks for it: no such kind or projection version is configured"


def read_only_lines(found: Iterable[admin_pb2.ReadOnly], now: float) -> Iterator[str]:
    """Yield what is read-only: a kind or all, why, who said so and when."""
    for each in found:
        caller = f"{printable(each.caller)}, " if each.caller else ""
        yield f"{whose(each.kind)}: {printable(each.reason)} ({caller}{ago(each.update_time, now)})"


def flags_view(flags: Sequence[admin_pb2.Flag], now: float) -> Table:
    """Return flags as a table: what is set stands out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("flag", overflow="fold", ratio=3)
    table.add_column("value", justify="right", overflow="fold")
    table.add_column("default", justify="right", overflow="fold")
    table.add_column("set", overflow="fold", ratio=2)
    table.add_column("what it does", overflow="fold", ratio=4)
    for flag in flags:
        cells = (
            printable(flag.name),
            _value(flag, "value", "unreadable"),
            _value(flag, "default_value", "-"),
            _who(flag, now),
            printable(flag.description) if flag.used else _UNUSED,
        )
        style = "" if flag.used else "yellow"
        table.add_row(*map(Text, cells), style="bold" if flag.used and flag.set else style)
    return table


def _value(flag: admin_pb2.Flag, field: str, otherwise: str) -> str:
    return printable(str(flag_value(getattr(flag, field)))) if flag.HasField(field) else otherwise  # type: ignore[arg-type]


def _who(flag: admin_pb2.Flag, now: float) -> str:
    if not flag.set:
        return "-"
    caller = f"{printable(flag.caller)}, " if flag.caller else ""
    return f"{caller}{ago(flag.update_time, now)}"
