"""Statements sent in one round trip, of which the rows of the last one are taken bit by bit.

The driver's own pipeline and cursors read an answer to its end before they hand out any of it,
however many bytes that are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from psycopg._queries import PostgresQuery
from psycopg.abc import Params, Query
from psycopg.adapt import Transformer
from psycopg.errors import OperationalError, error_from_result
from psycopg.generators import fetch, fetch_many, send
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from duostore_server.storage.aurora.connection import BoundedConnection

Statement: TypeAlias = tuple[Query, Params | None]

_FAILED: Final = frozenset({ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE})


class RowStream:
    """One round trip on a connection, which nothing else may use until ``is_done``.

    Raises what the first statement that failed did; it is done then, unless the connection is
    lost. A connection whose trip is not done must be closed.
    """

    def __init__(self, connection: BoundedConnection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._sent = 0
        self.is_done = False
        # The last result, of so many rows or none: it tells the columns.
        self.described: PGresult | None = None
        self.rows = 0
        self.largest = 0

    def send(self, *statements: Statement) -> list[PGresult]:
        """Send statements; return the answers to all but the last, whose rows are to be taken.

        As with ``execute`` a statement that has parameters, though they be none, has its
        per cent signs doubled.
        """
        converted = []
        for sql, params in statements:
            query = PostgresQuery(Transformer.from_context(self._connection))
            query.convert(sql, params)
            converted.append(query)
        return self._connection.wait(self._sending(converted))

    def take(self, enough: int) -> list[PGresult]:
        """Return the next rows, one in each result: until they have ``enough`` bytes, or all."""
        return [] if self.is_done else self._connection.wait(self._taking(enough))

    def _sending(self, queries: Sequence[PostgresQuery]) -> PQGen[list[PGresult]]:
        pgconn = self._pgconn
        self._sent = len(queries)
        pgconn.enter_pipeline_mode()
        for query in queries:
            pgconn.send_query_params(
                query.query, query.params, param_types=query.types, param_formats=query.formats
            )
        pgconn.pipeline_sync()
        yield from send(pgconn)
        answers: list[PGresult] = []
        for _ in queries[1:]:
            results = yield from fetch_many(pgconn)
            if results[-1].status in _FAILED:
                yield from self._finish()
                raise error_from_result(results[-1])
            answers.append(results[-1])
        pgconn.set_single_row_mode()
        return answers

    def _taking(self, enough: int) -> PQGen[list[PGresult]]:
        taken: list[PGresult] = []
        size = 0
        while size < enough:
            result = yield from fetch(self._pgconn)
            if result is None:
                # A timeout may come after the last row, and has ended the transaction then.
                if (late := (yield from self._finish())) is not None:
                    raise error_from_result(late)
                break
            if result.status in _FAILED:
                yield from self._finish()
                raise error_from_result(result)
            self.described = result
            if result.status == ExecStatus.SINGLE_TUPLE:
                width = sum(len(result.get_value(0, n) or b"") for n in range(result.nfields))
                self.rows += 1
                self.largest = max(self.largest, width)
                size += width
                taken.append(result)
        return taken

    def _finish(self) -> PQGen[PGresult | None]:
        """Read to the end of the trip; return what failed on the way, but for what was skipped."""
        failed = None
        ends = 0
        while True:
            result = yield from fetch(self._pgconn)
            if result is None:
                ends += 1
                # Of each statement there is one: of a connection that is lost, without end.
                if ends > self._sent:
                    raise OperationalError("the connection was lost")
                continue
            if result.status == ExecStatus.PIPELINE_SYNC:
                break
            if result.status in _FAILED:
                failed = result
        self._pgconn.exit_pipeline_mode()
        self.is_done = True
        return failed
