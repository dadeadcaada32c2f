"""What can go wrong, as types. ``rpc.status`` turns them into status codes, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Store(Enum):
    """A store behind the service; the value is its name in metrics, health and errors."""

    CACHE = "cache"
    DYNAMODB = "dynamodb"
    AURORA = "aurora"


class Reason(Enum):
    """Why a call failed: ``duostore.v1.ErrorReason`` without its prefix."""

    INVALID_REQUEST = "INVALID_REQUEST"
    ENTITY_NOT_FOUND = "ENTITY_NOT_FOUND"
    ENTITY_EXISTS = "ENTITY_EXISTS"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    MIN_VERSION_NOT_REACHED = "MIN_VERSION_NOT_REACHED"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    WRITE_OUTCOME_UNKNOWN = "WRITE_OUTCOME_UNKNOWN"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    OVERLOADED = "OVERLOADED"
    INTERNAL = "INTERNAL"
    ANSWER_TOO_LARGE = "ANSWER_TOO_LARGE"
    SNAPSHOT_NOT_FOUND = "SNAPSHOT_NOT_FOUND"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    DUPLICATE_IN_PROGRESS = "DUPLICATE_IN_PROGRESS"
    RESERVATION_NOT_FOUND = "RESERVATION_NOT_FOUND"
    RESERVATION_SETTLED = "RESERVATION_SETTLED"
    CONSTRAINT_VIOLATED = "CONSTRAINT_VIOLATED"
    RESULT_TOO_LARGE = "RESULT_TOO_LARGE"
    RESULT_CHANGED = "RESULT_CHANGED"
    QUERY_FAILED = "QUERY_FAILED"
    QUERY_TIMEOUT = "QUERY_TIMEOUT"
    READ_ONLY = "READ_ONLY"
    PROJECTION_FAILED = "PROJECTION_FAILED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    FLAGS_ELSEWHERE = "FLAGS_ELSEWHERE"
    BACKFILL_NOT_FOUND = "BACKFILL_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request and what is wrong with it, both fit for the caller's eyes."""

    field: str
    description: str


class DuostoreError(Exception):
    """A failure that the caller may know of. Its text is fit for the caller's eyes."""

    reason: ClassVar[Reason]
    # The attributes that programs are told of.
    details: ClassVar[tuple[str, ...]] = ()

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the details for programs, sent as ``ErrorInfo.metadata``."""
        return {name: str(getattr(self, name)) for name in self.details}


class InvalidRequestError(DuostoreError):
    """The request cannot be accepted as it is. Lists everything that is wrong with it."""

    reason = Reason.INVALID_REQUEST

    def __init__(self, violations: Iterable[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))


class RefusalError(DuostoreError):
    """What a write requires does not hold. ``mutation`` is its place in a transaction."""

    mutation: int | None = None

    def at(self, mutation: int) -> Self:
        """Return this refusal, naming the mutation of a transaction that it is of."""
        if self.mutation is None:
            self.mutation = mutation
            self.args = (f"mutations[{mutation}]: {self}",)
        return self

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the details, with the index of the mutation if it is one of several."""
        place = {} if self.mutation is None else {"mutation": str(self.mutation)}
        return {**super().metadata, **place}


class EntityNotFoundError(RefusalError):
    """The entity does not exist (``version`` 0) or is deleted (its tombstone's version)."""

    reason = Reason.ENTITY_NOT_FOUND
    details = ("version",)

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__("the entity is deleted" if version else "the entity does not exist")


class EntityExistsError(RefusalError):
    """``if_absent`` does not hold: the entity exists with ``version``."""

    reason = Reason.ENTITY_EXISTS
    details = ("version",)

    def __init__(self, version: int) -> None:
        self.version = version
        super().__init__(f"the entity exists, with version {version}")


class VersionMismatchError(RefusalError):
    """``if_version`` does not hold. ``version`` is 0 if the entity does not exist."""

    reason = Reason.VERSION_MISMATCH
    details = ("expected", "version")

    def __init__(self, expected: int, version: int) -> None:
        self.expected = expected
        self.version = version
        found = f"it has version {version}" if version else "it does not exist"
        super().__init__(f"expected the entity at version {expected}, but {found}")


