"""What every engine of the controls promises."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.domain.controls import MAX_REASON_BYTES, Controlled
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import DeadlineExceededError, StoreUnavailableError
from duostore_server.storage.aurora.controls import AuroraControls
from tests.support.authority_engines import migrated_pool, soon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.controls import FlagValue
    from duostore_server.storage.aurora.pool import AuroraPool
    from tests.support.servers import PostgresServer

UNREADABLE = "controls cannot be read"
THREADS = 8
ODD = "#'\"{}\\ NULL \N{GRINNING FACE}\t%s"


@pytest.fixture(scope="module")
def database(postgres: PostgresServer) -> Iterator[tuple[str, AuroraPool]]:
    dsn = postgres.create_database()
    with migrated_pool(dsn) as pool:
        yield dsn, pool


@pytest.fixture
def dsn(database: tuple[str, AuroraPool]) -> str:
    dsn, _ = database
    execute(dsn, "TRUNCATE duostore.control")
    return dsn


@pytest.fixture
def controls(dsn: str, database: tuple[str, AuroraPool]) -> AuroraControls:
    assert dsn
    return AuroraControls(database[1])


def execute(dsn: str, query: str, *params: object) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(query.encode(), params)


def put(dsn: str, topic: str, name: str, value: str) -> None:
    """Write a row as somebody may who has no command."""
    execute(
        dsn,
        "INSERT INTO duostore.control (topic, name, value, caller, update_time)"
        " VALUES (%s, %s, %s, 'somebody', now())",
        topic,
        name,
        value,
    )


def flags(controls: AuroraControls) -> dict[str, FlagValue | None]:
    return {name: flag.value for name, flag in controls.read(soon()).flags.items()}


def reasons(controls: AuroraControls) -> dict[str, str]:
    return {kind: state.reason for kind, state in controls.read(soon()).read_only.items()}


def test_nothing_is_set_at_first(controls: AuroraControls) -> None:
    assert controls.read(soon()) == Controlled()


def test_a_flag_is_what_it_was_set_to_until_it_is_unset(controls: AuroraControls) -> None:
    controls.set_flag("write", "both", "ops", soon())
    controls.set_flag("read", 25, "ops", soon())
    controls.set_flag(ODD, ODD, ODD, soon())
    controls.set_flag("zero", 0, "", soon())
    controls.set_flag("empty", "", "", soon())
    controls.set_flag("digits", "25", "", soon())
    expected = {"write": "both", "read": 25, ODD: ODD, "zero": 0, "empty": "", "digits": "25"}
    assert flags(controls) == expected
    assert controls.read(soon()).flags[ODD].caller == ODD

    # Of another type, too, and as often as one likes.
    controls.set_flag("read", "new", "on call", soon())
    controls.set_flag("write", 7, "on call", soon())
    controls.set_flag("write", 7, "on call", soon())
    assert controls.unset_flag("zero", soon())
    assert not controls.unset_flag("zero", soon())
    assert not controls.unset_flag("never", soon())
    del expected["zero"]
    assert flags(controls) == {**expected, "read": "new", "write": 7}
    assert controls.read(soon()).flags["read"].caller == "on call"


def test_kinds_are_read_only_until_they_are_not(controls: AuroraControls) -> None:
    controls.set_read_only("", "failover", "ops", soon())
    controls.set_read_only("proposal", ODD, "ops", soon())
    assert reasons(controls) == {"": "failover", "proposal": ODD}
    controls.set_read_only("proposal", "longer", "on call", soon())
    controls.set_read_only("proposal", "longer", "on call", soon())
    controls.set_read_only("", None, "on call", soon())
    controls.set_read_only("", None, "on call", soon())
    assert reasons(controls) == {"proposal": "longer"}
    found = controls.read(soon()).read_only["proposal"]
    assert (found.kind, found.caller) == ("proposal", "on call")


def test_flags_and_kinds_of_one_name_are_not_in_each_others_way(controls: AuroraControls) -> None:
    controls.set_flag("proposal", "new", "", soon())
    controls.set_read_only("proposal", "why", "", soon())
    assert controls.unset_flag("proposal", soon())
    assert (flags(controls), reasons(controls)) == ({}, {"proposal": "why"})
    controls.set_flag("proposal", "new", "", soon())
    controls.set_read_only("proposal", None, "", soon())
    assert (flags(controls), reasons(controls)) == ({"proposal": "new"}, {})


def test_it_is_told_who_set_what_and_when(controls: AuroraControls) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    controls.set_flag("flag", 1, "ops", soon())
    first = controls.read(soon()).flags["flag"]
    controls.set_flag("flag", 1, "on call", soon())
    second = controls.read(soon()).flags["flag"]
    controls.set_read_only("", "why", "ops", soon())
    third = controls.read(soon()).read_only[""]
    assert (first.caller, second.caller, third.caller) == ("ops", "on call", "ops")
    assert before < first.update_time < second.update_time < third.update_time
    assert third.update_time < before + timedelta(minutes=1)
    assert third.update_time.tzinfo is UTC


# Values that a row may have, and what comes of them.
BAD_FLAGS = ["true", "null", "5.0", "1e30", "[]", '{"a": 1}', "9" * 5000, "[" * 5000 + "]" * 5000]
GOOD_FLAGS = {'"\\u00e9\\n"': "\u00e9\n", "-3": -3, "1e3": 1000, str(10**18 - 1): 10**18 - 1}
BAD_REASONS = ["true", "null", '""', "1", '["why"]']


def test_rows_that_cannot_be_read_are_told_as_such_or_passed_over(
    dsn: str, controls: AuroraControls
) -> None:
    for value in BAD_FLAGS:
        put(dsn, "flag", f"bad {value[:9]}", value)
    for value in GOOD_FLAGS:
        put(dsn, "flag", value, value)
    for n, value in enumerate(BAD_REASONS):
        put(dsn, "read_only", f"k{n}", value)
    put(dsn, "read_only", "long", '"' + "\N{GRINNING FACE}" * 100 + '"')
    put(dsn, "quota_limit", "calls#alice", "5")
    put(dsn, "future", "x", '"y"')

    assert flags(controls) == {**{f"bad {value[:9]}": None for value in BAD_FLAGS}, **GOOD_FLAGS}
    assert reasons(controls) == {"long": "\N{GRINNING FACE}" * (MAX_REASON_BYTES // 4)}
    # What is wrong with a value the calls can mend.
    controls.set_flag("bad true", "new", "ops", soon())
    controls.set_read_only("k1", None, "ops", soon())
    controls.set_read_only("k0", "why", "ops", soon())
    assert flags(controls)["bad true"] == "new"
    assert reasons(controls)["k0"] == "why"


def test_rows_that_cannot_be_read_are_told_once_a_minute(
    dsn: str, database: tuple[str, AuroraPool], caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    controls = AuroraControls(database[1], clock=lambda: now)

    def told() -> int:
        caplog.clear()
        controls.read(soon())
        return sum(UNREADABLE in record.getMessage() for record in caplog.records)

    assert told() == 0
    put(dsn, "flag", "secret", "true")
    put(dsn, "read_only", "secret", "true")
    put(dsn, "quota_limit", "secret", "true")
    assert told() == 1
    assert "count=2" in caplog.text
    assert "secret" not in caplog.text
    now += 59
    assert told() == 0
    # Also of rows that have not changed since.
    now += 1
    assert told() == 1
    execute(dsn, "TRUNCATE duostore.control")
    now += 60
    assert told() == 0


def test_rows_that_have_not_changed_are_not_looked_into(controls: AuroraControls) -> None:
    controls.set_flag("flag", 1, "ops", soon())
    first = controls.read(soon())
    assert controls.read(soon()) is first
    # The same value, set again.
    controls.set_flag("flag", 1, "ops", soon())
    again = controls.read(soon())
    assert again is not first
    assert again.flags["flag"].update_time > first.flags["flag"].update_time


def test_many_that_set_the_same_at_once_leave_one_of_them(controls: AuroraControls) -> None:
    barrier = threading.Barrier(THREADS)

    def work(n: int) -> None:
        barrier.wait()
        for round_ in range(10):
            controls.set_flag("flag", n, str(n), soon())
            controls.set_read_only("", str(n) if round_ % 2 else None, str(n), soon())
            state = controls.read(soon())
            assert str(state.flags["flag"].value) == state.flags["flag"].caller
            for found in state.read_only.values():
                assert found.reason == found.caller

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert set(flags(controls)) == {"flag"}


def test_a_deadline_that_passed_stops_a_call_before_it_begins(controls: AuroraControls) -> None:
    over = Deadline.after(0)
    for call in (
        lambda: controls.read(over),
        lambda: controls.set_flag("flag", 1, "", over),
        lambda: controls.unset_flag("flag", over),
        lambda: controls.set_read_only("", "why", "", over),
        lambda: controls.set_read_only("", None, "", over),
    ):
        with pytest.raises(DeadlineExceededError):
            call()
    assert controls.read(soon()) == Controlled()


@pytest.mark.parametrize(
    "call",
    [
        lambda controls: controls.read(soon()),
        lambda controls: controls.set_flag("flag", 1, "", soon()),
        lambda controls: controls.unset_flag("flag", soon()),
        lambda controls: controls.set_read_only("", None, "", soon()),
    ],
)
def test_a_writer_that_was_demoted_is_not_believed(
    dsn: str, call: Callable[[AuroraControls], object]
) -> None:
    with migrated_pool(dsn, max_size=1) as pool:
        controls = AuroraControls(pool)
        controls.set_read_only("", "why", "", soon())
        pool.execute("SET default_transaction_read_only = on", (), soon())
        with pytest.raises(StoreUnavailableError):
            call(controls)
        # By a connection that is new.
        assert reasons(controls) == {"": "why"}
