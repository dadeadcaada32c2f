"""What `duostore dev` tells those who start it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

from duostore_server.cli.dev import greeting, program
from duostore_server.config import load

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


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
    lines = greeting(load(config, {}), tmp_path / "data", ".venv/bin/duostore")
    assert "  .venv/bin/duostore get proposal 1 --target 127.0.0.1:50051" in lines


def test_of_quotas_alone_the_greeting_tries_one(tmp_path: Path) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text("[quotas.'api calls']\nlimit = 5\nwindow = '1m'\n")
    lines = greeting(load(config, {}), tmp_path / "data", "duostore")
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
        return "\n".join(greeting(load(config, {}), tmp_path / "data", "duostore"))

    assert "  duostore query 'the first' --target 127.0.0.1:50051" in told(card + query)
    assert "duostore.v1.DataAccess/Query" in told(query)
    assert "duostore.v1.DataAccess/Get" in told(card)
    assert "duostore get note 1 " in told(card + "[kinds.note]\n" + query)
