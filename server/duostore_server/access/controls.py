"""What is set while the service runs, as one process knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import ControlsUnknownError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from duostore_server.domain.admin_ports import Controls
    from duostore_server.domain.controls import Controlled, Flag, FlagValue, ReadOnly

# As long as a write has: where Aurora is so slow that writes still go through, so does this.
_READ_SECONDS: Final = 2.0
_ALL: Final = ""


class FlagProvider(Protocol):
    """Says what flags are: Duostore itself, by what is set, or somebody else."""

    @property
    def name(self) -> str:
        """Return who it is: ``duostore``, or another."""
        ...

    @property
    def is_own(self) -> bool:
        """Whether what is set is what the flags are."""
        ...

    def know(self, values: Mapping[str, FlagValue]) -> None:
        """Take note of what is set."""
        ...

    def value(self, flag: Flag) -> FlagValue | None:
        """Return what a flag is, its default if nothing is said of it; None if unknown."""
        ...


class ControlsInForce:
    """Knows the flags, and what is read-only, as of the last refresh.

    Until the first one nothing may be written, and no flag is known: to take what is not known
    for what is not set would write in read-only mode, and answer documents in a shape that
    readers have done with. What was known stays in force while Aurora cannot be asked. Flags are
    looked up once a refresh, not once a call. Safe to use from many threads.

    A provider that is not Duostore's own is asked by ``evaluate``, apart from ``refresh``:
    whether it answers, and when, is nothing to read-only mode.
    """

    def __init__(
        self,
        controls: Controls,
        flags: Mapping[str, Flag],
        provider: FlagProvider,
        *,
        changed: Callable[[Collection[str]], None] = lambda _kinds: None,
        refused: Callable[[Flag, object], None] = lambda _flag, _value: None,
    ) -> None:
        """``changed`` is told the kinds that are read-only, at each refresh.

        ``refused`` is told of a value that its flag may not have, and which is not in force.
        """
        self._controls = controls
        self._flags = dict(flags)
        self._provider = provider
        self._changed = changed
        self._refused = refused
        # Never changed, but replaced as a whole; empty or None until it is known.
        self._values: Mapping[str, FlagValue | None] = {}
        self._read_only: Mapping[str, ReadOnly] | None = None

    @property
    def flags(self) -> Mapping[str, Flag]:
        """Return the flags that the service asks for, by name."""
        return self._flags

    @property
    def provider(self) -> FlagProvider:
        """Return who says what the flags are."""
        return self._provider

    def flag(self, name: str) -> FlagValue | None:
        """Return what a flag of ``flags`` is now, None if that is not known yet. Asks nobody."""
        return self._values.get(name)

    def read_only(self) -> Mapping[str, ReadOnly]:
        """Return what is read-only now, by kind; all kinds by the empty name, if it is known."""
        return self._read_only or {}

    def check_writable(self, kinds: Iterable[str]) -> None:
        """Raise ``ReadOnlyError`` if one of the kinds is read-only now. Asks nobody.

        ``ControlsUnknownError`` if that is not known yet.
        """
        if self._read_only is None:
            raise ControlsUnknownError
        if not self._read_only:
            return
        for kind in (_ALL, *kinds):
            if (found := self._read_only.get(kind)) is not None:
                raise ReadOnlyError(found.kind, found.reason)

    def refresh(self) -> bool:
        """Read what is set; return False, for there is never more to do at once.

        What was known stays in force if it raises, as ``Controls.read`` does.
        """
        found = self._controls.read(Deadline.after(_READ_SECONDS))
        self._read_only = found.read_only
        self._changed(found.read_only)
        if self._provider.is_own:
            self._provider.know(values_of(found))
            self.evaluate()
        return False

    def evaluate(self) -> bool:
        """Ask the provider for the flags, however long that takes; return False, as ``refresh``.

        What it cannot tell stays as it was, or is still not known.
        """
        self._values = {name: self._value(flag) for name, flag in self._flags.items()}
        return False

    def _value(self, flag: Flag) -> FlagValue | None:
        value = self._provider.value(flag)
        if value is None:
            return self._values.get(flag.name)
        if flag.problem(value) is not None:
            self._refused(flag, value)
            known = self._values.get(flag.name)
            return flag.default if known is None else known
        return value


def values_of(controlled: Controlled) -> dict[str, FlagValue]:
    """Return what flags are set to, those that can be read."""
    return {
        name: state.value for name, state in controlled.flags.items() if state.value is not None
    }
