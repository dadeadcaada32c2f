"""What `duostore dev` tells those who start it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

from psycopg.conninfo import conninfo_to_dict

from duostore_server.cli.dev import greeting, passed_over, program
from duostore_server.cli.source_notes import told, unfit
from duostore_server.config import load
from duostore_server.storage.aurora.triggers import Unnoted, Why

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


DYNAMODB = "http://127.0.0.1:46001"
DSN = "host='/tmp/socket' port='5433' user='postgres' dbname='postgres'"


def _script(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\necho ran\n")
    path.chmod(0o755)
    return str(path)


def _runs(command: str) -> bool:
    ran = subprocess.run(
        command, shell=True, check=False, capture_output=True, text=True, timeout=60
    )
    return ran.stdout == "ran\n"


def test_a_program_is_called_as_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _script(tmp_path / "a folder" / "duostore")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert program(script) == shlex.quote(script)
    assert _runs(program(script))
    monkeypatch.setenv("PATH", f"{tmp_path / 'a folder'}:/usr/bin:/bin")
    assert program(script) == "duostore"
    assert _runs(program(script))


def test_another_program_of_that_name_on_the_path_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "bin" / "duostore")
    mine = _script(tmp_path / "venv" / "duostore")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert program(mine) == mine


def test_a_module_is_called_as_one() -> None:
    assert program("/somewhere/cli/main.py") == (
        f"{shlex.quote(sys.executable)} -m duostore_server.cli.main"
    )


def test_the_greeting_names_the_program_so(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[kinds.proposal]\n")
    lines = greeting(load(config, {}), tmp_path / "data", ".venv/bin/duostore", DSN, DYNAMODB)
    assert "  .venv/bin/duostore get proposal 1 --target 127.0.0.1:50051" in lines


def test_of_quotas_alone_the_greeting_tries_one(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[quotas.'api calls']\nlimit = 5\nwindow = '1m'\n")
    lines = greeting(load(config, {}), tmp_path / "data", "duostore", DSN, DYNAMODB)
    assert "  duostore quota 'api calls' alice --target 127.0.0.1:50051" in lines
    assert any("duostore.v1.DataAccess/Quota" in line for line in lines)


def test_of_what_nobody_saves_the_greeting_tries_a_query(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    (tmp_path / "one.sql").write_text("SELECT 1 AS one")
    (tmp_path / "ids.sql").write_text("SELECT :id AS id")
    query = "[queries.'the first']\nsql = 'one.sql'\n"
    source = "{ table = 'public.a', fields = ['id'], ids = 'ids.sql' }"
    card = f"[kinds.card]\nread_model = 'one.sql'\ndepends_on = [{source}]\n"

    def told(text: str) -> str:
        config.write_text(text)
        return "\n".join(greeting(load(config, {}), tmp_path / "data", "duostore", DSN, DYNAMODB))

    assert "  duostore query 'the first' --target 127.0.0.1:50051" in told(card + query)
    assert "duostore.v1.DataAccess/Query" in told(query)
    assert "duostore.v1.DataAccess/Get" in told(card)
    assert "duostore get note 1 " in told(card + "[kinds.note]\n" + query)


def test_the_greeting_tells_how_to_look_into_the_database(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[kinds.note]\n")
    lines = greeting(load(config, {}), tmp_path / "data", "duostore", DSN, DYNAMODB)
    (line,) = [line for line in lines if line.startswith("  psql ")]
    program_, dsn = shlex.split(line)
    assert (program_, conninfo_to_dict(dsn)) == ("psql", conninfo_to_dict(DSN))
    spaced = greeting(
        load(config, {}),
        tmp_path,
        "duostore",
        "host='/tmp/it''s a' port=1".replace("''", "\\'"),
        DYNAMODB,
    )
    (line,) = [line for line in spaced if line.startswith("  psql ")]
    assert conninfo_to_dict(shlex.split(line)[1])["host"] == "/tmp/it's a"


def test_the_greeting_tells_how_to_look_into_dynamodb(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[dynamodb]\nregion = 'eu-central-1'\n[kinds.note]\n")
    lines = greeting(load(config, {}), tmp_path / "data", "duostore", DSN, DYNAMODB)
    (line,) = [line for line in lines if " aws " in line]
    *_, endpoint, url, region, name = shlex.split(line)
    assert (endpoint, url) == ("--endpoint-url", DYNAMODB)
    assert (region, name) == ("--region", "us-east-1")


SET = """
[server]
workers = 4
threads = 30
[aurora]
dsn = "host=db"
pool_max = 6
[dynamodb]
region = "us-east-1"
table_prefix = "x_"
statements = true
[cache]
nodes = ["10.0.0.1:11211"]
memory_max_bytes = "8MiB"
[kinds.note]
"""


def test_what_is_of_no_account_of_the_configuration_is_told(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text(SET)

    def told(**environ: str) -> list[str]:
        loaded = load(config, environ)
        return passed_over(loaded, loaded.embedded(dsn=DSN, endpoint_url=DYNAMODB))

    # The region of the file is that of the emulator, and in force.
    assert told() == ["server.workers", "aurora.dsn", "dynamodb.statements", "cache.nodes"]
    secret = "a-token-of-32-characters-and-more"
    assert told(DUOSTORE__ADMIN__TOKEN=secret)[-1] == "admin.token"
    assert told(DUOSTORE__ADMIN__OPEN="false")[-1] == "admin.open"
    assert told(DUOSTORE__ADMIN__OPEN="true") == told()
    lines = greeting(
        load(config, {"DUOSTORE__ADMIN__TOKEN": secret}), tmp_path, "duostore", DSN, DYNAMODB
    )
    assert "  server.workers, aurora.dsn, dynamodb.statements, cache.nodes, admin.token" in lines
    assert secret not in "\n".join(lines)


def test_of_no_settings_nothing_is_said(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[kinds.note]\n")
    lines = greeting(load(config, {}), tmp_path, "duostore", DSN, DYNAMODB)
    assert not any("no account" in line for line in lines)
    assert "  duostore status --target 127.0.0.1:50051" in lines


def test_of_a_schema_the_greeting_saves_its_example_or_nothing(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[kinds.note]\nschema = 'note.json'\n")

    def told(schema: str) -> str:
        (tmp_path / "note.json").write_text(schema)
        return "\n".join(greeting(load(config, {}), tmp_path / "data", "duostore", DSN, DYNAMODB))

    assert '"data": {"a": 1}' in told('{"examples": [{"a": 1}, {"b": 2}]}')
    without = told('{"required": ["a"]}')
    assert "DataAccess/Save" not in without
    assert "DataAccess/Get" in without


NO_COLUMN = Unnoted("card", "table:public.a", Why.NO_COLUMN, "has no column b")


def test_what_does_not_fit_a_table_is_told_with_its_key() -> None:
    no_table = Unnoted("a list", "table:public.c", Why.NO_TABLE, "does not exist")
    assert [unfit(NO_COLUMN), unfit(no_table)] == [
        "kinds.card.depends_on: table:public.a has no column b: its fields and its table disagree",
        'kinds."a list".depends_on: table:public.c does not exist',
    ]


def test_what_is_said_of_sources_is_one_line_for_a_kind() -> None:
    found = told(
        [
            NO_COLUMN,
            Unnoted("list", "kind:customer", Why.CHANGED),
            Unnoted("list", "table:public.a", Why.CHANGED),
            Unnoted("card", "kind:customer", Why.NOT_WATCHED),
            Unnoted("card", "table:public.a", Why.NOT_WATCHED),
            Unnoted("card", "table:public.c", Why.CHANGED),
        ],
        advice="restart",
    )
    assert found.problems == (unfit(NO_COLUMN),)
    assert found.notes == (
        "changes of kind:customer, table:public.a are not noted for card: restart",
        "the SQL of list was changed: restart",
    )
