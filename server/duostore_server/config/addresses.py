"""A host and a port, as people write them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port. ``host`` is a name, an IPv4 or an IPv6 address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return ``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, value: object) -> Self:
        """Return the address that a text such as ``"127.0.0.1:50051"`` names."""
        if not isinstance(value, str):
            raise ValueError('must be an address in quotes, such as "127.0.0.1:50051"')  # noqa: TRY004 - pydantic collects ValueErrors
        host, colon, port = value.rpartition(":")
        if not colon or not host:
            raise ValueError('must be host:port, such as "127.0.0.1:50051"')
        if host.startswith("[") and host.endswith("]"):
            host = _checked_host(host[1:-1], ipaddress.IPv6Address, "IPv6")
        elif ":" in host:
            raise ValueError('needs brackets around its IPv6 address, such as "[::1]:50051"')
        elif re.fullmatch(r"[0-9.]+", host):
            host = _checked_host(host, ipaddress.IPv4Address, "IPv4")
        elif not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?", host):
            raise ValueError(f'has no valid host: "{host}" is neither a name nor an address')
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65_535:  # noqa: PLR2004 - the last TCP port
            raise ValueError(f'has no valid port: "{port}" is not a number from 1 to 65535')
        return cls(host, int(port))


def _checked_host(host: str, parse: Callable[[str], object], version: str) -> str:
    try:
        parse(host)
    except ValueError:
        raise ValueError(f'has no valid host: "{host}" is no {version} address') from None
    return host
