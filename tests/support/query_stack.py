"""A ``Querying`` over stores in memory, of which a test decides what they do."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from duostore_server.access.generations import Generations
from duostore_server.access.query_checks import QueryChecks
from duostore_server.access.querying import Querying
from duostore_server.access.reading import lease_pauses
from duostore_server.access.result_flights import ResultFlights
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.keys import GenerationKey, ResultKey
from duostore_server.domain.queries import Column, Param, ParamType, Query
from duostore_server.domain.sql import SqlFile, SqlStatement, Text
from duostore_server.storage.cache.memory import MemoryCache
from tests.support.fake_queries import FakeQueries
from tests.support.reader_stack import Clock, Told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from duostore_server.access.querying import QueryPage
    from duostore_server.domain.errors import Store
    from duostore_server.domain.queries import ParamValue, QueryCall, Result, Row

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
TENANT = "acme"
COLUMNS = (Column("id", "text"), Column("status", "text"))
ROWS: list[Row] = [["1", "draft"], ["2", "draft"], ["3", "published"]]
CHANGED: list[Row] = [["1", "draft"], ["4", "draft"], ["3", "published"]]
# What the query of a stack depends on.
GENERATION = GenerationKey(TENANT, "proposal")


def sql_file(text: str = "SELECT 1") -> SqlFile:
    """Return SQL that nobody runs; its digest is of its text."""
    return SqlFile("sql/x.sql", (SqlStatement((Text(text, 1),)),), text.encode().hex())


def query(name: str = "by_status", **options: Any) -> Query:
    """Return a query with one optional parameter, ``status``, that depends on proposals."""
    given: dict[str, Any] = {
        "sql": sql_file(),
        "params": {"status": Param("status", ParamType.STRING, required=False, default="draft")},
        "cache_ttl": 300.0,
        "max_rows": 1000,
        "max_bytes": 100_000,
        "timeout": 5.0,
        "depends_on": ("proposal",),
    }
    return Query(name, **{**given, **options})


def encode(result: Result) -> bytes:
    """Serialize a result; ``slice_of`` and ``rows_of`` read what this makes."""
    columns = [[column.name, column.type] for column in result.columns]
    return json.dumps([columns, result.rows, result.as_of.isoformat()]).encode()


def row_bytes(row: Row) -> int:
    return len(json.dumps(row))


def slice_of(payload: bytes, offset: int, size: int) -> tuple[bytes, int]:
    columns, rows, as_of = json.loads(payload)
    return json.dumps([columns, rows[offset : offset + size], as_of]).encode(), len(rows)


def rows_of(page: QueryPage) -> list[Row]:
    """Return the rows of a page."""
    _, rows, _ = json.loads(page.payload)
    return list(rows)


def as_of(page: QueryPage) -> datetime:
    """Return the time that a page is of."""
    *_, text = json.loads(page.payload)
    return datetime.fromisoformat(text)


class Rows(list["Row"]):
    """Rows that keep where they were read from."""

    def __init__(self, rows: Iterable[Row]) -> None:
        super().__init__(rows)
        self.fetched: list[int] = []

    def __getitem__(self, place: Any) -> Any:
        self.fetched.append(place.start)
        return super().__getitem__(place)


class Database:
    """What queries are answered, two rows to a portion, each a second after the one before.

    Of the calls it keeps the values. ``queries.during`` decides what happens meanwhile.
    """

    def __init__(self, *names: str) -> None:
        self.rows = Rows(ROWS)
        self.calls: list[Mapping[str, ParamValue]] = []
        self.queries = FakeQueries(
            dict.fromkeys(names, self._answer),
            columns=dict.fromkeys(names, COLUMNS),
            portion=2,
            now=lambda: NOON + timedelta(seconds=len(self.calls)),
        )

    def _answer(self, call: QueryCall) -> Rows:
        self.calls.append(call.values)
        return self.rows


class QueryStack:
    """A process that answers queries, with all that a test may want to know and do.

    ``beside`` is another process of the same deployment, which has the cache in common.
    """

    def __init__(
        self,
        *queries: Query,
        jitter: float = 1.0,
        beside: QueryStack | None = None,
        pause: Callable[[float], None] | None = None,
        **cache: Any,
    ) -> None:
        configured = {one.name: one for one in queries or (query(),)}
        self.database = Database(*configured)
        self.asked: list[str] = []
        self.paused: list[float] = []
        self.served: list[tuple[str, Store]] = []
        self.clock: Clock = beside.clock if beside else Clock()
        self.entries: MemoryCache = (
            beside.entries if beside else MemoryCache(clock=self.clock, **cache)
        )
        self.cache = Told("cache", self.entries, self.asked)
        self.during_pause: Callable[[], object] = lambda: None
        self.generations = Generations(self.cache, lambda: NOON)
        self.querying = Querying(
            checks=QueryChecks(configured),
            queries=self.database.queries,
            cache=self.cache,
            generations=self.generations,
            flights=ResultFlights(),
            encode=encode,
            row_bytes=row_bytes,
            slice_of=slice_of,
            pauses=lease_pauses,
            pause=pause or self._pause,
            jitter=lambda: jitter,
            now=lambda: NOON,
            served=lambda name, store: self.served.append((name, store)),
        )

    @property
    def runs(self) -> int:
        """How often the SQL was run."""
        return len(self.database.calls)

    def query(
        self,
        params: Mapping[str, Any] | None = None,
        *,
        name: str = "by_status",
        tenant: str = TENANT,
        within: float = 10.0,
        **page: Any,
    ) -> QueryPage:
        """Ask as callers do; ``page_size`` and ``page_token`` are options."""
        return self.querying.query(tenant, name, dict(params or {}), self.soon(within), **page)

    def result_keys(self) -> list[ResultKey]:
        """Return the names of all results that are cached, or leased."""
        return [key for key in self.entries._slots if isinstance(key, ResultKey)]

    def result_key(self) -> ResultKey:
        """Return the name of the only one."""
        (key,) = self.result_keys()
        return key

    def forget_calls(self) -> None:
        """Forget what was asked so far."""
        self.database.calls.clear()
        self.asked.clear()
        self.served.clear()

    def soon(self, seconds: float = 10.0) -> Deadline:
        return Deadline.after(seconds, clock=self.clock)

    def _pause(self, seconds: float) -> None:
        self.paused.append(seconds)
        self.clock.now += seconds
        self.during_pause()
