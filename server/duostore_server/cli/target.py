"""Where a running service is, and how to trust it. Imports no grpc: help must be quick."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"

_ADDRESS: Final = re.compile(r"(?P<host>\[[^\s\[\]]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")
_LOOPBACK: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]")
_MAX_PORT: Final = 65_535
# As the service accepts it.
_CALLER: Final = re.compile(r"[\w.:/=+@-]{1,128}", re.ASCII)
_TOKEN: Final = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Target:
    """A service to call.

    ``address`` is host:port, IPv6 in brackets. Without ``tls`` calls go in plain text.
    ``ca_file`` holds the certificates to trust, in PEM, instead of the system's;
    ``cert_file`` and ``key_file`` what the caller shows; ``server_name`` is the name that
    the server's certificate must bear, if not the host. ``caller`` is who calls, for the
    service's log and audit. ``token`` is what Admin asks for; ``plaintext_token`` lets it go
    to another machine without TLS.
    """

    address: str = DEFAULT_ADDRESS
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    caller: str | None = None
    token: str | None = field(default=None, repr=False)
    plaintext_token: bool = False

    @property
    def is_loopback(self) -> bool:
        """Tell whether the service is on this machine."""
        return _LOOPBACK.fullmatch(self.address.rpartition(":")[0]) is not None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what every call of the service is to be sent with."""
        caller = () if self.caller is None else (("x-caller", self.caller),)
        # No CallCredentials: gRPC has those on TLS alone, and a mesh does that by itself.
        bearer = () if self.token is None else (("authorization", f"Bearer {self.token}"),)
        return (*caller, *bearer)

    def problem(self) -> str | None:
        """Return what is wrong with the target as it was given, if anything is."""
        found = _ADDRESS.fullmatch(self.address)
        if not found or not 0 < int(found["port"]) <= _MAX_PORT:
            return f"{self.address!r} is not HOST:PORT, such as {DEFAULT_ADDRESS}"
        if not self.tls and (self.ca_file or self.cert_file or self.key_file or self.server_name):
            return "certificates and server names are used with --tls only"
        if (self.cert_file is None) != (self.key_file is None):
            return "--cert-file and --key-file need each other"
        if self.caller is not None and not _CALLER.fullmatch(self.caller):
            return "--caller may hold letters, digits and _ . : / = + - @, 1 to 128 of them"
        return self._token_problem()

    def _token_problem(self) -> str | None:
        if self.token is None:
            return None
        if not _TOKEN.fullmatch(self.token):
            return "the token may hold printable ASCII alone, without spaces"
        if not (self.tls or self.is_loopback or self.plaintext_token):
            return (
                "a token is not sent to another machine in plain text: use --tls; or "
                "--plaintext-token, if something else encrypts the way there, such as a mesh"
            )
        return None

    def takes_caller(self, name: str) -> bool:
        """Tell whether a name may be that of the caller."""
        return _CALLER.fullmatch(name) is not None
