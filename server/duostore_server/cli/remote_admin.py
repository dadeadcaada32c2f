"""Calls of Admin: its stub, and what to do when it lets nobody in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore.v1 import admin_pb2_grpc
from duostore_server.cli.failure import NO_ADVICE
from duostore_server.cli.one_call import run_on
from duostore_server.domain.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import grpc

    from duostore.v1.admin_pb2_grpc import AdminStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target

# Of a call that changes something and may be repeated as it is.
SAFE_TO_REPEAT: Final = "repeat the command, which is safe."

_BY_CERTIFICATE: Final = "a certificate, by --cert-file and --key-file, of one of admin.callers"
_UNAUTHENTICATED: Final = (
    "Here, set DUOSTORE_TOKEN or --token-file to the admin.token of the service's configuration "
    f"(there also DUOSTORE__ADMIN__TOKEN); or show {_BY_CERTIFICATE}."
)
_OTHER_BEARER: Final = (
    "The token of DUOSTORE_TOKEN, or --token-file, is not the admin.token of the service's "
    "configuration (there also DUOSTORE__ADMIN__TOKEN)."
)
_NOT_A_CALLER: Final = (
    "The common name of the certificate is not in admin.callers of the service's configuration; "
    "DUOSTORE_TOKEN, or --token-file, gives its admin.token instead."
)


def run_admin(
    target: Target,
    work: Callable[[AdminStub, Metadata], None],
    *,
    in_doubt: str = "",
    advice: Mapping[Reason, str] = NO_ADVICE,
) -> int:
    """Do work that calls Admin, and return the exit code: as ``run_on``."""

    def with_stub(channel: grpc.Channel, metadata: Metadata) -> None:
        work(admin_pb2_grpc.AdminStub(channel), metadata)

    return run_on(target, with_stub, in_doubt=in_doubt, advice={**_credentials(target), **advice})


def _credentials(target: Target) -> Mapping[Reason, str]:
    return {
        Reason.UNAUTHENTICATED: _UNAUTHENTICATED,
        Reason.PERMISSION_DENIED: _NOT_A_CALLER if target.token is None else _OTHER_BEARER,
    }
