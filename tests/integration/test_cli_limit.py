"""`duostore limit`, as those run it who are on call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from duostore_server.storage.aurora.migrate import migrate
from tests.support.ports import free_port

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
[kinds.note]
[quotas.api_calls]
limit = 1000
window = "1m"
[quotas.tokens]
limit = 10
window = "1s"
algorithm = "token_bucket"
"""


class Command:
    """Runs the command with a configuration file and a database."""

    def __init__(self, folder: Path, dsn: str | None) -> None:
        self._file = folder / "duostore.toml"
        self._file.write_text(CONFIG)
        environ = {k: v for k, v in os.environ.items() if not k.startswith("DUOSTORE_")}
        self._environ = {**environ, "LOGNAME": "operator"}
        if dsn is not None:
            self._environ["DUOSTORE__AURORA__DSN"] = dsn

    def __call__(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "duostore_server.cli.main", "limit", *arguments],
            env={**self._environ, "DUOSTORE_CONFIG": str(self._file), **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def reconfigure(self, text: str) -> None:
        self._file.write_text(text)

    def done(self, *arguments: str, **environ: str) -> str:
        ran = self(*arguments, **environ)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    def failed(self, code: int, *arguments: str) -> str:
        ran = self(*arguments)
        assert (ran.returncode, ran.stdout) == (code, "")
        return " ".join(ran.stderr.split())


@pytest.fixture
def command(tmp_path: Path, postgres_dsn: str) -> Command:
    migrate(postgres_dsn)
    return Command(tmp_path, postgres_dsn)


def test_a_limit_is_set_listed_and_unset(command: Command) -> None:
    assert command.done("list") == "no limits are set at run time\n"
    assert command.done("set", "api_calls", "alice", "5000") == (
        "api_calls, subject 'alice' in every tenant: 5000 in 60s, in force within two seconds\n"
    )
    assert "in tenant 'acme': 7 in" in command.done(
        "set", "api_calls", "a#b", "7", "--tenant", "acme", DUOSTORE_CALLER="pager"
    )
    command.done("set", "tokens", "alice", "9", "--tenant", "", "--caller", "")

    first, second, third = json.loads(command.done("list", "--json"))
    set_time = datetime.fromisoformat(first.pop("update_time"))
    assert timedelta() <= datetime.now(UTC) - set_time < timedelta(minutes=5)
    assert first == {
        "quota": "api_calls",
        "tenant": "acme",
        "subject": "a#b",
        "limit": 7,
        "caller": "pager",
        "configured": True,
    }
    assert (second["tenant"], second["limit"], second["caller"]) == (None, 5000, "operator")
    assert (third["quota"], third["tenant"], third["caller"]) == ("tokens", "", "")

    shown = [line.split() for line in command.done("list").splitlines()]
    assert shown[0] == ["QUOTA", "TENANT", "SUBJECT", "LIMIT", "SET", "BY", "AT"]
    assert shown[1][:5] == ["api_calls", "acme", "a#b", "7", "pager"]
    assert shown[2][:5] == ["api_calls", "(every)", "alice", "5000", "operator"]
    assert shown[3][:4] == ["tokens", "(empty)", "alice", "9"]

    assert command.done("unset", "api_calls", "alice") == (
        "api_calls, subject 'alice' in every tenant: no longer set, in force within two seconds\n"
    )
    assert "no limit is set. `duostore limit list`" in command.failed(
        1, "unset", "api_calls", "alice"
    )
    assert len(json.loads(command.done("list", "--json"))) == 2


def test_a_subject_is_blocked_by_a_limit_of_0(command: Command) -> None:
    assert "subject 'alice' in every tenant: 0 in 60s" in command.done(
        "set", "api_calls", "alice", "0"
    )
    command.done("set", "tokens", "alice", "0")
    assert [row["limit"] for row in json.loads(command.done("list", "--json"))] == [0, 0]
    assert "passed over" not in command.done("list")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("set", "api_cals", "alice", "5"),
            "'api_cals' is not a configured quota; did you mean \"api_calls\"? configured: api_",
        ),
        (("set", "zzz", "alice", "5"), "configured quota; configured: api_calls, tokens"),
        (("set", "api_calls", "a#b", "5"), "subject: holds '#': then its tenant has to be named"),
        (("set", "api_calls", "", "5"), "subject: must not be empty"),
        (("set", "api_calls", "a", "5", "--tenant", "a#b"), "tenant: must not hold '#'"),
        (("set", "api_calls", "a", "1000000000001"), "LIMIT: must be at most 1000000000000 with"),
        (("set", "tokens", "a", "1000000001"), "LIMIT: must be at most 1000000000 with"),
        (("set", "api_calls", "a", "5", "--caller", "a\nb"), "--caller: may hold up to 128"),
        (("unset", "api_calls", "a#b"), "then its tenant has to be named"),
        (("set", "api_calls", "a\udcff", "5"), "not UTF-8"),
        (("set", "api_calls", "a", "--", "-1"), "equal to 0"),
        (("set", "api_calls", "a", "many"), "Invalid value for"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    nowhere = Command(tmp_path, f"host=127.0.0.1 port={free_port()} dbname=none")
    assert message in nowhere.failed(2, *arguments)


def test_without_quotas_that_is_said(command: Command) -> None:
    command.reconfigure("[kinds.note]\n")
    assert "the configuration has no quotas" in command.failed(2, "set", "calls", "a", "5")


def test_what_stands_in_the_way_is_told(tmp_path: Path, postgres_dsn: str) -> None:
    away = Command(tmp_path, f"host=127.0.0.1 port={free_port()} dbname=none")
    said = away.failed(3, "list")
    assert said.startswith("aurora cannot be reached; try again (")
    assert "refused" in said
    unmigrated = Command(tmp_path, postgres_dsn)
    for arguments in (("list",), ("unset", "tokens", "a"), ("set", "tokens", "a", "5")):
        assert "run `duostore migrate`" in unmigrated.failed(1, *arguments)
    assert "aurora.dsn: is required" in Command(tmp_path, None).failed(2, "list")


def test_what_no_server_heeds_is_listed_with_why(command: Command, postgres_dsn: str) -> None:
    command.done("set", "tokens", "alice", "5")
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute(
            "INSERT INTO duostore.control (topic, name, value, caller, update_time)"
            " VALUES ('quota_limit', 'api_calls#bob', '\"5\"', 'psql', now())"
        )
    command.reconfigure(CONFIG.replace("tokens", "credits"))

    _, bad, gone = command.done("list").splitlines()
    assert bad.endswith('passed over, cannot be read: "5"')
    assert gone.endswith("passed over, the quota is not configured")
    bad_, gone_ = json.loads(command.done("list", "--json"))
    assert (bad_["limit"], bad_["value"], bad_["configured"]) == (None, '"5"', True)
    assert (gone_["limit"], gone_["configured"]) == (5, False)
    assert "value" not in gone_
    # Both can be cleared away.
    command.done("unset", "api_calls", "bob")
    command.done("unset", "tokens", "alice")
    assert command.done("list", "--json") == "[]\n"


def test_the_help_says_when_it_is_in_force(command: Command) -> None:
    with ThreadPoolExecutor() as pool:
        top, set_, unset, list_ = pool.map(
            lambda arguments: " ".join(command.done(*arguments, COLUMNS="200").split()),
            [("--help",), ("set", "--help"), ("unset", "--help"), ("list", "--help")],
        )
    assert "Limits of single subjects of a quota, set at run time" in top
    assert "In force within two seconds in every server" in set_
    assert "duostore limit set api_calls alice 5000 --tenant acme" in set_
    assert "Units in a window; 0 blocks the subject." in set_
    assert "A limit of 0 blocks the subject: all that it asks for is denied." in set_
    assert "also of a quota that is no longer configured" in unset
    assert "who set them and when" in list_
