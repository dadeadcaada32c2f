"""Connections to a running service."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duostore_server.cli.target import Target

# gRPC waits up to two minutes between attempts to connect: longer than people do.
_FIRST_RECONNECT_MILLISECONDS: Final = 200
_LAST_RECONNECT_MILLISECONDS: Final = 2_000
_KEEPALIVE_MILLISECONDS: Final = 30_000
_KEEPALIVE_TIMEOUT_MILLISECONDS: Final = 10_000


class UnusableTargetError(Exception):
    """A target cannot be called with the files it names; the text says why."""


@contextmanager
def connected(target: Target) -> Iterator[grpc.Channel]:
    """Give a channel to the target, with a connection of its own that is made when needed.

    Raises ``UnusableTargetError`` if a certificate or key cannot be read.
    """
    options: list[tuple[str, str | int]] = [
        # The service bounds what it answers.
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MILLISECONDS),
        ("grpc.min_reconnect_backoff_ms", _FIRST_RECONNECT_MILLISECONDS),
        ("grpc.max_reconnect_backoff_ms", _LAST_RECONNECT_MILLISECONDS),
        # A peer that vanished without a word is noticed while calls wait for it.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MILLISECONDS),
    ]
    if target.is_loopback:
        # Docker hands its proxy settings to containers, and with them to health checks.
        options.append(("grpc.enable_http_proxy", 0))
    if target.server_name is not None:
        options.append(("grpc.ssl_target_name_override", target.server_name))
    if target.tls:
        channel = grpc.secure_channel(target.address, _credentials(target), options)
    else:
        channel = grpc.insecure_channel(target.address, options)
    with channel:
        yield channel


def _credentials(target: Target) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_content(target.ca_file),
        private_key=_content(target.key_file),
        certificate_chain=_content(target.cert_file),
    )


def _content(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableTargetError(f"{path} cannot be read: {error.strerror}") from error
