from __future__ import annotations

import io
import re
import sys

import pytest

from duostore_server.cli.progress_display import displaying
from tests.support.scripted_load import Time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(out: io.StringIO) -> str:
    return " ".join(re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", out.getvalue()).split())


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.usefixtures("wide")
def test_a_terminal_has_a_bar_with_rate_and_time_left() -> None:
    out, time = Terminal(), Time()
    with displaying("check [red]note", err=out, clock=time) as display:
        display.show(1000, 10_000, "")
        time.now += 2
        display.show(4000, 10_000, "3 drifts")
    told = shown(out)
    assert "check [red]note" in told, "no markup"
    assert "4,000 of about 10,000, 1,500/s, 3 drifts, about 4 s left" in told


def last_line(looks: list[tuple[float, int]], total: int) -> str:
    """Return the last line of what was shown: after so many seconds so many were done."""
    out, time = io.StringIO(), Time()
    with displaying("check", err=out, clock=time) as display:
        for seconds, done in looks:
            time.now += seconds
            display.show(done, total, "")
    return out.getvalue().splitlines()[-1]


def test_the_rate_is_that_of_the_last_ten_seconds() -> None:
    slow = [(1.0, 10 * n) for n in range(100)]
    fast = [(1.0, 1000 * n) for n in range(1, 22)]
    assert last_line([*slow, *fast], 80_000).endswith("1,000/s, about 1 min left")


def test_the_wait_before_the_first_is_done_is_not_counted() -> None:
    waits = [(1.0, 0)] * 7
    goes = [(1.0, 100 * n) for n in range(1, 5)]
    assert last_line([*waits, *goes], 10_300).endswith("100/s, about 1 min 40 s left")


@pytest.mark.usefixtures("wide")
def test_who_knows_better_says_what_is_left() -> None:
    out, time = Terminal(), Time()
    with displaying("backfill", err=out, clock=time) as display:
        display.show(10, 100, "", 93.0)
    assert "10 of about 100, about 1 min 33 s left" in shown(out)


@pytest.mark.usefixtures("wide")
def test_an_estimate_may_be_too_low() -> None:
    out, time = Terminal(), Time()
    with displaying("backfill", err=out, clock=time) as display:
        display.show(10, 100, "", 93.0)
        time.now += 1
        display.show(120, 100, "", 93.0)
    assert shown(out).endswith("120 of about 120, 110/s")


@pytest.mark.usefixtures("wide")
def test_what_is_printed_meanwhile_goes_where_it_should(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Terminal()
    with displaying("check", err=out, clock=Time()) as display:
        display.show(1, 2, "")
        sys.stdout.write("a drift\n")
        display.say("the [bold]connection was lost")
    assert capsys.readouterr().out == "a drift\n"
    assert "a drift" not in shown(out)
    assert "the [bold]connection was lost" in shown(out)


def test_elsewhere_there_is_a_line_every_ten_seconds() -> None:
    out, time = io.StringIO(), Time()
    with displaying("check note\x1b", err=out, clock=time) as display:
        display.show(0, 1000, "")
        time.now += 9.9
        display.show(90, 1000, "")
        time.now += 0.1
        display.show(100, 1000, "3 drifts")
        display.show(101, 1000, "3 drifts")
        display.say("The service answers again.")
        time.now += 10
        display.show(1000, 1000, "3 drifts")
    assert out.getvalue().splitlines() == [
        "check note�: 100 of about 1,000, 3 drifts, 10/s, about 1 min 30 s left",
        "The service answers again.",
        "check note�: 1,000 of about 1,000, 3 drifts, 90/s",
    ]


def test_what_is_not_shown_still_tells_what_happened() -> None:
    out, time = Terminal(), Time()
    with displaying("check", err=out, clock=time, shown=False) as display:
        time.now += 20
        display.show(1, 1, "")
        display.say("The connection was lost.")
    assert out.getvalue() == "The connection was lost.\n"
