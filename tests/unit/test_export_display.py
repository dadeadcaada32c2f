from __future__ import annotations

import io
import re

from duostore_server.cli.export_display import displaying
from tests.support.scripted_load import Time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(out: io.StringIO) -> str:
    return " ".join(re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split())


def test_on_a_terminal_rows_bytes_rate_and_time_are_shown() -> None:
    out, time = Terminal(), Time()
    with displaying("[red]proposals", err=out, clock=time) as display:
        time.now += 2
        display.show(3_000, 45_000)
        # Too soon to be worth a look.
        display.show(3_500, 50_000)
        time.now += 2
        display.finish(10_000, 1_500_000)
    assert "3,500 rows" not in shown(out)
    assert "[red]proposals" in shown(out), "no markup"
    assert re.search(r"10,000 rows 1\.5 MB 2,500 rows/s 0:00:04", shown(out))


def test_elsewhere_nothing_is_shown() -> None:
    for out, wanted in ((io.StringIO(), True), (Terminal(), False)):
        time = Time()
        with displaying("proposals", err=out, clock=time, shown=wanted) as display:
            time.now += 20
            display.show(1, 1)
            display.finish(1, 1)
        assert out.getvalue() == ""
