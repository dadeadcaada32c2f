"""Tells, of a write that failed, whether it may have been applied all the same."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)

from duostore_server.domain.errors import Store, StoreError, WriteOutcomeUnknownError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.storage.dynamodb.errors import ErrorEdge

_EVENT: Final = "needs-retry.dynamodb"
_SERVER_FAULT: Final = 500


class LostReplies(threading.local):
    """Watches the attempts of a client's calls, of which botocore itself sends several.

    A call whose first attempt timed out and whose second was refused a connection fails
    with the second's error: nothing was applied, if one went by that. So each attempt
    is looked at. Safe to use from many threads, each with a call of its own.
    """

    def __init__(self) -> None:
        self._lost = False

    @property
    def any(self) -> bool:
        """Whether an attempt of this thread's latest call may have been applied unheard."""
        return self._lost

    @contextmanager
    def watched(self, client: DynamoDBClient) -> Iterator[None]:
        """Watch a client while the block runs."""
        self.watch(client)
        try:
            yield
        finally:
            client.meta.events.unregister(_EVENT, self._attempted)

    def watch(self, client: DynamoDBClient) -> None:
        """Watch a client for as long as it lives."""
        client.meta.events.register(_EVENT, self._attempted)

    @contextmanager
    def translated(self, edge: ErrorEdge) -> Iterator[None]:
        """Run a block with one write that must not be applied twice.

        As ``ErrorEdge.translated``; raises ``WriteOutcomeUnknownError`` if the write may
        have been applied.
        """
        self._lost = False
        try:
            with edge.translated():
                yield
        except StoreError as error:
            if self._lost or _is_lost(error.__cause__):
                raise WriteOutcomeUnknownError(Store.DYNAMODB) from error.__cause__
            raise

    def _attempted(
        self,
        response: tuple[Any, dict[str, Any]] | None = None,
        caught_exception: Exception | None = None,
        **_: object,
    ) -> None:
        if response is not None:
            http_response, _parsed = response
            self._lost |= http_response.status_code >= _SERVER_FAULT
        elif caught_exception is not None:
            self._lost |= _is_lost(caught_exception)


def _is_lost(error: BaseException | None) -> bool:
    """Return whether a request with this end may have been carried out.

    Not if no connection came about, if it was never sent, or if DynamoDB refused it.
    """
    match error:
        case ClientError():
            metadata = error.response.get("ResponseMetadata", {})
            return metadata.get("HTTPStatusCode", 0) >= _SERVER_FAULT
        case HTTPClientError() | IncompleteReadError() | SSLError():
            return True
    return False
