"""What is set while the service runs: when it is in force, and what may be set."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

from duostore_server.access.controlling import Controlling
from duostore_server.access.controls import ControlsInForce
from duostore_server.domain.controls import Controlled, Flag, ReadOnly, SetFlag
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import (
    ControlsUnknownError,
    FlagsElsewhereError,
    InvalidRequestError,
    ReadOnlyError,
    Store,
    StoreUnavailableError,
)
from duostore_server.domain.policies import KindPolicy, Policies, ProjectionMode
from duostore_server.flags import OpenFeatureFlags, ProviderError, provider_of

if TYPE_CHECKING:
    from duostore_server.domain.controls import FlagValue

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
WORD = Flag("word", "a", "A word.", choices=("a", "b"))
SHARE = Flag("share", 0, "A share.", most=100)
FLAGS = {flag.name: flag for flag in (WORD, SHARE)}
POLICIES = Policies(
    {
        "proposal": KindPolicy(
            cache_ttl=60, absent_ttl=10, projection=ProjectionMode.INLINE, max_bytes=1000
        )
    }
)


class FakeControls:
    """``admin_ports.Controls`` in memory; with ``error``, away."""

    def __init__(self) -> None:
        self.flags: dict[str, SetFlag] = {}
        self.closed: dict[str, ReadOnly] = {}
        self.error: Exception | None = None

    def read(self, deadline: Deadline) -> Controlled:
        assert deadline.remaining() > 0
        if self.error is not None:
            raise self.error
        return Controlled(dict(self.flags), dict(self.closed))

    def set_flag(self, name: str, value: FlagValue, caller: str, deadline: Deadline) -> None:
        del deadline
        self.flags[name] = SetFlag(value, caller, NOON)

    def unset_flag(self, name: str, deadline: Deadline) -> bool:
        del deadline
        return self.flags.pop(name, None) is not None

    def set_read_only(self, kind: str, reason: str | None, caller: str, deadline: Deadline) -> None:
        del deadline
        self.closed.pop(kind, None)
        if reason is not None:
            self.closed[kind] = ReadOnly(kind, reason, caller, NOON)


class Stack:
    """One process, and another by which things are set."""

    def __init__(self, provider: Any = None) -> None:
        self.controls = FakeControls()
        self.shown: list[set[str]] = []
        self.refused: list[tuple[str, object]] = []
        self.in_force = ControlsInForce(
            self.controls,
            FLAGS,
            OpenFeatureFlags(provider),
            changed=lambda kinds: self.shown.append(set(kinds)),
            refused=lambda flag, value: self.refused.append((flag.name, value)),
        )
        self.controlling = Controlling(self.controls, self.in_force, POLICIES)

    def set_flag(self, name: str, value: object) -> Any:
        return self.controlling.set_flag(name, value, caller="ops", deadline=soon())

    def read_only(self, kind: str, reason: str | None = "an upgrade") -> Any:
        return self.controlling.set_read_only(
            kind,
            read_only=reason is not None,
            reason=reason or "",
            caller="ops",
            deadline=soon(),
        )

    def values(self) -> dict[str, FlagValue | None]:
        self.in_force.refresh()
        if not self.in_force.provider.is_own:
            self.in_force.evaluate()
        return {name: self.in_force.flag(name) for name in FLAGS}


def soon() -> Deadline:
    return Deadline.after(10)


def test_before_the_first_refresh_nothing_may_be_written_and_no_flag_is_known() -> None:
    stack = Stack()
    stack.controls.error = StoreUnavailableError(Store.AURORA)
    with pytest.raises(StoreUnavailableError):
        stack.in_force.refresh()
    assert {name: stack.in_force.flag(name) for name in FLAGS} == {"word": None, "share": None}
    with pytest.raises(ControlsUnknownError, match="have not been read"):
        stack.in_force.check_writable(("proposal",))
    stack.controls.error = None
    assert stack.values() == {"word": "a", "share": 0}
    stack.in_force.check_writable(("proposal",))


def test_read_only_mode_waits_for_no_provider() -> None:
    answer = threading.Event()

    class Hanging(InMemoryProvider):
        def resolve_string_details(self, *arguments: Any, **named: Any) -> Any:
            answer.wait(60)
            return super().resolve_string_details(*arguments, **named)

    stack = Stack(Hanging({"word": InMemoryFlag("b", {"b": "b"})}))
    evaluating = threading.Thread(target=stack.in_force.evaluate)
    evaluating.start()
    try:
        stack.read_only("proposal")
        stack.in_force.refresh()
        with pytest.raises(ReadOnlyError):
            stack.in_force.check_writable(("proposal",))
        assert stack.in_force.flag("word") is None
    finally:
        answer.set()
        evaluating.join()
    assert stack.in_force.flag("word") == "b"


def test_what_is_set_is_in_force_from_the_next_refresh_on_and_until_it_is_unset() -> None:
    stack = Stack()
    stack.in_force.refresh()
    assert stack.set_flag("word", "b").value == "b"
    stack.set_flag("share", 30)
    assert stack.in_force.flag("word") == "a"
    assert stack.values() == {"word": "b", "share": 30}
    stack.set_flag("word", None)
    assert stack.values() == {"word": "a", "share": 30}


def test_what_was_known_stays_in_force_while_aurora_is_away() -> None:
    stack = Stack()
    stack.set_flag("word", "b")
    stack.read_only("proposal")
    stack.in_force.refresh()
    stack.controls.error = StoreUnavailableError(Store.AURORA)
    with pytest.raises(StoreUnavailableError):
        stack.in_force.refresh()
    assert stack.in_force.flag("word") == "b"
    with pytest.raises(ReadOnlyError):
        stack.in_force.check_writable(("proposal",))


@pytest.mark.parametrize(("kind", "others"), [("proposal", True), ("", False)])
def test_a_kind_or_the_whole_service_is_read_only(kind: str, *, others: bool) -> None:
    stack = Stack()
    stack.read_only(kind)
    stack.in_force.refresh()
    with pytest.raises(ReadOnlyError, match="read-only for now: an upgrade") as refusal:
        stack.in_force.check_writable(("note", "proposal"))
    assert refusal.value.metadata == {"kind": kind}
    if others:
        stack.in_force.check_writable(("note",))
    assert stack.read_only(kind, None) == []
    stack.in_force.refresh()
    stack.in_force.check_writable(("proposal",))
    assert stack.shown == [{kind}, set()]


@pytest.mark.parametrize(
    ("kind", "reason", "field"),
    [("propsal", "r", "kind"), ("", "", "reason"), ("", "x" * 201, "reason"), ("", "\n", "reason")],
)
def test_what_makes_no_sense_is_not_made_read_only(kind: str, reason: str, field: str) -> None:
    stack = Stack()
    with pytest.raises(InvalidRequestError) as refusal:
        stack.controlling.set_read_only(
            kind, read_only=True, reason=reason, caller="", deadline=soon()
        )
    assert [violation.field for violation in refusal.value.violations] == [field]
    assert stack.controls.closed == {}


def test_a_kind_that_is_configured_no_more_can_be_written_again() -> None:
    stack = Stack()
    stack.controls.closed["gone"] = ReadOnly("gone", "r", "", NOON)
    assert stack.read_only("gone", None) == []


def test_a_kind_that_there_is_not_cannot_be_written_again_and_one_that_can_be_stays_so() -> None:
    stack = Stack()
    stack.read_only("")
    with pytest.raises(InvalidRequestError) as refusal:
        stack.read_only("propsal", None)
    [violation] = refusal.value.violations
    assert violation.field == "kind"
    assert violation.description.endswith("not read-only either (configured: proposal)")
    assert set(stack.controls.closed) == {""}
    assert [found.kind for found in stack.read_only("proposal", None)] == [""]


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("word", "c", "value"),
        ("share", 101, "value"),
        ("wrod", "a", "name"),
        ("wrod", None, "name"),
    ],
)
def test_what_a_flag_may_not_be_is_refused(name: str, value: object, field: str) -> None:
    stack = Stack()
    with pytest.raises(InvalidRequestError) as refusal:
        stack.set_flag(name, value)
    assert [violation.field for violation in refusal.value.violations] == [field]


def test_a_flag_that_nobody_asks_for_is_listed_and_can_be_unset() -> None:
    stack = Stack()
    stack.controls.flags["projection_read.old.2"] = SetFlag(5, "ops", NOON)
    stack.set_flag("word", "b")
    stack.in_force.refresh()
    old, share, word = stack.controlling.flags(soon())
    assert (word.name, word.value, word.default, word.is_set, word.used) == (
        "word",
        "b",
        "a",
        True,
        True,
    )
    assert (share.value, share.is_set, share.used) == (0, False, True)
    assert (old.name, old.value, old.is_set, old.used) == ("projection_read.old.2", 5, True, False)
    stack.set_flag(old.name, None)
    assert old.name not in stack.controls.flags


def test_a_row_that_its_flag_may_not_have_is_told_and_not_in_force() -> None:
    stack = Stack()
    stack.controls.flags["share"] = SetFlag(1000, "", NOON)
    stack.controls.flags["word"] = SetFlag(None, "", NOON)
    assert stack.values() == {"word": "a", "share": 0}
    assert stack.refused == [("share", 1000)]


class Moody(InMemoryProvider):
    """A company's provider, whose service may be away."""

    away = False

    def resolve_string_details(self, *args: Any, **named: Any) -> Any:
        if self.away:
            raise ConnectionError
        return super().resolve_string_details(*args, **named)


def test_a_companys_provider_says_what_flags_are_and_read_only_stays_ours() -> None:
    provider = Moody({"word": InMemoryFlag("on", {"on": "b"})})
    stack = Stack(provider)
    stack.controls.flags["share"] = SetFlag(70, "", NOON)
    assert stack.values() == {"word": "b", "share": 0}
    provider.away = True
    assert stack.values() == {"word": "b", "share": 0}
    with pytest.raises(FlagsElsewhereError, match="In-Memory Provider"):
        stack.set_flag("word", "a")
    stack.read_only("")
    stack.in_force.refresh()
    with pytest.raises(ReadOnlyError):
        stack.in_force.check_writable(("proposal",))


def moody() -> Moody:
    return Moody({})


def test_a_provider_is_had_by_its_place() -> None:
    assert isinstance(provider_of(f"{__name__}:moody"), Moody)


@pytest.mark.parametrize(
    "place", ["no_such_module:f", f"{__name__}:no_such_function", f"{__name__}:soon"]
)
def test_a_provider_that_cannot_be_had_is_named(place: str) -> None:
    with pytest.raises(ProviderError, match=r"flags\.provider"):
        provider_of(place)
