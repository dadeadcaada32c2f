"""Who makes a call, and what it is called."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Final, cast

from duostore_server.domain.errors import FieldViolation, InvalidRequestError
from duostore_server.domain.transactions import Origin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import grpc

_REQUEST_ID: Final = "x-request-id"
_CALLER: Final = "x-caller"
# What callers may say of themselves.
_ACCEPTABLE: Final = {
    _REQUEST_ID: re.compile(r"[\w.:/=+-]{1,128}", re.ASCII),
    _CALLER: re.compile(r"[\w.:/=+@-]{1,128}", re.ASCII),
}
# gRPC lists these of a peer that has shown a certificate, which TLS has verified by then.
_CERTIFICATE: Final = "x509_pem_cert"
_COMMON_NAME: Final = "x509_common_name"
_MAX_COMMON_NAME: Final = 128


def origin_of(context: grpc.ServicerContext) -> Origin:
    """Return who calls: by the certificate if there is one, else as the caller says."""
    said = {
        name: value
        for name, value in context.invocation_metadata()
        if name in _ACCEPTABLE and isinstance(value, str) and _ACCEPTABLE[name].fullmatch(value)
    }
    name = certified_name(context)
    caller = said.get(_CALLER, "") if name is None else _storable(name)
    return Origin(caller, said.get(_REQUEST_ID) or uuid.uuid4().hex)


def check_caller(context: grpc.ServicerContext) -> None:
    """Refuse a name that the audit would not have as it was meant; a certificate's counts."""
    for name, value in context.invocation_metadata():
        if name != _CALLER or not value or _ACCEPTABLE[name].fullmatch(str(value)):
            continue
        if _CERTIFICATE not in context.auth_context():
            raise InvalidRequestError(
                [FieldViolation(_CALLER, "may hold A-Z a-z 0-9 _ . : / = + @ -, at most 128")]
            )


def certified_name(context: grpc.ServicerContext) -> bytes | None:
    """Return the common name of the certificate, empty if it has none; None without one."""
    # Said by the types to hold bytes, and holds lists of them.
    peer = cast("Mapping[str, Sequence[bytes]]", context.auth_context())
    return next(iter(peer.get(_COMMON_NAME, ())), b"") if _CERTIFICATE in peer else None


def _storable(name: bytes) -> str:
    """Return a common name as it is fit to be stored."""
    text = name.decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text)[:_MAX_COMMON_NAME]
