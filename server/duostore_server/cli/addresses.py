"""Finds out early that an address is taken."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duostore_server.config import Address


class AddressInUseError(Exception):
    """Nothing can listen on the address; the text says why."""


def check_free(address: Address) -> None:
    """Raise ``AddressInUseError`` unless the address can be listened on.

    The processes of a service share their port, so two services on one port would
    share their calls without a word.
    """
    try:
        family, kind, protocol, _, name = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(name)
    except OSError as error:
        raise AddressInUseError(f"cannot listen on {address}: {error.strerror}") from error