class MinVersionNotReachedError(DuostoreError):
    """Even the authority holds an older version than the caller says to have seen."""

    reason = Reason.MIN_VERSION_NOT_REACHED
    details = ("min_version", "version")

    def __init__(self, min_version: int, version: int) -> None:
        self.min_version = min_version
        self.version = version
        super().__init__(
            f"min_version is {min_version}, but the newest version of the entity is {version}; "
            "was the token taken from another entity or deployment?"
        )


class SnapshotNotFoundError(RefusalError):
    """There is no such snapshot. ``sequence`` is 0 if the newest was asked for."""

    reason = Reason.SNAPSHOT_NOT_FOUND
    details = ("sequence",)

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        which = f"snapshot {sequence}" if sequence else "snapshot"
        super().__init__(f"the entity has no {which}, or it has expired")


class ConstraintViolatedError(RefusalError):
    """The database refused what a relational kind writes; nothing was written.

    ``constraint`` is its name, or the column that must not be NULL; empty if it has none.
    """

    reason = Reason.CONSTRAINT_VIOLATED
    details = ("constraint",)

    def __init__(self, constraint: str, *, column: bool = False) -> None:
        """``column``: what is named is a column that must not be NULL."""
        self.constraint = constraint
        if column:
            fault = f"the column {constraint!r} of the database must not be NULL"
        else:
            which = f"the constraint {constraint!r}" if constraint else "a constraint"
            fault = f"{which} of the database does not hold"
        super().__init__(f"{fault}; nothing was written")


class IdempotencyKeyReusedError(DuostoreError):
    """The idempotency key is that of another request."""

    reason = Reason.IDEMPOTENCY_KEY_REUSED

    def __init__(self) -> None:
        super().__init__(
            "idempotency_key: was used for another request; use a new one for each intention"
        )


class DuplicateInProgressError(DuostoreError):
    """A write was not seen applied, for the same or another one of its entity is under way.

    It has an idempotency key, or appends a snapshot: it is safe to repeat.
    """

    reason = Reason.DUPLICATE_IN_PROGRESS

    def __init__(self) -> None:
        super().__init__(
            "a call with the same idempotency key, or another write of the same entity, is under"
            " way; repeat the call with the same key"
        )


class ReservationNotFoundError(DuostoreError):
    """The tenant has no such reservation, or it has expired."""

    reason = Reason.RESERVATION_NOT_FOUND

    def __init__(self) -> None:
        super().__init__("there is no such reservation, or it has expired")


class ReservationSettledError(DuostoreError):
    """The reservation was settled before, in another way: units committed and refunded."""

    reason = Reason.RESERVATION_SETTLED
    details = ("committed", "refunded")

    def __init__(self, committed: int, refunded: int) -> None:
        self.committed = committed
        self.refunded = refunded
        super().__init__(
            f"the reservation was settled before: {committed} committed, {refunded} refunded"
        )


class AnswerTooLargeError(DuostoreError):
    """What was asked for is larger than one answer may be. ``size`` and ``limit`` are bytes."""

    reason = Reason.ANSWER_TOO_LARGE
    details = ("size", "limit")

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"the answer has {size} bytes; at most {limit} are sent at a time: ask for fewer keys"
        )


class ResultTooLargeError(DuostoreError):
    """A result has more than ``limit``: ``bound`` is ``max_rows`` or ``max_bytes``."""

    reason = Reason.RESULT_TOO_LARGE
    details = ("query", "bound", "limit")

    def __init__(self, query: str, bound: str, limit: int) -> None:
        self.query = query
        self.bound = bound
        self.limit = limit
        unit = "rows" if bound == "max_rows" else "bytes"
        super().__init__(
            f"the query {query!r} has more than {limit} {unit} with these parameters; narrow "
            "them, or use Export"
        )


class ResultChangedError(DuostoreError):
    """The result that a page token is of is not the result any more."""

    reason = Reason.RESULT_CHANGED

    def __init__(self) -> None:
        super().__init__("the result has changed since its first page; begin again with that")


class QueryFailedError(DuostoreError):
    """The database could not compute a query over the data as they are."""

    reason = Reason.QUERY_FAILED
    details = ("query", "sqlstate")

    def __init__(self, query: str, sqlstate: str) -> None:
        self.query = query
        self.sqlstate = sqlstate
        super().__init__(
            f"the query {query!r} cannot be computed with these parameters over the data as they "
            f"are (SQLSTATE {sqlstate})"
        )


