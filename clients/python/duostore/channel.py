"""How the client connects: keepalive, sizes, and what may be retried."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import grpc

from duostore.v1 import data_access_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SERVICE: Final = data_access_pb2.DESCRIPTOR.services_by_name["DataAccess"].full_name

# Only reads are retried. A Save or Delete that failed with UNAVAILABLE may have been
# applied; each repetition would be one more version, or a VERSION_MISMATCH or
# ENTITY_EXISTS against the caller's own first try.
#
# RESOURCE_EXHAUSTED is left to the caller, who is told retry_after: the server sheds load
# then, and gRPC does not know RetryInfo and would add to the load within milliseconds.
#
# The waits of about 0.1, 0.3 and 0.9 s span the restart of a server process, and the
# call's deadline bounds them. Retrying ends while failures outnumber a tenth of the
# successes by 50: early enough not to make an outage worse, late enough for one lost
# connection under many threads.
_RETRIES: Final = {
    "methodConfig": [
        {
            "name": [
                {"service": _SERVICE, "method": "Get"},
                {"service": _SERVICE, "method": "BatchGet"},
            ],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1},
}

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


def channel_options(
    options: Iterable[tuple[str, Any]], *, retries: bool
) -> tuple[tuple[str, Any], ...]:
    """Return the options of the channel; those of the caller count before our own."""
    service_config = {"grpc.service_config": json.dumps(_RETRIES)} if retries else {}
    return tuple({**_OPTIONS, **service_config, **dict(options)}.items())


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: tuple[tuple[str, Any], ...],
) -> grpc.Channel:
    """Return a channel that connects with its first call; without credentials in the clear."""
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)
