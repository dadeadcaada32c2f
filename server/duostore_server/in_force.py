"""What is set while the service runs, and what follows from it, for one process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from duostore_server import codec
from duostore_server.access.controls import ControlsInForce
from duostore_server.access.shapes import Shapes, flags_of
from duostore_server.config import policies as policies_of
from duostore_server.domain.errors import DeadlineExceededError, StoreError
from duostore_server.flags import OpenFeatureFlags, provider_of
from duostore_server.telemetry.causes import cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duostore_server.config import Settings
    from duostore_server.domain.admin_ports import Controls
    from duostore_server.domain.controls import Flag
    from duostore_server.telemetry.metrics import Metrics

# How often each process reads what is set: it is in force within two seconds, of which a read may
# take most on a bad day.
CONTROLS_EVERY_SECONDS: Final = 0.5
# A provider of a company has so long before the first call; then flags are not known for a while.
_PROVIDER_SECONDS: Final = 2.0
_QUIET_SECONDS: Final = 60.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class InForce:
    """The flags and what is read-only, and the shapes of projections that flags decide.

    ``works`` are to be done every ``CONTROLS_EVERY_SECONDS``, each apart from the others, by name.
    """

    controls: ControlsInForce
    shapes: Shapes
    works: Mapping[str, Callable[[], bool]]


class _Refused:
    """Tells once a minute of a value that its flag may not have."""

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}

    def __call__(self, flag: Flag, value: object) -> None:
        now = time.monotonic()
        if now >= self._quiet_until.get(flag.name, now):
            self._quiet_until[flag.name] = now + _QUIET_SECONDS
            problem = flag.problem(value)
            _log.error("flag stays as it was", flag=flag.name, value=value, problem=problem)


def in_force(settings: Settings, controls: Controls, metrics: Metrics) -> InForce:
    """Return what is in force, as of now if Aurora can be asked.

    If it cannot, nothing may be written until it can, and no flag is known. Raises
    ``ProviderError`` if the provider of flags that is configured cannot be had.
    """
    policies = policies_of(settings)
    place = settings.flags.provider
    known = ControlsInForce(
        controls,
        flags_of(policies),
        OpenFeatureFlags(provider_of(place) if place else None),
        changed=metrics.read_only,
        refused=_Refused(),
    )
    try:
        known.refresh()
    except (StoreError, DeadlineExceededError) as error:
        _log.warning(
            "flags and read-only mode not read: writes are refused until they are",
            cause=cause_of(error),
        )
    works = {"controls": known.refresh}
    if not known.provider.is_own:
        _evaluate_in_time(known)
        works["flags"] = known.evaluate
    return InForce(known, Shapes(policies, codec.encode, known.flag), works)


def _evaluate_in_time(known: ControlsInForce) -> None:
    """Ask the provider of a company for the flags, and go on without an answer that is late."""

    def evaluate() -> None:
        known.evaluate()
        answered.set()

    answered = threading.Event()
    threading.Thread(target=evaluate, name="flags-first", daemon=True).start()
    if not answered.wait(_PROVIDER_SECONDS):
        _log.warning(
            "flags not known yet: the provider has not answered",
            provider=known.provider.name,
            seconds=_PROVIDER_SECONDS,
        )
