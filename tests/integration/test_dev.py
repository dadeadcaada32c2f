"""How `duostore dev` ends, and what it says of its stores while it runs."""

from __future__ import annotations

import re
import shlex
import signal
from typing import TYPE_CHECKING

import boto3
import psutil
import pytest

from tests.support.dev import STOP_SECONDS, running_dev

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.dev import RunningDev

CONFIG = "[dynamodb]\ntable_prefix = 'mine_'\n[kinds.note]\n"


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[RunningDev]:
    (tmp_path / "duostore.toml").write_text(CONFIG)
    with running_dev(tmp_path, tmp_path / "data") as running:
        yield running


def child(dev: RunningDev, word: str) -> psutil.Process:
    """Return the child that serves a store: it has a word in its command line."""
    (found,) = (
        process
        for process in psutil.Process(dev.process.pid).children()
        if any(word in argument for argument in process.cmdline())
        and not any("watchdog" in argument for argument in process.cmdline())
    )
    return found


def test_its_dynamodb_is_reached_as_it_says_and_a_signal_that_ends_it_is_named(
    dev: RunningDev,
) -> None:
    (line,) = re.findall(r"^  (AWS_.*)$", dev.printed(), re.MULTILINE)
    words = shlex.split(line)
    settings = dict(word.split("=", 1) for word in words if word.startswith("AWS_"))
    options = dict(zip(words[-4::2], words[-3::2], strict=True))
    client = boto3.client(
        "dynamodb",
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=options["--endpoint-url"],
        region_name=options["--region"],
    )
    try:
        assert "mine_projection" in client.list_tables()["TableNames"]
    finally:
        client.close()
    dev.process.send_signal(signal.SIGTERM)
    assert dev.process.wait(STOP_SECONDS) == 0
    assert dev.printed().rstrip().endswith("Stopped by SIGTERM.")


@pytest.mark.parametrize(
    ("word", "store"), [("dynamodb_server", "DynamoDB"), ("postgres", "PostgreSQL")]
)
def test_it_ends_with_a_store_that_died_and_says_so(dev: RunningDev, word: str, store: str) -> None:
    child(dev, word).kill()
    assert dev.process.wait(STOP_SECONDS) == 3
    told = dev.printed()
    assert f"the embedded {store} was ended by SIGKILL" in told
    assert "Start it again" in told
    assert "Stopped by" not in told