class QueryTimeoutError(DuostoreError):
    """A query took longer than its own timeout."""

    reason = Reason.QUERY_TIMEOUT
    details = ("query",)

    def __init__(self, query: str) -> None:
        self.query = query
        super().__init__(f"the query {query!r} took longer than its timeout allows")


class ReadOnlyError(DuostoreError):
    """Writes are refused for now: of a kind, or of all if ``kind`` is empty."""

    reason = Reason.READ_ONLY
    details = ("kind",)

    def __init__(self, kind: str, why: str) -> None:
        self.kind = kind
        what = f"{kind!r} is" if kind else "all kinds are"
        super().__init__(f"{what} read-only for now: {why}")


class ProjectionFailedError(DuostoreError):
    """A document cannot be brought into the shape of a projection version."""

    reason = Reason.PROJECTION_FAILED
    details = ("projection_version",)

    def __init__(self, shape: int, why: str) -> None:
        self.projection_version = shape
        super().__init__(
            f"the document cannot be brought into the shape of projection version {shape}: {why}"
        )


class UnauthenticatedError(DuostoreError):
    """The call has to say who makes it."""

    reason = Reason.UNAUTHENTICATED

    def __init__(self, hint: str) -> None:
        super().__init__(f"this call needs credentials: {hint}")


class PermissionDeniedError(DuostoreError):
    """Who makes the call may not."""

    reason = Reason.PERMISSION_DENIED

    def __init__(self, why: str) -> None:
        super().__init__(why)


class FlagsElsewhereError(DuostoreError):
    """Another provider says what the flags are."""

    reason = Reason.FLAGS_ELSEWHERE
    details = ("provider",)

    def __init__(self, provider: str) -> None:
        self.provider = provider
        super().__init__(f"flags are provided by {provider!r}: set them there")


class BackfillNotFoundError(DuostoreError):
    """There is no backfill of a kind that this could be about.

    ``ended`` tells of the last one, if there was one.
    """

    reason = Reason.BACKFILL_NOT_FOUND
    details = ("kind",)

    def __init__(self, kind: str, ended: str = "") -> None:
        self.kind = kind
        super().__init__(
            f"no backfill of {kind!r} is under way: {ended}"
            if ended
            else f"there is no backfill of {kind!r}"
        )


class StoreError(DuostoreError):
    """A store did not do its part."""

    def __init__(self, store: Store, message: str) -> None:
        self.store = store
        super().__init__(message)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return the name of the store."""
        return {"store": self.store.value}


class StoreUnavailableError(StoreError):
    """A store cannot be reached or refuses work. Of a write: it was not applied."""

    reason = Reason.STORE_UNAVAILABLE

    def __init__(self, store: Store) -> None:
        super().__init__(store, f"{store.value} cannot be reached; try again")


class StoreTimeoutError(StoreUnavailableError):
    """A store did not answer within its timeout.

    Of ``Authority.write``: nothing was written. Of writes that are safe to repeat: it may be.
    """


class ControlsUnknownError(StoreUnavailableError):
    """What is set at run time has not been read from Aurora since the process started."""

    def __init__(self) -> None:
        super().__init__(Store.AURORA)
        why = "flags and read-only mode have not been read from aurora since this process started"
        self.args = (f"{why}; try again",)


class StoreOverloadedError(StoreError):
    """A store, or our bounded share of it, has no room for this call. Nothing was done."""

    reason = Reason.OVERLOADED

    def __init__(self, store: Store) -> None:
        super().__init__(store, f"{store.value} has more work than it can take; try again later")


class WriteOutcomeUnknownError(StoreError):
    """A write was sent and its answer lost: it may or may not have been applied."""

    reason = Reason.WRITE_OUTCOME_UNKNOWN

    def __init__(self, store: Store) -> None:
        super().__init__(
            store,
            f"the answer of {store.value} was lost: the write may or may not have been applied; "
            "repeat it with the same idempotency key, or read the entity first",
        )


class DeadlineExceededError(DuostoreError):
    """The caller's deadline passed, or the caller went away."""

    reason = Reason.DEADLINE_EXCEEDED

    def __init__(self) -> None:
        super().__init__("the deadline of the call passed before it was finished")
