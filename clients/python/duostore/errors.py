"""What a call may raise: a class for each reason, below one for its status code.

``except duostore.NotFoundError`` therefore also holds for reasons that a newer server
gives and this client does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grpc import StatusCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request and what is wrong with it. ``field`` is a path: ``data.a[0].b``."""

    field: str
    description: str


class Error(Exception):
    """A call failed; its text says what to do next. All errors of this client are below it.

    ``reason`` is the server's ``ErrorReason`` without its prefix, or empty if the server
    gave none, as when it could not be reached. ``code`` is the gRPC status code.
    ``metadata`` holds the details of the reason. ``request_id`` names the call in the
    server's log. ``retry_after`` is in seconds, None if the server did not say.
    ``field_violations`` lists what is wrong with the request. ``maybe_applied`` is True
    of a write whose outcome is not known: repeat it with ``idempotency_key``, the key that
    it was sent with, or, if that is empty, read the entity with ``strong`` before you repeat
    it. If it is False, nothing was changed. Of a call that asks a quota, which allowed
    nothing if it failed, it is True if the units may have been debited in vain.
    """

    # Details that every error of the class has in its metadata, as whole numbers.
    details: ClassVar[tuple[str, ...]] = ()

    # All but the message have defaults, so that pickling works as for any exception.
    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        code: StatusCode = StatusCode.UNKNOWN,
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
        retry_after: float | None = None,
        field_violations: Iterable[FieldViolation] = (),
        maybe_applied: bool = False,
        idempotency_key: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.metadata = dict(metadata or {})
        self.request_id = request_id
        self.retry_after = retry_after
        self.field_violations = tuple(field_violations)
        self.maybe_applied = maybe_applied
        self.idempotency_key = idempotency_key


class InvalidRequestError(Error, ValueError):
    """The request cannot be accepted as it is: ``field_violations`` says why.

    Raised for what the server refuses, and before anything is sent for a document that
    could not be sent unchanged.
    """


class IdempotencyKeyReusedError(InvalidRequestError):
    """The idempotency key came with another request before: use a new one for each intention."""


class RefusalError(Error):
    """What a call requires of an entity does not hold. Nothing was changed."""

    @property
    def mutation(self) -> int | None:
        """Return which mutation of a transaction it is about, by its index; None elsewhere."""
        index = self.metadata.get("mutation", "")
        return int(index) if index.isdecimal() else None


class NotFoundError(Error):
    """Something that the call names does not exist."""


class EntityNotFoundError(NotFoundError, RefusalError):
    """The entity does not exist or is deleted."""

    details = ("version",)

    @property
    def version(self) -> int:
        """Return the version of the deletion; 0 if the entity never existed."""
        return int(self.metadata["version"])


class SnapshotNotFoundError(NotFoundError):
    """The entity has no such snapshot, or none at all, or it has expired."""

    details = ("sequence",)

    @property
    def sequence(self) -> int:
        """Return the sequence that was asked for; 0 if it was the newest."""
        return int(self.metadata["sequence"])


class ReservationNotFoundError(NotFoundError):
    """The tenant has no such reservation, or it has expired."""


class BackfillNotFoundError(NotFoundError):
    """There is no backfill of the kind that the call could be about."""


class AlreadyExistsError(Error):
    """Something that the call would create exists."""


class EntityExistsError(AlreadyExistsError, RefusalError):
    """The save had ``if_absent``, and the entity exists."""

    details = ("version",)

    @property
    def version(self) -> int:
        """Return the version that the entity has."""
        return int(self.metadata["version"])


class AbortedError(Error):
    """The call lost against another one. Nothing was changed."""


class VersionMismatchError(AbortedError, RefusalError):
    """The entity's version is not ``if_version``: somebody else wrote in between."""

    details = ("expected", "version")

    @property
    def expected(self) -> int:
        """Return the ``if_version`` of the call."""
        return int(self.metadata["expected"])

    @property
    def version(self) -> int:
        """Return the version that the entity has; 0 if it does not exist."""
        return int(self.metadata["version"])


class DuplicateInProgressError(AbortedError):
    """Another call with this idempotency key, or another write of the entity, is under way.

    This one changed nothing: repeat it, with the same key.
    """


class ResultChangedError(AbortedError):
    """The rows of a query have changed since its first page was read: query again."""


class FailedPreconditionError(Error):
    """The call does not fit the state of the system; repeating it does not help."""


class MinVersionNotReachedError(FailedPreconditionError):
    """The entity has never had ``min_version``."""

    details = ("min_version", "version")

    @property
    def min_version(self) -> int:
        """Return the ``min_version`` of the call."""
        return int(self.metadata["min_version"])

    @property
    def version(self) -> int:
        """Return the newest version of the entity; 0 if it never existed."""
        return int(self.metadata["version"])


