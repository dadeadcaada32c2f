"""What must hold between keys that are each good by themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from duostore_server.config.entries import dotted
from duostore_server.config.problems import ConfigError, Problem
from duostore_server.config.values import duration_text, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.config.entries import Key
    from duostore_server.config.settings import Settings

# Threads that must be left when every connection to Aurora is in use: reads that the
# cache or DynamoDB can answer, and health checks, go on.
SPARE_THREADS: Final = 2
# A document may be this many times larger as protobuf than as JSON, or a little more if
# it is all small numbers.
_PROTOBUF_GROWTH: Final = 2

_EVERYWHERE: Final = {"0.0.0.0", "::"}  # noqa: S104 - compared with, never bound to


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit. ``paths`` are the keys involved, the one to change first."""

    paths: tuple[Key, ...]
    message: str


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
    if not settings.kinds:
        yield Finding((("kinds",),), "at least one kind is needed: a table [kinds.NAME]")
    yield from _threads(settings)
    yield from _times(settings)
    yield from _messages(settings)
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
    ):
        limit = _seconds(settings, long)
        if _seconds(settings, short) > limit:
            yield Finding(
                (short, long), f"must be at most {dotted(long)}, which is {duration_text(limit)}"
            )


def _seconds(settings: Settings, path: Key) -> float:
    table, name = path
    seconds: float = getattr(getattr(settings, table), name)
    return seconds


def _messages(settings: Settings) -> Iterator[Finding]:
    limit = ("server", "max_message_bytes")
    for name, kind in settings.kinds.items():
        if kind.max_bytes * _PROTOBUF_GROWTH > settings.server.max_message_bytes:
            path = ("kinds", name, "max_bytes")
            yield Finding(
                (path, limit),
                f"must be at most half of server.max_message_bytes, which is "
                f"{size_text(settings.server.max_message_bytes)}: a document grows as protobuf",
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
