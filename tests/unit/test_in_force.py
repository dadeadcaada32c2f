"""What a process knows before its first call, and that nothing keeps it from starting."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from openfeature.provider.in_memory_provider import InMemoryProvider
from prometheus_client import CollectorRegistry

from duostore_server.config import load
from duostore_server.domain.controls import Controlled
from duostore_server.domain.errors import (
    ControlsUnknownError,
    DeadlineExceededError,
    Store,
    StoreUnavailableError,
)
from duostore_server.in_force import CONTROLS_EVERY_SECONDS, in_force
from duostore_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duostore_server.config import Settings
    from duostore_server.domain.deadline import Deadline

KINDS = """
[kinds.proposal]
"""


class Controls:
    """``admin_ports.Controls`` of which nothing is set; with ``error``, away."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def read(self, _: Deadline) -> Controlled:
        if self.error is not None:
            raise self.error
        return Controlled()

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    config = tmp_path / "duostore.toml"
    config.write_text(KINDS)
    return load(config, {})


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A provider of a company that answers nothing until the test is over."""
    over = threading.Event()

    class Hanging(InMemoryProvider):
        def resolve_string_details(self, *arguments: Any, **named: Any) -> Any:
            over.wait(60)
            return super().resolve_string_details(*arguments, **named)

    module = ModuleType("hanging_flags")
    vars(module)["provider"] = lambda: Hanging({})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield f"{module.__name__}:provider"
    over.set()


@pytest.mark.parametrize(
    "error", [StoreUnavailableError(Store.AURORA), DeadlineExceededError()], ids=["away", "slow"]
)
def test_a_process_starts_without_aurora_and_refuses_writes_until_it_is_there(
    settings: Settings, error: Exception
) -> None:
    controls = Controls(error)
    now = in_force(settings, controls, Metrics(CollectorRegistry()))
    with pytest.raises(ControlsUnknownError):
        now.controls.check_writable(("proposal",))
    controls.error = None
    assert list(now.works) == ["controls"]
    assert not now.works["controls"]()
    now.controls.check_writable(("proposal",))


def test_it_is_read_so_often_that_a_slow_read_is_still_in_force_within_two_seconds() -> None:
    # A read that has just begun misses what is set then: one rest, and two reads of half a second.
    assert CONTROLS_EVERY_SECONDS + 2 * 0.5 <= 2


def test_a_provider_that_hangs_keeps_neither_the_start_nor_read_only_mode_waiting(
    tmp_path: Path, hanging: str
) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text(
        f'[flags]\nprovider = "{hanging}"\n[kinds.proposal]\nprojection_version = 2\n'
        'transforms = { 2 = "t.jmespath" }\n'
    )
    (tmp_path / "t.jmespath").write_text("{id: id}")
    now = in_force(load(config, {}), Controls(), Metrics(CollectorRegistry()))
    now.controls.check_writable(("proposal",))
    assert list(now.works) == ["controls", "flags"]
    assert {now.controls.flag(name) for name in now.controls.flags} == {None}
