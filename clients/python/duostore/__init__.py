"""The Python client of Duostore: ``Client``, what it takes and returns, and its errors.

``duostore.v1`` holds the generated messages and stubs. Importing it, as the server does
before it forks, loads neither the client nor gRPC: both come with the first use of a name
of this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duostore.client import Client
    from duostore.errors import (
        AbortedError,
        AlreadyExistsError,
        AnswerTooLargeError,
        BackfillNotFoundError,
        ConstraintViolatedError,
        DeadlineExceededError,
        DuplicateInProgressError,
        EntityExistsError,
        EntityNotFoundError,
        Error,
        FailedPreconditionError,
        FieldViolation,
        FlagsElsewhereError,
        IdempotencyKeyReusedError,
        InternalError,
        InvalidRequestError,
        MinVersionNotReachedError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        ProjectionFailedError,
        QueryFailedError,
        QueryTimeoutError,
        QuotaDeniedError,
        ReadOnlyError,
        RefusalError,
        ReservationNotFoundError,
        ReservationSettledError,
        ResourceExhaustedError,
        ResultChangedError,
        ResultTooLargeError,
        SnapshotNotFoundError,
        StoreUnavailableError,
        UnauthenticatedError,
        UnavailableError,
        VersionMismatchError,
        WriteOutcomeUnknownError,
    )
    from duostore.queries import Export, QueryResult
    from duostore.quotas import Reservation
    from duostore.values import (
        Appended,
        Applied,
        Check,
        Delete,
        Entity,
        Key,
        Mutation,
        Publish,
        QuotaDecision,
        Save,
        Saved,
        Settled,
        Snapshot,
        Store,
        Transacted,
    )

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AnswerTooLargeError",
    "Appended",
    "Applied",
    "BackfillNotFoundError",
    "Check",
    "Client",
    "ConstraintViolatedError",
    "DeadlineExceededError",
    "Delete",
    "DuplicateInProgressError",
    "Entity",
    "EntityExistsError",
    "EntityNotFoundError",
    "Error",
    "Export",
    "FailedPreconditionError",
    "FieldViolation",
    "FlagsElsewhereError",
    "IdempotencyKeyReusedError",
    "InternalError",
    "InvalidRequestError",
    "Key",
    "MinVersionNotReachedError",
    "Mutation",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "ProjectionFailedError",
    "Publish",
    "QueryFailedError",
    "QueryResult",
    "QueryTimeoutError",
    "QuotaDecision",
    "QuotaDeniedError",
    "ReadOnlyError",
    "RefusalError",
    "Reservation",
    "ReservationNotFoundError",
    "ReservationSettledError",
    "ResourceExhaustedError",
    "ResultChangedError",
    "ResultTooLargeError",
    "Save",
    "Saved",
    "Settled",
    "Snapshot",
    "SnapshotNotFoundError",
    "Store",
    "StoreUnavailableError",
    "Transacted",
    "UnauthenticatedError",
    "UnavailableError",
    "VersionMismatchError",
    "WriteOutcomeUnknownError",
]

# Hidden from type checkers, for which it would turn every misspelt name into a valid one.
if not TYPE_CHECKING:
    from importlib import import_module

    def __getattr__(name: str) -> object:
        if name in __all__:
            for home in ("values", "errors", "queries", "quotas", "client"):
                module = import_module(f"{__name__}.{home}")
                if name in vars(module):
                    return vars(module)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
