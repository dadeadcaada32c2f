"""The rules for Prometheus say what they should of any counts: promtool judges."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.installed import MissingProgramError, promtool

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = "duostore.rules.yml"
TESTS = sorted(FOLDER.glob("*.test.yml"))


def judged(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    try:
        program = promtool()
    except MissingProgramError as error:
        pytest.skip(str(error))
    return subprocess.run(
        [program, *arguments], cwd=folder, check=False, capture_output=True, text=True, timeout=110
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


# A scene, and what of the rules it is there to keep.
MUTANTS = [
    ("bursts page while", " and duostore:slo_burn:rate5m > 14.4", ""),
    ("without any series", "(duostore:slo_total:rate5m > 0)", "duostore:slo_total:rate5m"),
    ("calls of those who operate", "|CheckConsistency", ""),
    ("counters that begin anew", "rate(duostore_rpc", "deriv(duostore_rpc"),
    ("slow Gets burn", 'le="0.05"', 'le="0.1"'),
    ("changes that wait", "< 60\n", "< 6000\n"),
    ("changes that wait", "or\n          group by (job)", "or 0 *\n          group by (job)"),
    ("saves that are found wrong", 'age="60s",outcome="', 'age="1s",outcome="'),
    ("the first of what", "unless\n            duostore_drift", "and\n            duostore_drift"),
    ("the first of what", "duostore_rpcs_in_flight offset 15m", "duostore_rpcs_in_flight"),
    ("a store that is down", 'store!="cache"', 'store=~".*"'),
    ("instances and whole", "up == 0 and on (job, instance)", "up == 0 or on (job, instance)"),
    ("a backfill that does not", "unless sum by (job) (increase", "and sum by (job) (increase"),
]


@pytest.mark.parametrize(("scene", "was", "becomes"), MUTANTS)
def test_rules_that_are_spoilt_are_found_out(
    scene: str, was: str, becomes: str, tmp_path: Path
) -> None:
    rules = (FOLDER / RULES).read_text(encoding="utf-8")
    assert was in rules
    (tmp_path / RULES).write_text(rules.replace(was, becomes), encoding="utf-8")
    for file in TESTS:
        tests = yaml.safe_load(file.read_text(encoding="utf-8"))
        tests["tests"] = [test for test in tests["tests"] if test["name"].startswith(scene)]
        if tests["tests"]:
            (tmp_path / file.name).write_text(yaml.safe_dump(tests))
            assert judged("check", "rules", RULES, folder=tmp_path).returncode == 0
            assert judged("test", "rules", file.name, folder=tmp_path).returncode == 1
            return
    pytest.fail(f"there is no scene {scene}")
