"""What botocore raises, in the words of the domain."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import structlog
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as ConnectFailedError

from duostore_server.domain.errors import (
    Store,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.errors import StoreError

_OVERLOADED: Final = frozenset(
    {
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
    }
)
_SERVER_FAULT: Final = 500

# Of a conditional write: what is held does not allow it; a transaction is at work on it.
CONDITION_FAILED: Final = "ConditionalCheckFailedException"
CONFLICT: Final = "TransactionConflictException"

# Faults that last until somebody mends them, and how.
_ADVICE: Final = {
    "ResourceNotFoundException": "a table is missing: run `duostore migrate`",
    "AccessDeniedException": "the role may not do this: extend its policy",
    "ExpiredTokenException": "the credentials have expired: renew them",
    "IncompleteSignatureException": "the credentials are malformed: correct them",
    "InvalidSignatureException": "the secret key is wrong, or this machine's clock is",
    "MissingAuthenticationTokenException": "no credentials were sent: configure them",
    "UnrecognizedClientException": "the credentials are not known to this region",
}
_QUIET_SECONDS: Final = 60.0

_log = structlog.get_logger(__name__)


def error_code(error: ClientError) -> str:
    """Return the code by which DynamoDB names an error, or an empty string."""
    return error.response.get("Error", {}).get("Code", "")


def is_overload(error: ClientError) -> bool:
    """Return whether DynamoDB, or our share of it, has no room for a request."""
    return error_code(error) in _OVERLOADED


class ErrorEdge:
    """Turns the driver's exceptions into domain errors where they leave this folder.

    Faults that an operator has to mend are logged with advice, at most once a minute
    each, and so is what is not known here. All of them are a store that cannot be used:
    there is an authority behind it.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until: dict[str, float] = {}

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Run a block of driver calls; raise a ``StoreError`` for what they raise."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            known = self._answer(error) if isinstance(error, ClientError) else self._silence(error)
            raise known from error

    def complain(self, fault: str, advice: str) -> None:
        """Log a fault that lasts until it is mended, unless it was logged a moment ago."""
        now = self._clock()
        if now >= self._quiet_until.get(fault, now):
            self._quiet_until[fault] = now + _QUIET_SECONDS
            _log.error("dynamodb refuses work", fault=fault, advice=advice)

    def _answer(self, error: ClientError) -> StoreError:
        code = error_code(error)
        if is_overload(error):
            return StoreOverloadedError(Store.DYNAMODB)
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) < _SERVER_FAULT:
            self.complain(code, _ADVICE.get(code, f"not expected of {error.operation_name}"))
        return StoreUnavailableError(Store.DYNAMODB)

    def _silence(self, error: BotoCoreError) -> StoreError:
        match error:
            case ConnectTimeoutError() | ReadTimeoutError():
                return StoreTimeoutError(Store.DYNAMODB)
            case ConnectFailedError() | HTTPClientError():
                return StoreUnavailableError(Store.DYNAMODB)
            case (
                CredentialRetrievalError()
                | NoCredentialsError()
                | PartialCredentialsError()
                | TokenRetrievalError()
            ):
                self.complain(type(error).__name__, "no credentials: configure them")
            case _:
                self.complain(type(error).__name__, "not expected of the driver")
        return StoreUnavailableError(Store.DYNAMODB)
