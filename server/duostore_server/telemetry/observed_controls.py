"""Flags and read-only mode, with every call measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from duostore_server.domain.admin_ports import Controls
    from duostore_server.domain.controls import Controlled, FlagValue
    from duostore_server.domain.deadline import Deadline
    from duostore_server.telemetry.metrics import Metrics


class ObservedControls:
    """Measures ``Controls`` and changes nothing about them."""

    def __init__(self, delegate: Controls, metrics: Metrics) -> None:
        self._delegate = delegate
        self._read = StoreCalls(metrics, Store.AURORA, "controls_read")
        self._set_flag = StoreCalls(metrics, Store.AURORA, "flag_set")
        self._unset_flag = StoreCalls(metrics, Store.AURORA, "flag_unset")
        self._set_read_only = StoreCalls(metrics, Store.AURORA, "read_only_set")

    def read(self, deadline: Deadline) -> Controlled:
        with self._read() as call:
            found = self._delegate.read(deadline)
            if not found.flags and not found.read_only:
                call.outcome = "miss"
            return found

    def set_flag(self, name: str, value: FlagValue, caller: str, deadline: Deadline) -> None:
        with self._set_flag():
            self._delegate.set_flag(name, value, caller, deadline)

    def unset_flag(self, name: str, deadline: Deadline) -> bool:
        with self._unset_flag() as call:
            was_set = self._delegate.unset_flag(name, deadline)
            if not was_set:
                call.outcome = "miss"
            return was_set

    def set_read_only(self, kind: str, reason: str | None, caller: str, deadline: Deadline) -> None:
        with self._set_read_only():
            self._delegate.set_read_only(kind, reason, caller, deadline)
