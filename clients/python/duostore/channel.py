"""How the client connects: keepalive and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_OPTIONS: Final[Mapping[str, Any]] = {
    # A dead connection is noticed in 40 s, also while idle, instead of by the next calls.
    # The server permits a ping every 10 s; gRPC would stop after two without data.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    # By default gRPC waits 1 s before it connects anew, longer than the first retries, and
    # up to 2 minutes after a long outage.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 5_000,
    # The most that a server may be configured to answer with; the default is 4 MiB.
    "grpc.max_receive_message_length": 128 * 2**20,
    # The details of an error may list many fields; the default is 8 KiB, and what is larger
    # arrives as RESOURCE_EXHAUSTED with no details at all.
    "grpc.max_metadata_size": 256 * 2**10,
    "grpc.absolute_max_metadata_size": 256 * 2**10,
}


def channel_options(options: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Return the options of the channel; those of the caller count before our own."""
    return tuple({**_OPTIONS, **dict(options)}.items())


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: tuple[tuple[str, Any], ...],
) -> grpc.Channel:
    """Return a channel that connects with its first call; without credentials in the clear."""
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)
