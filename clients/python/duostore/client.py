"""The synchronous client."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from duostore import messages
from duostore.channel import channel_options
from duostore.connection import Connection, call_metadata
from duostore.errors import EntityNotFoundError
from duostore.paging import found_in_batches, reading, snapshots_by_pages
from duostore.queries import QueryCalls
from duostore.quotas import QuotaCalls
from duostore.retries import Retries, random_jitter
from duostore.status import Call, Repeat, broken_contract
from duostore.values import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    import grpc

    from duostore.v1 import data_access_pb2
    from duostore.values import Appended, Entity, Mutation, Saved, Snapshot, Transacted

DEFAULT_TIMEOUT: Final = 5.0


class Client(QueryCalls, QuotaCalls):
    """Reads and writes entities as plain dicts, and asks queries and quotas; thread-safe.

    ``target`` is host:port, or any other gRPC name. Without ``credentials`` the
    connection is in the clear; ``grpc.ssl_channel_credentials()`` gives TLS. ``caller`` is
    who calls, for the server's log and audit: up to 128 letters, digits and ``_ . : / = + - @``.
    A server that asks for certificates takes the name in the client's instead. ``metadata``
    is sent with every call. ``options`` are gRPC channel options and count before the
    client's own. What cannot be sent is a ``ValueError`` here.

    ``timeout``, in seconds, bounds every call that brings none of its own, but for ``export``.
    Every method may raise any ``duostore.Error``.

    Within its timeout a call is tried again while the server or a store is unavailable, or
    its outcome unknown. Writes are safe to repeat by their ``idempotency_key``, by which the
    server applies them once: the client makes one for each write that brings none. An empty
    one, ``""``, makes it a write that is tried once. ``quota`` and ``snapshot`` are given
    none: see there. ``retries=False`` leaves all retrying to you, and no keys are made.

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
        caller: str | None = None,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        retries: bool = True,
        options: Iterable[tuple[str, Any]] = (),
    ) -> None:
        if not target:
            raise ValueError("target is empty; give host:port")
        connection = Connection(
            target,
            credentials=credentials,
            metadata=call_metadata(caller, metadata),
            options=channel_options(options),
            retries=Retries(random_jitter) if retries else None,
        )
        super().__init__(connection, timeout=timeout, makes_keys=retries)

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
        self._connection.close()

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
        call = reading(f"get({_said(key)})")
        response = self._connection.call(
            lambda stub: stub.Get, request, call, self._seconds(timeout)
        )
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
        return found_in_batches(self._connection, wanted, self._seconds(timeout))

    def save(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        data: Mapping[str, Any],
        *,
        tenant: str = "",
        if_version: int | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Saved:
        """Create an entity or replace its data; once this returns, the write is durable.

        ``if_version`` requires that the entity has this version, and raises
        ``VersionMismatchError`` otherwise; ``if_absent`` that it does not exist or is
        deleted, and raises ``EntityExistsError``. ``data`` holds what JSON holds. What
        would not come back as it is raises ``InvalidRequestError``, before anything is
        sent: whole numbers of 2^53 and beyond, NaN, keys that are no strings, other types.

        With an ``idempotency_key`` of your own, a repetition of the whole call, by whomever,
        is applied once as well, for 24 hours by default. An error whose ``maybe_applied`` is
        True leaves open whether the write was applied.
        """
        key = Key(kind, id, tenant)
        call = self._writing(f"save({_said(key)})", idempotency_key)
        request = messages.save_request(
            key,
            data,
            if_version=if_version,
            if_absent=if_absent,
            idempotency_key=call.idempotency_key,
        )
        return self._save(request, call, timeout)

    def publish(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        sequence: int = 0,
        *,
        tenant: str = "",
        if_version: int | None = None,
        if_absent: bool = False,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Saved:
        """Save what a snapshot of the entity holds: that with ``sequence``, or the newest if 0.

        All else is as with ``save``. Raises ``SnapshotNotFoundError`` if there is none, or
        it has expired.
        """
        key = Key(kind, id, tenant)
        call = self._writing(f"publish({_said(key)})", idempotency_key)
        request = messages.publish_request(
            key,
            sequence,
            if_version=if_version,
            if_absent=if_absent,
            idempotency_key=call.idempotency_key,
        )
        return self._save(request, call, timeout)

    def delete(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        *,
        tenant: str = "",
        if_version: int | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Saved:
        """Delete an entity; once this returns, the deletion, a version of its own, is durable.

        Raises ``EntityNotFoundError`` if the entity does not exist, and
        ``VersionMismatchError`` if ``if_version`` is not its version. ``idempotency_key``
        is as with ``save``.
        """
        key = Key(kind, id, tenant)
        call = self._writing(f"delete({_said(key)})", idempotency_key)
        request = messages.delete_request(
            key, if_version=if_version, idempotency_key=call.idempotency_key
        )
        response = self._connection.call(
            lambda stub: stub.Delete, request, call, self._seconds(timeout)
        )
        return messages.saved_of(response)

    def transact(
        self,
        mutations: Iterable[Mutation],
        *,
        tenant: str = "",
        idempotency_key: str | None = None,
        timeout: float | None = None,
    ) -> Transacted:
        """Apply up to 100 mutations of one tenant in one transaction: all of them or none.

        They are ``Save``, ``Publish``, ``Delete`` and ``Check``, of different entities, whose
        kinds are at home in Aurora; all see the entities as they were before. A
        ``RefusalError``, such as ``VersionMismatchError``, says by its ``mutation`` which
        one was refused. ``idempotency_key`` is as with ``save``.
        """
        wanted = list(mutations)
        call = self._writing(f"transact({len(wanted)} mutations)", idempotency_key)
        request = messages.transact_request(wanted, tenant, idempotency_key=call.idempotency_key)
        response = self._connection.call(
            lambda stub: stub.Transact, request, call, self._seconds(timeout)
        )
        answer = messages.transacted_of(response)
        if [result.key for result in answer.results] != [
            Key(mutation.kind, mutation.id, tenant) for mutation in wanted
        ]:
            raise broken_contract(call, "it answers other mutations than were sent")
        return answer

    def snapshot(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        data: Mapping[str, Any],
        *,
        tenant: str = "",
        idempotency_key: str = "",
        timeout: float | None = None,
    ) -> Appended:
        """Append a snapshot of an entity, which need not exist: once this returns, it is durable.

        ``data`` is as with ``save``. Tried again without an ``idempotency_key``, too: to be
        stored twice does a snapshot no harm, and a key doubles the price of storing it. So the
        client makes none.
        """
        key = Key(kind, id, tenant)
        repeat = Repeat.KEYED if idempotency_key else Repeat.HARMLESS
        call = Call(f"snapshot({_said(key)})", uuid.uuid4().hex, repeat, idempotency_key)
        request = messages.snapshot_request(key, data, idempotency_key=idempotency_key)
        response = self._connection.call(
            lambda stub: stub.Snapshot, request, call, self._seconds(timeout)
        )
        return messages.appended_of(response)

    def get_snapshot(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        sequence: int = 0,
        *,
        tenant: str = "",
        timeout: float | None = None,
    ) -> Snapshot:
        """Return the snapshot with this sequence, or the newest if it is 0.

        Raises ``SnapshotNotFoundError`` if there is none, or it has expired.
        """
        key = Key(kind, id, tenant)
        call = reading(f"get_snapshot({_said(key)})")
        request = messages.get_snapshot_request(key, sequence)
        response = self._connection.call(
            lambda stub: stub.GetSnapshot, request, call, self._seconds(timeout)
        )
        snapshot = messages.snapshot_of(response.snapshot)
        if snapshot.key != key or sequence not in {0, snapshot.sequence}:
            raise broken_contract(call, "it answered with another snapshot, or with none")
        return snapshot

    def list_snapshots(
        self,
        kind: str,
        id: str,  # noqa: A002 - the word of the API
        *,
        tenant: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> Iterator[Snapshot]:
        """Yield the snapshots of an entity, newest first; none is no error.

        They are asked for as they are taken, ``page_size`` at a time: 1 to 100, or 20 if it
        is 0. ``timeout`` bounds each page. Snapshots that are added meanwhile are left out.
        """
        key = Key(kind, id, tenant)
        request = messages.list_snapshots_request(key, page_size=page_size)
        text = f"list_snapshots({_said(key)})"
        seconds = self._seconds(timeout)
        return snapshots_by_pages(self._connection, text, key, request, seconds)

    def _save(
        self, request: data_access_pb2.SaveRequest, call: Call, timeout: float | None
    ) -> Saved:
        response = self._connection.call(
            lambda stub: stub.Save, request, call, self._seconds(timeout)
        )
        return messages.saved_of(response)


def _said(key: Key) -> str:
    """Return a key as the arguments of a call, control characters escaped."""
    tenant = f", tenant={key.tenant!r}" if key.tenant else ""
    return f"{key.kind!r}, {key.id!r}{tenant}"
