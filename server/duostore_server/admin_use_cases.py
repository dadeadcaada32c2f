"""Builds what operates the service: the use cases of Admin, and what they share with workers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from duostore_server import codec
from duostore_server.access.backfilling import Backfilling
from duostore_server.access.checking import Checking
from duostore_server.access.checks import Checks
from duostore_server.access.controlling import Controlling
from duostore_server.access.examining import PAUSES, Examining
from duostore_server.access.explaining import Explaining
from duostore_server.access.judging import Judge
from duostore_server.access.propagation import Propagation
from duostore_server.access.repairing import Repairing
from duostore_server.access.status import Reporting
from duostore_server.access.walking import Walking
from duostore_server.config import policies as policies_of
from duostore_server.rpc.admin import Admin
from duostore_server.rpc.permission import Permission
from duostore_server.use_cases import utc_now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duostore_server.bootstrap import Stores
    from duostore_server.config import Settings
    from duostore_server.domain.status import Figures
    from duostore_server.in_force import InForce
    from duostore_server.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Consistency:
    """What finds drift, and what mends it."""

    judge: Judge
    examining: Examining
    repairing: Repairing


def consistency(
    settings: Settings, stores: Stores, now: InForce, pauses: Sequence[float] = PAUSES
) -> Consistency:
    """Return what looks at the stores beside the calls; ``pauses`` are those between looks."""
    judge = Judge(now.shapes, codec.decode, codec.head_entity, stores.items.fits)
    examining = Examining(
        authority=stores.authority,
        items=stores.items,
        cache=stores.cache,
        outbox=stores.outbox,
        judge=judge,
        policies=policies_of(settings),
        pause=time.sleep,
        pauses=pauses,
    )
    repairing = Repairing(
        examining=examining,
        authority=stores.authority,
        outbox=stores.outbox,
        items=stores.items,
        cache=stores.cache,
        propagation=Propagation(stores.projections, stores.cache, now.shapes.project),
        shapes=now.shapes,
    )
    return Consistency(judge, examining, repairing)


def admin_of(
    settings: Settings,
    stores: Stores,
    metrics: Metrics,
    now: InForce,
    figures: Callable[[], Figures],
) -> tuple[Admin, Reporting]:
    """Return the servicer on its use cases, and what wants to be told which stores answer."""
    policies = policies_of(settings)
    looks = consistency(settings, stores, now)
    backfilling = Backfilling(stores.backfills, policies, pause=time.sleep, clock=time.monotonic)
    controlling = Controlling(stores.controls, now.controls, policies)
    reporting = Reporting(
        release=version("duostore-server"),
        start_time=utc_now(),
        outbox=stores.outbox,
        read_only=controlling.read_only,
        in_force=now.controls.read_only,
        backfills=backfilling.unfinished,
        figures=figures,
    )
    admin = Admin(
        explaining=Explaining(
            authority=stores.authority,
            items=stores.items,
            heads=stores.heads,
            cache=stores.cache,
            outbox=stores.outbox,
            snapshots=stores.snapshots,
            verifications=stores.verifications,
            judge=looks.judge,
            shapes=now.shapes,
            policies=policies,
            checks=Checks(policies),
            decode=codec.decode,
            now=utc_now,
        ),
        checking=Checking(
            walking=Walking(
                entities=stores.entities,
                items=stores.items,
                examining=looks.examining,
                pause=time.sleep,
            ),
            authority=stores.authority,
            examining=looks.examining,
            repairing=looks.repairing,
            policies=policies,
            drifted=metrics.drifted,
            repaired=metrics.repaired,
            clock=time.monotonic,
        ),
        backfilling=backfilling,
        controlling=controlling,
        reporting=reporting,
    )
    return admin, reporting


def permission_of(settings: Settings) -> Permission:
    """Return who may call Admin."""
    admin = settings.admin
    token = None if admin.token is None else admin.token.get_secret_value()
    return Permission(token=token, callers=admin.callers, open=admin.open)
