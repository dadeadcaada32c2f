"""Named queries: the calls of the client that ask them, and the results that they give."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from duostore import messages
from duostore.calling import Calling
from duostore.documents import from_list
from duostore.errors import Error
from duostore.paging import reading
from duostore.status import broken_contract

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from google.protobuf.struct_pb2 import ListValue

    from duostore.connection import Connection
    from duostore.params import Params
    from duostore.status import Call
    from duostore.streaming import Stream
    from duostore.v1 import data_access_pb2

_NONE: Final[Params] = {}
_CLOSED: Final = "the export is closed; no more rows can be taken"


class QueryCalls(Calling):
    """Asks queries of the server's configuration, by their names.

    ``params`` are by name, in any case. Their values are str, int, float, bool, Decimal,
    datetime (with a zone), date, UUID or None, or lists of them. Values of rows are what JSON
    holds: whole numbers of 2^53 and beyond and decimals are strings, timestamps strings of
    RFC 3339 in UTC, NULL is None.

    Raises ``InvalidRequestError`` for a query or parameter that is not known, or a value that
    does not fit; ``QueryFailedError`` and ``QueryTimeoutError`` if it cannot be computed.
    """

    def query(
        self,
        query: str,
        params: Params = _NONE,
        *,
        tenant: str = "",
        page_size: int = 0,
        timeout: float | None = None,
    ) -> QueryResult:
        """Return the result of a query, which may have been cached.

        With a ``page_size`` it is fetched in pages of so many rows, as they are taken; else at
        once. ``timeout`` bounds each page. All pages are of one result: taking rows raises
        ``ResultChangedError`` if it has changed since the first page. A result that is larger
        than the query allows raises ``ResultTooLargeError``: ``export`` has no such limit.
        """
        request = messages.query_request(query, params, tenant=tenant, page_size=page_size)
        text = _said("query", query, params, tenant)
        return QueryResult(self._connection, text, request, self._seconds(timeout))

    def export(
        self,
        query: str,
        params: Params = _NONE,
        *,
        tenant: str = "",
        timeout: float | None = None,
    ) -> Export:
        """Return all rows of a query, however many, as they come from the database.

        Returns when the first of them are there. Use it as a context: the end of the block
        ends the call, which holds a transaction of the database open until then.

        Without a ``timeout`` it takes as long as the server allows. Tried again until the
        first rows are there, within the client's timeout, and never after that: a row does not
        come twice. Raises ``OverloadedError`` if as many exports run as the server allows.
        """
        request = messages.export_request(query, params, tenant=tenant)
        call = reading(_said("export", query, params, tenant))
        # None stands for no bound here, not for that of the client.
        seconds = None if timeout is None else self._seconds(timeout)
        first, stream = self._connection.stream(
            lambda stub: stub.Export,
            request,
            call,
            seconds=seconds,
            patience=self._seconds(timeout),
        )
        if first is None:
            raise broken_contract(call, "it has no columns")
        return Export(first, stream)


class QueryResult:
    """The rows of a query, as of one moment. To iterate gives each row as a dict by column.

    ``columns`` are the names in their order, ``column_types`` their types as PostgreSQL names
    them. All that was committed before ``as_of``, aware and in UTC, was seen. ``served_from`` is
    the cache or Aurora; ``cached_time``, set if it was the cache, when it was put there.

    Pages are fetched as they are needed and kept, so that it can be iterated again. For one
    thread.
    """

    __slots__ = (
        "_connection",
        "_request",
        "_rows",
        "_seconds",
        "_text",
        "as_of",
        "cached_time",
        "column_types",
        "columns",
        "served_from",
    )

    def __init__(
        self,
        connection: Connection,
        text: str,
        request: data_access_pb2.QueryRequest,
        seconds: float,
    ) -> None:
        self._connection = connection
        self._text = text
        self._request: data_access_pb2.QueryRequest | None = request
        self._seconds = seconds
        self._rows: list[list[Any]] = []
        call = reading(text)
        page = connection.call(lambda stub: stub.Query, request, call, seconds)
        self.columns = tuple(page.columns)
        self.column_types = tuple(page.column_types)
        self.as_of = page.as_of.ToDatetime(UTC)
        self.served_from, self.cached_time = messages.served_of(page.receipt)
        self._take(page, request, call)

    def __repr__(self) -> str:
        more = " and more" if self._request is not None else ""
        return f"<QueryResult of {self._text}: {len(self._rows)} rows{more}, as of {self.as_of}>"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        columns = _named(self.columns)
        return (dict(zip(columns, row, strict=True)) for row in self._each())

    @property
    def rows(self) -> list[list[Any]]:
        """Return all rows, each a list in the order of ``columns``; fetches what is missing."""
        while self._fetch():
            pass
        return self._rows

    def _each(self) -> Iterator[list[Any]]:
        taken = 0
        while taken < len(self._rows) or self._fetch():
            # A page may be without rows, and yet not the last one.
            for row in self._rows[taken:]:
                taken += 1
                yield row

    def _fetch(self) -> bool:
        """Fetch the next page; return False if there is none."""
        if (request := self._request) is None:
            return False
        call = reading(self._text)
        page = self._connection.call(lambda stub: stub.Query, request, call, self._seconds)
        if tuple(page.columns) != self.columns:
            raise broken_contract(call, "its pages have different columns")
        self._take(page, request, call)
        return True

    def _take(
        self, page: data_access_pb2.QueryResponse, request: data_access_pb2.QueryRequest, call: Call
    ) -> None:
        if page.next_page_token and page.next_page_token == request.page_token:
            raise broken_contract(call, "its next page is the same again")
        self._rows += _rows_of(page.rows, self.columns, call)
        request.page_token = page.next_page_token
        if not page.next_page_token:
            self._request = None


class Export:
    """The rows of a query as they come, each once. To iterate gives each as a dict by column.

    ``columns``, ``column_types`` and ``as_of`` are as of ``QueryResult``. As a context it ends the
    call with its block, and so does ``close``. Taking a row raises an ``Error`` if the call
    fails: only iterating to the end says that these were all. For one thread, but for ``close``.
    """

    __slots__ = ("_closed", "_failure", "_rows", "_stream", "as_of", "column_types", "columns")

    def __init__(
        self,
        first: data_access_pb2.ExportResponse,
        stream: Stream[data_access_pb2.ExportResponse],
    ) -> None:
        self.columns = tuple(first.columns)
        self.column_types = tuple(first.column_types)
        self.as_of = first.as_of.ToDatetime(UTC)
        self._stream = stream
        self._closed = False
        self._failure: Error | None = None
        self._rows = _each(first, stream)

    def __repr__(self) -> str:
        return f"<Export of {self._stream.call.text}, as of {self.as_of}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        columns = _named(self.columns)
        return (dict(zip(columns, row, strict=True)) for row in self.rows)

    @property
    def rows(self) -> Iterator[list[Any]]:
        """Yield the rows that are still to come, each a list in the order of ``columns``."""
        while True:
            if self._failure is not None:
                # An iterator that has failed ends; to go on must not look like the end of all.
                raise self._failure
            if self._closed:
                raise ValueError(_CLOSED)
            try:
                row = next(self._rows, None)
            except Error as failure:
                if self._closed:
                    raise ValueError(_CLOSED) from failure
                self._failure = failure
                raise
            if row is None:
                return
            yield row

    def close(self) -> None:
        """End the call, if it has not ended. Safe to repeat, and from any thread."""
        self._closed = True
        self._stream.cancel()


def _each(
    first: data_access_pb2.ExportResponse, stream: Stream[data_access_pb2.ExportResponse]
) -> Iterator[list[Any]]:
    # No method: a generator that knew its export would keep it, and the call, from being
    # dropped together with the last name of it.
    columns = tuple(first.columns)
    yield from _rows_of(first.rows, columns, stream.call)
    for portion in stream:
        yield from _rows_of(portion.rows, columns, stream.call)


def _rows_of(rows: Iterable[ListValue], columns: tuple[str, ...], call: Call) -> list[list[Any]]:
    found = [from_list(row) for row in rows]
    if any(len(row) != len(columns) for row in found):
        raise broken_contract(call, "a row has more or fewer values than there are columns")
    return found


def _named(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns if a dict can hold them all."""
    if len(set(columns)) != len(columns):
        raise ValueError(
            f"several of the columns {', '.join(columns)} have one name, and a dict would drop"
            " values: take rows, or name them apart in the SQL"
        )
    return columns


def _said(method: str, query: str, params: Params, tenant: str) -> str:
    """Return a call as people read it. Without the values, which may be secret or long."""
    names = f", {{{', '.join(map(repr, params))}}}" if params else ""
    of_tenant = f", tenant={tenant!r}" if tenant else ""
    return f"{method}({query!r}{names}{of_tenant})"