class AnswerTooLargeError(FailedPreconditionError):
    """The entities asked for are larger than the server answers at a time: ask for fewer."""

    details = ("size", "limit")

    @property
    def size(self) -> int:
        """Return the bytes that the answer would have."""
        return int(self.metadata["size"])

    @property
    def limit(self) -> int:
        """Return the bytes that an answer may have."""
        return int(self.metadata["limit"])


class ConstraintViolatedError(FailedPreconditionError, RefusalError):
    """A write of a relational kind broke a constraint of the database. Nothing was changed."""

    @property
    def constraint(self) -> str:
        """Return its name, or the column that must not be NULL; empty if it has none."""
        return self.metadata.get("constraint", "")


class ResultTooLargeError(FailedPreconditionError):
    """A query has more rows or bytes than it may: narrow its parameters, or export it."""

    details = ("limit",)

    @property
    def bound(self) -> str:
        """Return what was passed: ``max_rows`` or ``max_bytes``."""
        return self.metadata.get("bound", "")

    @property
    def limit(self) -> int:
        """Return how many rows, or bytes, a result of the query may have."""
        return int(self.metadata["limit"])


class QueryFailedError(FailedPreconditionError):
    """The database could not compute a query over the data as they are: a division by zero."""

    @property
    def sqlstate(self) -> str:
        """Return PostgreSQL's code of what went wrong."""
        return self.metadata.get("sqlstate", "")


class ReadOnlyError(FailedPreconditionError):
    """Writes are refused for now, of the kind or of all; the message says why.

    Nothing was changed; try again after ``retry_after``. Reads, snapshots and quotas go on.
    """

    @property
    def kind(self) -> str:
        """Return the kind that is read-only, empty if all are."""
        return self.metadata.get("kind", "")


class ProjectionFailedError(FailedPreconditionError):
    """The document cannot be brought into the shape that readers are given.

    For those to mend who run the service: its data, or the transform of the configuration.
    """

    details = ("projection_version",)

    @property
    def projection_version(self) -> int:
        """Return the projection version that cannot be made."""
        return int(self.metadata["projection_version"])


class FlagsElsewhereError(FailedPreconditionError):
    """Flags cannot be set here: another provider says what they are."""


class ReservationSettledError(FailedPreconditionError):
    """The reservation was settled before, in another way. This call changed nothing.

    Of ``reserve_quota``: what was reserved under this idempotency key was committed.
    """

    details = ("committed", "refunded")

    @property
    def committed(self) -> int:
        """Return the units that count as used."""
        return int(self.metadata["committed"])

    @property
    def refunded(self) -> int:
        """Return the units that were given back."""
        return int(self.metadata["refunded"])


class UnavailableError(Error):
    """The server, or what it needs, cannot be reached. Nothing was changed; try again.

    Of a quota: nothing was allowed, but its units may have been debited in vain. It is for
    the caller to say what that means, to let the work be done (fail open) or not.
    """


class StoreUnavailableError(UnavailableError):
    """A store that the call needs cannot be reached, as said of ``UnavailableError``."""


class WriteOutcomeUnknownError(Error):
    """A connection was lost during a write, which may or may not have been applied.

    Not an ``UnavailableError``, since it must not be answered by simply trying again: repeat
    it with its ``idempotency_key``, or read the entity with ``strong`` first. Raised if the
    server lost a store, and if the client lost the server or could not reach it, which gRPC
    does not tell apart; also if an earlier try was lost so, whatever became of the last one.
    Not of ``quota`` and ``reserve_quota``, which allowed nothing then: ``UnavailableError``.
    """


class DeadlineExceededError(Error):
    """The timeout of the call passed. A write may or may not have been applied."""


class QueryTimeoutError(DeadlineExceededError):
    """A query took longer than its own timeout, which the server's configuration sets."""


class ResourceExhaustedError(Error):
    """A limit is reached: of work, or of the size of a message."""


class OverloadedError(ResourceExhaustedError):
    """The server, or a store behind it, has more work than it can take. Nothing was changed."""


class QuotaDeniedError(ResourceExhaustedError):
    """A reservation was used though the quota denied it. Nothing was reserved.

    Raised by ``Reservation`` alone: that a quota is used up is else an answer, no error.
    """


class UnauthenticatedError(Error):
    """The call says nothing of who makes it, and has to. Nothing was changed."""


class PermissionDeniedError(Error):
    """Who makes the call may not. Nothing was changed."""


class InternalError(Error):
    """A fault of the server; its log holds the detail under ``request_id``.

    A write may or may not have been applied.
    """


def invalid_request(violations: Iterable[FieldViolation]) -> InvalidRequestError:
    """Return the error for a request that is refused before it is sent."""
    listed = tuple(violations)
    return InvalidRequestError(
        "; ".join(f"{violation.field}: {violation.description}" for violation in listed),
        reason="INVALID_REQUEST",
        code=StatusCode.INVALID_ARGUMENT,
        field_violations=listed,
    )
