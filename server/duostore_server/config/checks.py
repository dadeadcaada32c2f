"""What must hold between keys that are each good by themselves."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from duostore_server.config.entries import dotted
from duostore_server.config.finding import Finding
from duostore_server.config.problems import ConfigError, Problem
from duostore_server.config.sql_checks import kind_findings, query_findings
from duostore_server.config.transform_checks import transform_findings
from duostore_server.config.values import duration_text, size_text
from duostore_server.domain.documents import most_struct_bytes
from duostore_server.domain.limits import most_units
from duostore_server.domain.quotas import AlgorithmName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.config.entries import Key
    from duostore_server.config.quota_settings import Quota
    from duostore_server.config.settings import Settings

# Threads that must be left when every connection to Aurora is in use: reads that the
# cache or DynamoDB can answer, and health checks, go on.
SPARE_THREADS: Final = 2
# What stands around a document in a message: the key (640 bytes and their tags), times,
# versions.
_AROUND_BYTES: Final = 1024
# Clocks of machines do not agree better.
_LEAST_SUB_WINDOW_SECONDS: Final = 0.01

_EVERYWHERE: Final = {"0.0.0.0", "::"}  # noqa: S104 - compared with, never bound to


def check_for_serve(settings: Settings) -> None:
    """Raise ``ConfigError`` if ``serve`` cannot run with these settings: ``dev`` may."""
    problems = [
        Problem(dotted(finding.paths[0]), finding.message) for finding in serve_findings(settings)
    ]
    if problems:
        raise ConfigError(problems)


def serve_findings(settings: Settings) -> Iterator[Finding]:
    """Yield what ``serve`` needs beyond what the embedded default needs."""
    if settings.aurora.dsn is None:
        yield Finding((("aurora", "dsn"),), "is required: how to reach the writer")
    if settings.dynamodb.region is None:
        yield Finding((("dynamodb", "region"),), 'is required, such as "eu-central-1"')
    if settings.cache.backend == "memory":
        yield Finding(
            (("cache", "backend"),),
            'must be "memcached": "memory" is seen by one process alone, so that the others '
            "would serve what it has invalidated",
        )


def findings(settings: Settings) -> Iterator[Finding]:
    """Yield everything that does not fit together."""
    if not settings.kinds and not settings.queries and not settings.quotas:
        yield Finding(
            (("kinds",), ("queries",), ("quotas",)),
            "at least one kind, query or quota is needed: a table [kinds.NAME], [queries.NAME] or "
            "[quotas.NAME]",
        )
    yield from _threads(settings)
    yield from _times(settings)
    yield from _messages(settings)
    yield from _homes(settings)
    yield from kind_findings(settings)
    yield from query_findings(settings)
    yield from transform_findings(settings)
    for name, quota in settings.quotas.items():
        yield from _counting(("quotas", name), quota)
    yield from _tls(settings)
    server, metrics = settings.server.address, settings.metrics.address
    if metrics and metrics.port == server.port and _overlap(metrics.host, server.host):
        yield Finding(
            (("metrics", "address"), ("server", "address")), f"is server.address, {server}"
        )


def _threads(settings: Settings) -> Iterator[Finding]:
    server, aurora = settings.server, settings.aurora
    threads, pool_max = ("server", "threads"), ("aurora", "pool_max")
    max_waiting = ("aurora", "max_waiting")
    held = aurora.pool_max + aurora.max_waiting + SPARE_THREADS
    if server.threads < held:
        yield Finding(
            (threads, pool_max, max_waiting),
            f"must be at least aurora.pool_max + aurora.max_waiting + {SPARE_THREADS}, which is "
            f"{held}: a slow database must not hold every thread",
        )
    if server.max_concurrent_rpcs < server.threads:
        yield Finding(
            (("server", "max_concurrent_rpcs"), threads),
            f"must be at least server.threads, which is {server.threads}",
        )
    if aurora.pool_min > aurora.pool_max:
        yield Finding(
            (("aurora", "pool_min"), pool_max),
            f"must be at most aurora.pool_max, which is {aurora.pool_max}",
        )


def _times(settings: Settings) -> Iterator[Finding]:
    for short, long in (
        (("server", "default_deadline"), ("server", "max_deadline")),
        (("server", "default_deadline"), ("server", "connection_age_grace")),
        (("server", "default_deadline"), ("server", "drain_timeout")),
        (("aurora", "lock_timeout"), ("aurora", "statement_timeout")),
        (("server", "export_stall"), ("server", "export_deadline")),
    ):
        limit = _seconds(settings, long)
        if _seconds(settings, short) > limit:
            yield Finding(
                (short, long), f"must be at most {dotted(long)}, which is {duration_text(limit)}"
            )
    # Else a row is taken up anew by one projector while another still waits for its stores.
    shortest = settings.dynamodb.read_timeout + settings.cache.timeout
    if settings.projector.claim < shortest:
        yield Finding(
            (("projector", "claim"), ("dynamodb", "read_timeout"), ("cache", "timeout")),
            "must be at least dynamodb.read_timeout + cache.timeout, which is "
            f"{duration_text(shortest)}",
        )


def _seconds(settings: Settings, path: Key) -> float:
    table, name = path
    seconds: float = getattr(getattr(settings, table), name)
    return seconds


def _messages(settings: Settings) -> Iterator[Finding]:
    """Yield kinds whose documents could not always be sent, or not be answered with."""
    for limit in (("server", "max_message_bytes"), ("server", "max_answer_bytes")):
        table, name = limit
        size: int = getattr(getattr(settings, table), name)
        for kind, policy in settings.kinds.items():
            needed = most_struct_bytes(policy.max_bytes) + _AROUND_BYTES
            if needed > size:
                yield Finding(
                    (("kinds", kind, "max_bytes"), limit),
                    f"needs {dotted(limit)} to be at least {needed}, and it is {size_text(size)}: "
                    "as protobuf a document may be 5.5 times larger",
                )


def _homes(settings: Settings) -> Iterator[Finding]:
    """Yield what a kind says that its home cannot do."""
    for name, kind in settings.kinds.items():
        at = ("kinds", name)
        home = (*at, "home")
        if kind.home == "aurora":
            for key in ("ttl", "consolidate_every"):
                if getattr(kind, key) is not None:
                    yield Finding(((*at, key), home), f'needs {dotted(home)} = "dynamodb"')
            continue
        if kind.snapshots is not None:
            yield Finding(
                ((*at, "snapshots"), home),
                f'needs {dotted(home)} = "aurora": what is at home in DynamoDB is saved as '
                "cheaply as a snapshot",
            )
        if kind.projection == "async":
            yield Finding(
                ((*at, "projection"), home),
                f'must be "inline" with {dotted(home)} = "dynamodb", which is not projected',
            )


def _counting(at: Key, quota: Quota) -> Iterator[Finding]:
    """Yield what a quota says that its algorithm cannot do."""
    algorithm, window, limit = (*at, "algorithm"), (*at, "window"), (*at, "limit")
    if quota.algorithm == "sliding_window":
        least = quota.parts * _LEAST_SUB_WINDOW_SECONDS
        if quota.window < least:
            yield Finding(
                (window, algorithm, (*at, "sub_windows")),
                f"must be at least {duration_text(least)} with {quota.parts} sub_windows: none may "
                f"be shorter than {duration_text(_LEAST_SUB_WINDOW_SECONDS)}",
            )
    elif quota.sub_windows is not None:
        yield Finding(
            ((*at, "sub_windows"), algorithm), f'needs {dotted(algorithm)} = "sliding_window"'
        )
    # A quota is blocked by its limit alone.
    if quota.lease is not None and quota.lease > quota.limit > 0:
        yield Finding(
            ((*at, "lease"), limit), f"must be at most {dotted(limit)}, which is {quota.limit}"
        )
    if quota.algorithm == "token_bucket":
        yield from _bucket(at, quota)


def _bucket(at: Key, quota: Quota) -> Iterator[Finding]:
    """Yield what a quota says that its token bucket cannot do."""
    algorithm, window = (*at, "algorithm"), (*at, "window")
    most = most_units(AlgorithmName.TOKEN_BUCKET, timedelta(seconds=quota.window))
    bound = f"{most}, since a token bucket counts 10^9 units a second at most"
    if quota.limit > most:
        yield Finding(((*at, "limit"), window, algorithm), f"must be at most {bound}")
    above = [name for name, limit in quota.overrides.items() if limit > most]
    if above:
        shown = ", ".join(json.dumps(name, ensure_ascii=False) for name in above)
        yield Finding(
            ((*at, "overrides"), window, algorithm), f"the limit of {shown} must be at most {bound}"
        )


def _tls(settings: Settings) -> Iterator[Finding]:
    tls = settings.server.tls
    certificate, key = ("server", "tls", "certificate"), ("server", "tls", "key")
    if tls.certificate and not tls.key:
        yield Finding((key, certificate), "is required with server.tls.certificate")
    if tls.key and not tls.certificate:
        yield Finding((certificate, key), "is required with server.tls.key")
    if tls.client_ca and not tls.certificate and not tls.key:
        ca = ("server", "tls", "client_ca")
        yield Finding(
            (ca, certificate, key), "needs server.tls.certificate and server.tls.key beside it"
        )


def _overlap(one: str, other: str) -> bool:
    return one == other or one in _EVERYWHERE or other in _EVERYWHERE
