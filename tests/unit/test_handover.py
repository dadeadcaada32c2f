"""The processes of a service have the settings that their supervisor read, whatever is edited."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from duostore_server.cli.handover import handed_over, taken_over
from duostore_server.config import Settings, load

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "not-to-be-seen"
CONFIG = f"""
[aurora]
dsn = "postgresql://duostore:{SECRET}@db/duostore"
[dynamodb]
region = "eu-central-1"
[cache]
nodes = ["a:1", "b:2"]
[kinds.proposal]
schema = "proposal.json"
"""
TAKER = """
import sys
from duostore_server.cli.handover import taken_over
settings = taken_over(int(sys.argv[1]))
print(settings.aurora.dsn.get_secret_value(), *settings.cache.nodes)
print(*(v.field for v in settings.kinds["proposal"].document_schema.violations({})))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "proposal.json").write_text('{"required": ["title"]}')
    config = tmp_path / "duostore.toml"
    config.write_text(CONFIG)
    loaded = load(config, {}, serving=True)
    (tmp_path / "proposal.json").unlink()
    config.write_text("now it is [not TOML")
    return loaded


def test_each_process_takes_the_same_settings_schemas_and_secrets_included(
    settings: Settings,
) -> None:
    with handed_over(settings) as descriptor:
        assert taken_over(os.dup(descriptor)) == settings
        for _ in range(2):
            child = subprocess.run(
                [sys.executable, "-c", TAKER, str(descriptor)],
                pass_fds=(descriptor,),
                check=True,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert child.stdout.splitlines() == [
                f"postgresql://duostore:{SECRET}@db/duostore a:1 b:2",
                "data.title",
            ]


def test_what_is_secret_in_it_has_no_name_by_which_others_could_open_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.rglob("*"))
    with handed_over(settings) as descriptor:
        assert os.fstat(descriptor).st_nlink == 0
        assert not os.get_inheritable(descriptor)
        assert set(tmp_path.rglob("*")) == before
