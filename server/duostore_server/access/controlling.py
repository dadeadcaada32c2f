"""Setting flags and read-only mode, for all processes of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from duostore_server.access.checks import refuse
from duostore_server.domain.controls import MAX_NAME_BYTES, MAX_REASON_BYTES, FlagState
from duostore_server.domain.errors import FieldViolation, FlagsElsewhereError, InvalidRequestError
from duostore_server.domain.keys import MAX_KIND_BYTES, listed, part_violations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duostore_server.access.controls import ControlsInForce
    from duostore_server.domain.admin_ports import Controls
    from duostore_server.domain.controls import Flag, FlagValue, ReadOnly, SetFlag
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.policies import Policies


class Controlling:
    """Changes what is set, in Aurora; every process finds it there within two seconds."""

    def __init__(self, controls: Controls, in_force: ControlsInForce, policies: Policies) -> None:
        self._controls = controls
        self._in_force = in_force
        self._policies = policies

    def set_read_only(
        self, kind: str, *, read_only: bool, reason: str, caller: str, deadline: Deadline
    ) -> Sequence[ReadOnly]:
        """Refuse writes of a kind, or of all if it is empty, or take them again.

        Returns all that is read-only then. Raises ``InvalidRequestError``. To take writes
        again of a kind that is configured no more is allowed while it is read-only.
        """
        refuse(self._violations(kind, read_only=read_only, reason=reason))
        if not read_only and not self._is_known(kind) and not self._is_read_only(kind, deadline):
            text = f"{kind!r} is not a configured kind, and not read-only either"
            raise InvalidRequestError([FieldViolation("kind", f"{text} {self._configured()}")])
        self._controls.set_read_only(kind, reason if read_only else None, caller, deadline)
        return self.read_only(deadline)

    def read_only(self, deadline: Deadline) -> Sequence[ReadOnly]:
        """Return all that is read-only, as Aurora has it."""
        found = self._controls.read(deadline).read_only
        return [found[kind] for kind in sorted(found)]

    def flags(self, deadline: Deadline) -> Sequence[FlagState]:
        """Return all flags, as this process has them in force, and what else is set, by name."""
        controlled = self._controls.read(deadline)
        known = self._in_force.flags
        return [
            _state(name, known.get(name), controlled.flags.get(name), self._value(name))
            for name in sorted({*known, *controlled.flags})
        ]

    @property
    def provider(self) -> str:
        """Return who says what the flags are."""
        return self._in_force.provider.name

    def set_flag(self, name: str, value: object, *, caller: str, deadline: Deadline) -> FlagState:
        """Set a flag, or forget what is set of it if ``value`` is None; return what it is then.

        Raises ``InvalidRequestError``, and ``FlagsElsewhereError`` if another says what flags
        are.
        """
        if not self._in_force.provider.is_own:
            raise FlagsElsewhereError(self.provider)
        flag = self._in_force.flags.get(name)
        if value is None:
            refuse(part_violations(name, "name", MAX_NAME_BYTES, empty_ok=False, hash_ok=True))
            if not self._controls.unset_flag(name, deadline) and flag is None:
                raise self._unknown(name)
            return _state(name, flag, None, None if flag is None else flag.default)
        if flag is None:
            raise self._unknown(name)
        if (problem := flag.problem(value)) is not None:
            raise InvalidRequestError([FieldViolation("value", problem)])
        self._controls.set_flag(name, cast("FlagValue", value), caller, deadline)
        found = self._controls.read(deadline).flags.get(name)
        return _state(name, flag, found, None if found is None else found.value)

    def _unknown(self, name: str) -> InvalidRequestError:
        known = listed(self._in_force.flags)
        return InvalidRequestError(
            [FieldViolation("name", f"{name!r} is no flag (flags: {known})")]
        )

    def _value(self, name: str) -> FlagValue | None:
        return self._in_force.flag(name) if name in self._in_force.flags else None

    def _is_known(self, kind: str) -> bool:
        return not kind or self._policies.of_kind(kind) is not None

    def _is_read_only(self, kind: str, deadline: Deadline) -> bool:
        return kind in self._controls.read(deadline).read_only

    def _configured(self) -> str:
        return f"(configured: {listed(self._policies.names())})"

    def _violations(self, kind: str, *, read_only: bool, reason: str) -> Iterator[FieldViolation]:
        yield from part_violations(kind, "kind", MAX_KIND_BYTES, empty_ok=True, hash_ok=False)
        if not read_only:
            return
        if not self._is_known(kind):
            text = f"{kind!r} is not a configured kind"
            yield FieldViolation("kind", f"{text} {self._configured()}")
        yield from part_violations(reason, "reason", MAX_REASON_BYTES, empty_ok=False, hash_ok=True)


def _state(
    name: str, flag: Flag | None, found: SetFlag | None, value: FlagValue | None
) -> FlagState:
    return FlagState(
        name=name,
        value=value if flag is not None or found is None else found.value,
        default=None if flag is None else flag.default,
        description="" if flag is None else flag.description,
        is_set=found is not None,
        caller=found.caller if found else "",
        update_time=found.update_time if found else None,
    )
