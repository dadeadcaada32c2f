from __future__ import annotations

import io
import re
from pathlib import Path

from duostore_server.cli.load_checkpoint import Checkpoint, Counts, Fingerprint, Job
from duostore_server.cli.load_display import displaying
from duostore_server.cli.load_journal import Journal
from duostore_server.cli.load_lines import Line
from tests.support.scripted_load import Time
from tests.support.simulated_disk import SimulatedDisk

SOURCE = Path("/data/a.jsonl")
TOTAL = 1_000_000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _journal(*, resumed: bool = False) -> Journal:
    job = Job(Fingerprint(TOTAL, ""), "127.0.0.1:1", "", "k", "id")
    start = Checkpoint(job, "1f")
    if resumed:
        start = Checkpoint(job, "1f", line=5000, offset=500_000, counts=Counts(saved=5000))
    return Journal(SimulatedDisk(), SOURCE, start)


def _save(journal: Journal, count: int) -> None:
    for number in range(journal.line + 1, journal.line + 1 + count):
        journal.saved(Line(number, number * 100, 99, b""), pending=False)


def test_elsewhere_than_on_a_terminal_a_line_is_written_every_ten_seconds() -> None:
    out, time, journal = io.StringIO(), Time(), _journal()
    with displaying(SOURCE, journal, TOTAL, err=out, clock=time) as display:
        display.show(journal)
        _save(journal, 2499)
        journal.reject(Line(2500, 250_000, 2, b"{}"), "bad")
        time.now += 9.9
        display.show(journal)
        assert out.getvalue() == ""
        time.now += 0.1
        display.show(journal)
        display.show(journal)
    assert out.getvalue() == (
        "250.0 kB of 1.0 MB, 2,499 saved, 1 rejected, 250 lines/s, about 0:00:30 left\n"
    )


def test_the_pace_of_a_resumed_load_is_that_of_its_own_lines() -> None:
    out, time, journal = io.StringIO(), Time(), _journal(resumed=True)
    with displaying(SOURCE, journal, TOTAL, err=out, clock=time) as display:
        _save(journal, 1000)
        journal.existed(Line(6001, 600_100, 2, b""))
        time.now += 10
        display.show(journal)
    [line] = out.getvalue().splitlines()
    assert line == (
        "600.1 kB of 1.0 MB, 6,000 saved, 1 existed, 0 rejected, 100 lines/s, about 0:00:40 left"
    )


def test_no_end_is_foretold_while_nothing_is_done() -> None:
    out, time, journal = io.StringIO(), Time(), _journal()
    with displaying(SOURCE, journal, TOTAL, err=out, clock=time) as display:
        time.now += 10
        display.show(journal)
        display.say("aurora is down")
    assert out.getvalue() == ("0 bytes of 1.0 MB, 0 saved, 0 rejected, 0 lines/s\naurora is down\n")


def test_on_a_terminal_a_bar_moves() -> None:
    out, time, journal = Terminal(), Time(), _journal()
    with displaying(SOURCE, journal, TOTAL, err=out, clock=time) as display:
        _save(journal, 4000)
        time.now += 2
        display.show(journal)
        display.say("[red]aurora is down")
        _save(journal, 6000)
        display.show(journal)
    shown = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "a.jsonl" in shown
    assert "1.0/1.0 MB 10,000 saved, 0 rejected 5,000 lines/s" in " ".join(shown.split())
    assert "[red]aurora is down" in shown, "no markup"
