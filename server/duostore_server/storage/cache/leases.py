"""What every engine's leases have in common."""

from __future__ import annotations

import os
from typing import Final

# Long enough for a slow source, short enough for those who wait for a holder that died.
LEASE_SECONDS: Final = 10

NONCE_BYTES: Final = 16


def new_nonce() -> bytes:
    """Return a nonce that was never there before."""
    return os.urandom(NONCE_BYTES)
