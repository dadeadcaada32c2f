"""Who may call a service."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import PermissionDeniedError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_AUTHORIZATION: Final = "authorization"
_BEARER: Final = "bearer"


class Permission:
    """Lets those in who show the token, or a certificate of one of the callers.

    Of several credentials one that is right is enough. Knows the token, and tells it nobody:
    it is in no message, and in no representation of this.
    """

    def __init__(self, *, token: str | None, callers: Collection[str], open: bool) -> None:  # noqa: A002 - as the setting is called
        """``callers`` are common names; ``open`` lets everybody in."""
        self._token = None if token is None else token.encode()
        self._callers = frozenset(name.encode() for name in callers if name)
        self._open = open

    def check(self, metadata: Iterable[tuple[str, str | bytes]], common_name: bytes | None) -> None:
        """Return if a call may be made.

        ``common_name`` is that of the certificate, as TLS has verified it: empty if it has
        none, None if no certificate was shown. Raises ``UnauthenticatedError`` if nothing was
        shown at all, and ``PermissionDeniedError`` if something else was.
        """
        if self._open or (common_name is not None and common_name in self._callers):
            return
        shown = [value for name, value in metadata if name == _AUTHORIZATION and value]
        if any(self._is_token(value) for value in shown):
            return
        if shown:
            raise PermissionDeniedError("the credentials of this call are not those that it needs")
        if common_name is not None:
            raise PermissionDeniedError("the certificate of this call is of none who may make it")
        raise UnauthenticatedError(
            "'authorization: Bearer TOKEN' in its metadata, or the certificate of one who may"
        )

    def _is_token(self, value: str | bytes) -> bool:
        """Return whether this is the token; takes as long whatever the token is."""
        if isinstance(value, bytes):
            return False
        scheme, _, shown = value.partition(" ")
        # Of metadata Python makes text that may hold halves of characters.
        found = shown.strip().encode(errors="surrogatepass")
        return (
            self._token is not None
            and scheme.lower() == _BEARER
            and hmac.compare_digest(found, self._token)
        )
