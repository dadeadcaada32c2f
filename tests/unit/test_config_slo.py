"""Objectives are declared by what can be measured."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from duostore_server.config import ConfigError, load, objectives
from duostore_server.domain.objectives import RPC_BOUNDS, Objectives, Timed

if TYPE_CHECKING:
    from pathlib import Path


def declared(text: str, folder: Path) -> Objectives:
    file = folder / "duostore.toml"
    file.write_text(f"[kinds.note]\n{text}", encoding="utf-8")
    return objectives(load(file, {}))


def test_what_is_not_declared_has_its_default(tmp_path: Path) -> None:
    assert declared("", tmp_path) == Objectives(
        window=timedelta(days=30),
        read_latency=Timed(0.95, 0.05),
        availability=0.999,
        projection_lag=Timed(0.999, 5.0),
        consistency=0.9999,
    )


def test_what_is_declared_is_promised_in_words(tmp_path: Path) -> None:
    made = declared(
        '[slo]\nwindow = "28d"\n'
        '[slo.read_latency]\ntarget = 0.9\nthreshold = "2500ms"\n'
        "[slo.availability]\ntarget = 0.99995\n"
        '[slo.projection_lag]\nthreshold = "1m"\n'
        "[slo.consistency]\ntarget = 0.999\n",
        tmp_path,
    )
    assert made.window == timedelta(days=28)
    assert made.words() == {
        "read_latency": "90 % of Gets are answered within 2.5 s",
        "availability": "99.995 % of calls do not fail by fault of the service",
        "projection_lag": "99.9 % of the time no change waits for more than 60 s to be projected",
        "consistency": "99.9 % of saves are found right in DynamoDB and the cache 60 s after they "
        "were made",
    }


@pytest.mark.parametrize("threshold", ["1ms", "50ms", "1s", "1000ms", "30s"])
def test_a_threshold_is_a_bound_by_which_calls_are_counted(threshold: str, tmp_path: Path) -> None:
    made = declared(f'[slo.read_latency]\nthreshold = "{threshold}"', tmp_path)
    assert made.read_latency.threshold in RPC_BOUNDS


@pytest.mark.parametrize("threshold", ["2ms", "60ms", "3s"])
def test_between_two_bounds_nothing_is_known(threshold: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slo\.read_latency\.threshold: must be one of 1ms, 5ms"):
        declared(f'[slo.read_latency]\nthreshold = "{threshold}"', tmp_path)


@pytest.mark.parametrize("target", ["0", "0.0", "1", "1.0", "1.5", "-0.1", "true", '"most"', "nan"])
def test_a_target_is_a_share_that_leaves_a_budget(target: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slo\.availability\.target"):
        declared(f"[slo.availability]\ntarget = {target}", tmp_path)


@pytest.mark.parametrize("window", ["6d", "91d"])
def test_a_window_is_a_week_to_three_months(window: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slo\.window"):
        declared(f'[slo]\nwindow = "{window}"', tmp_path)
