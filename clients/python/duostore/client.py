"""The synchronous client."""

from __future__ import annotations

import math
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from duostore import messages
from duostore.channel import channel_options, open_channel
from duostore.errors import AnswerTooLargeError, EntityNotFoundError
from duostore.status import Call, broken_contract, error_of
from duostore.v1.data_access_pb2_grpc import DataAccessStub
from duostore.values import Entity, Key, Saved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from google.protobuf.message import Message

RequestT = TypeVar("RequestT", bound="Message")
ResponseT = TypeVar("ResponseT", bound="Message")

DEFAULT_TIMEOUT: Final = 5.0
MAX_BATCH_KEYS: Final = 500
# The server logs each call under it, and answers errors with it.
_REQUEST_ID: Final = "x-request-id"


class Client:
    """Reads and writes entities as plain dicts; safe to use from many threads.

    ``target`` is host:port, or any other gRPC name. Without ``credentials`` the
    connection is in the clear; ``grpc.ssl_channel_credentials()`` gives TLS. ``metadata``
    is sent with every call. ``options`` are gRPC channel options and count before the
    client's own. ``retries=False`` leaves all retrying to you; otherwise reads are tried
    up to 4 times while the server or a store is unavailable, within their timeout. Writes
    are never repeated.

    ``timeout``, in seconds, bounds every call that brings none of its own. Every method
    may raise any ``duostore.Error``.

    Creating a client opens nothing and reads nothing; the first call connects. So it may
    be created before a process forks, but must first be used after. ``close``, or the end
    of its ``with`` block, ends its connections and cancels the calls that are under way.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        retries: bool = True,
        options: Iterable[tuple[str, Any]] = (),
    ) -> None:
        if not target:
            raise ValueError("target is empty; give host:port")
        self._target = target
        self._timeout = _finite(timeout)
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout} s; it must be more than 0")
        self._credentials = credentials
        # Names of metadata are lower case on the wire, and gRPC refuses all else.
        self._metadata = tuple((name.lower(), value) for name, value in metadata)
        self._options = channel_options(options, retries=retries)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._stub: DataAccessStub | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections for good. Safe to repeat; calls raise ``RuntimeError`` then."""
        with self._lock:
            self._closed = True
            channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    def get(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        *,
        tenant: str = "",
        min_version: int | None = None,
        strong: bool = False,
        timeout: float | None = None,
    ) -> Entity:
        """Return an entity; raises ``EntityNotFoundError`` if it does not exist or is deleted.

        ``min_version`` is the version of an earlier answer: what is read is that version
        or a newer one, whatever fails. ``strong`` reads the database itself.
        """
        key = Key(kind, id, tenant)
        request = messages.get_request(key, min_version=min_version, strong=strong)
        call = _reading(f"get({_said(key)})")
        response = self._call(self._opened().Get, request, call, self._seconds(timeout))
        if not response.HasField("entity") or messages.key_of(response.entity.key) != key:
            raise broken_contract(call, "it answered with another entity, or with none")
        return messages.entity_of(response.entity, response.receipt)

    def get_or_none(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        *,
        tenant: str = "",
        min_version: int | None = None,
        strong: bool = False,
        timeout: float | None = None,
    ) -> Entity | None:
        """Return what ``get`` returns, or None if the entity does not exist or is deleted."""
        try:
            return self.get(
                kind, id, tenant=tenant, min_version=min_version, strong=strong, timeout=timeout
            )
        except EntityNotFoundError:
            return None

    def batch_get(self, keys: Iterable[Key], *, timeout: float | None = None) -> dict[Key, Entity]:
        """Return the entities that exist, in the order of their keys.

        Any number of keys: 500 are sent at a time, fewer if their entities are larger than
        the server answers at a time, one batch after the other, and ``timeout`` bounds them
        all. Each entity is read as by ``get``; together they are
        not one snapshot in time. A key given twice is read once. If one batch fails, the
        whole call does.
        """
        wanted = list(dict.fromkeys(keys))
        deadline = time.monotonic() + self._seconds(timeout)
        found: dict[Key, Entity] = {}
        start, step = 0, MAX_BATCH_KEYS
        while chunk := wanted[start : start + step]:
            call = _reading(f"batch_get(keys[{start}:{start + len(chunk)}])")
            try:
                found.update(self._batch(chunk, call, deadline - time.monotonic()))
            except AnswerTooLargeError as error:
                if len(chunk) == 1:
                    raise
                step = _fewer(len(chunk), error)
            else:
                start += len(chunk)
        return found

    def save(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        data: Mapping[str, Any],
        *,
        tenant: str = "",
        if_version: int | None = None,
        if_absent: bool = False,
        timeout: float | None = None,
    ) -> Saved:
        """Create an entity or replace its data; once this returns, the write is durable.

        ``if_version`` requires that the entity has this version, and raises
        ``VersionMismatchError`` otherwise; ``if_absent`` that it does not exist or is
        deleted, and raises ``EntityExistsError``. ``data`` holds what JSON holds. What
        would not come back as it is raises ``InvalidRequestError``, before anything is
        sent: whole numbers beyond 2^53, NaN, keys that are no strings, other types.

        Never repeated by the client: an error whose ``maybe_applied`` is True leaves open
        whether the write was applied.
        """
        key = Key(kind, id, tenant)
        request = messages.save_request(key, data, if_version=if_version, if_absent=if_absent)
        call = _writing(f"save({_said(key)})")
        response = self._call(self._opened().Save, request, call, self._seconds(timeout))
        return messages.saved_of(response)

    def delete(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        *,
        tenant: str = "",
        if_version: int | None = None,
        timeout: float | None = None,
    ) -> Saved:
        """Delete an entity; once this returns, the deletion, a version of its own, is durable.

        Raises ``EntityNotFoundError`` if the entity does not exist, and
        ``VersionMismatchError`` if ``if_version`` is not its version. Never repeated, as
        ``save``.
        """
        key = Key(kind, id, tenant)
        request = messages.delete_request(key, if_version=if_version)
        call = _writing(f"delete({_said(key)})")
        response = self._call(self._opened().Delete, request, call, self._seconds(timeout))
        return messages.saved_of(response)

    def _batch(self, keys: Sequence[Key], call: Call, seconds: float) -> dict[Key, Entity]:
        request = messages.batch_get_request(keys)
        response = self._call(self._opened().BatchGet, request, call, seconds)
        entities = {
            entity.key: entity
            for entity in (
                messages.entity_of(message, response.receipt) for message in response.entities
            )
        }
        missing = {messages.key_of(message) for message in response.missing}
        # Absent is only what the server says to be absent.
        if len(entities) + len(missing) != len(keys) or entities.keys() | missing != set(keys):
            raise broken_contract(call, "not every key is answered, or others are")
        return {key: entities[key] for key in keys if key in entities}

    def _opened(self) -> DataAccessStub:
        if (stub := self._stub) is not None:
            return stub
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed; create another one")
            if self._stub is None:
                self._channel = open_channel(self._target, self._credentials, self._options)
                self._stub = DataAccessStub(self._channel)
            return self._stub

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else _finite(timeout)

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT],
        request: RequestT,
        call: Call,
        seconds: float,
    ) -> ResponseT:
        try:
            return method(
                request,
                timeout=seconds,
                metadata=((_REQUEST_ID, call.request_id), *self._metadata),
            )
        except grpc.RpcError as error:
            trailing = [(item.key, item.value) for item in error.trailing_metadata() or ()]
            raise error_of(call, error.code(), error.details() or "", trailing) from error


def _reading(text: str) -> Call:
    return Call(text, uuid.uuid4().hex, writes=False)


def _writing(text: str) -> Call:
    return Call(text, uuid.uuid4().hex, writes=True)


def _fewer(count: int, error: AnswerTooLargeError) -> int:
    """Return how many keys to ask for instead of ``count``: less than that, at least 1.

    As many as fit if all entities are of one size, and at most half, so that it ends soon.
    """
    fitting = count * error.limit // max(error.size, 1)
    return max(1, min(fitting, count // 2))


def _said(key: Key) -> str:
    """Return a key as the arguments of a call, control characters escaped."""
    tenant = f", tenant={key.tenant!r}" if key.tenant else ""
    return f"{key.kind!r}, {key.id!r}{tenant}"


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError(f"timeout is {seconds}; every call needs a finite number of seconds")
    return seconds
