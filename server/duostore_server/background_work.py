"""Builds the background work of a deployment, and does it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from duostore_server import codec
from duostore_server.access.propagation import Propagation
from duostore_server.access.reprojecting import Reprojecting
from duostore_server.admin_use_cases import consistency
from duostore_server.config import policies as policies_of
from duostore_server.config import read_models as read_models_of
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.policies import Home
from duostore_server.use_cases import jitter, utc_now
from duostore_server.workers.backfiller import Backfiller
from duostore_server.workers.consolidator import Consolidator
from duostore_server.workers.fan_out import Expander, Recomputer
from duostore_server.workers.loop import LONGEST_BACKOFF_SECONDS, Loop
from duostore_server.workers.projector import Projector
from duostore_server.workers.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.bootstrap import Stores
    from duostore_server.config import Settings
    from duostore_server.in_force import InForce
    from duostore_server.telemetry.metrics import Metrics

# A history put begins within the head's timeout, and lasts for its own two attempts.
_LEAST_SETTLED: Final = 5.0
# It reads whole documents before it finds that Aurora is down, and nobody waits for it.
_CONSOLIDATOR_BACKOFF_SECONDS: Final = 10.0
_PURGE_EVERY_SECONDS: Final = 10.0
_PURGE_SECONDS: Final = 2.0
_PURGED_AT_A_TIME: Final = 1000
_BACKLOG_EVERY_SECONDS: Final = 1.0
# Between batches of parts that have a rate; parts are looked for less often.
_BACKFILL_REST_SECONDS: Final = 0.1
_VERIFY_EVERY_SECONDS: Final = 1.0
# Shorter than for a check, which nobody has to do again a second later.
_VERIFIER_PAUSES: Final = (0.1, 0.3)
# Of the time that a claim lasts; the rest is for what was begun, and to complete it.
_BUDGET_SHARE: Final = 0.7
# Of one batch, what is brought side by side.
_PROJECTIONS_AT_A_TIME: Final = 4
_HEADS_AT_A_TIME: Final = 4
_LOTS_AT_A_TIME: Final = 2
# Documents that a change touches are found in pages of so many batches, and no further
# while as many wait to be recomputed: there is always work, and never much before other work.
_BATCHES_A_PAGE: Final = 50
# Changes that are expanded in one transaction, if they are small.
_CHANGES_AT_A_TIME: Final = 500


@contextmanager
def background(
    settings: Settings, stores: Stores, metrics: Metrics, now: InForce
) -> Iterator[None]:
    """Do all that goes on beside the requests, while the block runs.

    Project what they did not, consolidate what they left, fan out what they changed; backfill
    when told to, and look whether the stores agree.
    """
    with ExitStack() as stack:
        propagation = Propagation(stores.projections, stores.cache, now.shapes.project)
        pool = stack.enter_context(
            ThreadPoolExecutor(_PROJECTIONS_AT_A_TIME, thread_name_prefix="project")
        )
        projector = Projector(
            outbox=stores.outbox,
            authority=stores.authority,
            propagation=propagation,
            batch=settings.projector.batch,
            budget=settings.projector.claim * _BUDGET_SHARE,
            each=pool.map,
        )

        def show_backlog() -> bool:
            metrics.backlog(stores.outbox.backlog(Deadline.after(_BACKLOG_EVERY_SECONDS)))
            return False

        folding = stack.enter_context(
            ThreadPoolExecutor(_HEADS_AT_A_TIME, thread_name_prefix="consolidate")
        )
        consolidator = Consolidator(
            heads=stores.dirty_heads,
            drafts=stores.drafts,
            data_of=codec.document_of,
            policies=policies_of(settings),
            now=utc_now,
            batch=settings.consolidator.batch,
            settled=timedelta(seconds=max(_LEAST_SETTLED, 4 * settings.dynamodb.read_timeout)),
            consolidated=metrics.consolidated,
            each=folding.map,
        )

        def purge() -> bool:
            deadline = Deadline.after(_PURGE_SECONDS)
            return stores.rows.purge(_PURGED_AT_A_TIME, deadline) == _PURGED_AT_A_TIME

        stack.enter_context(loop("purge", purge, _PURGE_EVERY_SECONDS, metrics))
        rest = settings.consolidator.poll
        longest = _CONSOLIDATOR_BACKOFF_SECONDS
        stack.enter_context(
            loop("consolidator", consolidator.run_once, rest, metrics, longest=longest)
        )
        poll = settings.projector.poll
        stack.enter_context(loop("projector", projector.run_once, poll, metrics))
        stack.enter_context(loop("backlog", show_backlog, _BACKLOG_EVERY_SECONDS, metrics))
        if any(model.sources for model in read_models_of(settings).values()):
            stack.enter_context(_fanning_out(settings, stores, metrics, propagation))
        stack.enter_context(_backfilling(settings, stores, metrics, now))
        if settings.verifier.saves or settings.verifier.rows:
            stack.enter_context(_verifying(settings, stores, metrics, now))
        yield


@contextmanager
def _fanning_out(
    settings: Settings, stores: Stores, metrics: Metrics, propagation: Propagation
) -> Iterator[None]:
    """Recompute the documents that changes of sources touch, while the block runs."""
    batch, poll = settings.fan_out.batch, settings.fan_out.poll
    page = _BATCHES_A_PAGE * batch
    expander = Expander(
        changes=stores.source_changes, batch=_CHANGES_AT_A_TIME, page=page, most_stale=page
    )

    def show_backlog() -> bool:
        metrics.fan_out(stores.source_changes.backlog(Deadline.after(_BACKLOG_EVERY_SECONDS)))
        return False

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(_LOTS_AT_A_TIME, "recompute"))
        recomputer = Recomputer(
            stale=stores.stale,
            propagation=propagation,
            outbox=stores.outbox,
            batch=batch,
            recomputed=metrics.recomputed,
            each=pool.map,
        )
        stack.enter_context(loop("recomputer", recomputer.run_once, poll, metrics))
        stack.enter_context(loop("expander", expander.run_once, poll, metrics))
        stack.enter_context(loop("fan_out_backlog", show_backlog, _BACKLOG_EVERY_SECONDS, metrics))
        yield


@contextmanager
def _backfilling(
    settings: Settings, stores: Stores, metrics: Metrics, now: InForce
) -> Iterator[None]:
    """Do parts of backfills, if there are any, while the block runs."""
    policies = policies_of(settings)
    workers = settings.backfill.workers
    with ThreadPoolExecutor(workers, "backfill") as pool:
        backfiller = Backfiller(
            backfills=stores.backfills,
            entities=stores.entities,
            reprojecting=Reprojecting(
                shapes=now.shapes,
                projections=stores.projections,
                cache=stores.cache,
                outbox=stores.outbox,
            ),
            kinds=policies.at_home(Home.AURORA),
            workers=workers,
            batch=settings.backfill.batch,
            clock=time.monotonic,
            backfilled=metrics.backfilled,
            each=pool.map,
        )
        with loop("backfiller", backfiller.run_once, _BACKFILL_REST_SECONDS, metrics):
            yield


@contextmanager
def _verifying(
    settings: Settings, stores: Stores, metrics: Metrics, now: InForce
) -> Iterator[None]:
    """Look at some of what is saved, and at random rows, while the block runs."""
    looks = consistency(settings, stores, now, _VERIFIER_PAUSES)
    verifier = Verifier(
        entities=stores.entities,
        verifications=stores.verifications,
        examining=looks.examining,
        repairing=looks.repairing,
        policies=policies_of(settings),
        metrics=metrics,
        saves=settings.verifier.saves,
        rows=settings.verifier.rows,
        repair=settings.verifier.repair,
    )
    with ExitStack() as stack:
        for name, work, rest in (
            ("verifier", verifier.run_once, _VERIFY_EVERY_SECONDS),
            ("verifier_purge", verifier.purge, _PURGE_EVERY_SECONDS),
        ):
            stack.enter_context(loop(name, work, rest, metrics))
        yield


def loop(
    name: str,
    work: Callable[[], bool],
    rest: float,
    metrics: Metrics,
    *,
    longest: float = LONGEST_BACKOFF_SECONDS,
) -> Loop:
    """Return a work that is done again and again once it is entered."""
    return Loop(name, work, rest=rest, jitter=jitter, observer=metrics, longest=longest)
