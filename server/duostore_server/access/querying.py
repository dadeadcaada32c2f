"""Query: the result from the cache, or computed once and cached under its generations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from duostore_server.access.abandoned import AbandonedLeases
from duostore_server.access.query_pages import (
    DIGEST_BYTES,
    PageToken,
    call_digest,
    page_violations,
    rows_digest,
)
from duostore_server.access.reading import LEAST_TTL
from duostore_server.access.sources import SHARE
from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import (
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    QueryTimeoutError,
    ResultChangedError,
    ResultTooLargeError,
    Store,
    StoreError,
)
from duostore_server.domain.keys import ResultKey
from duostore_server.domain.queries import Result
from duostore_server.domain.query_params import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from duostore_server.access.generations import Generations
    from duostore_server.access.query_checks import QueryChecks
    from duostore_server.access.result_flights import ResultFlights
    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.ports import Cache, Queries
    from duostore_server.domain.queries import QueryCall, Row

# Of the time that is left, what is waited for a result that this process computes: one who gave
# up much earlier would begin the same work, and not end it in time.
_PATIENCE: Final = 0.9
# Who computes it is late in saying that it took too long.
_MARGIN: Final = 1.0
_FLIGHTS: Final = 2
_KEY_BYTES: Final = 32
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class QueryPage:
    """A page of a result, serialized as by ``encode``; ``cached_time`` is set if it was cached."""

    payload: bytes
    next_page_token: str
    served_from: Store
    cached_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Found:
    """A serialized result with the digest of its rows, and where it was found."""

    digest: bytes
    payload: bytes
    cached_time: datetime | None = None

    @classmethod
    def of(cls, entry: Cached) -> _Found | None:
        if entry.payload is None or len(entry.payload) < DIGEST_BYTES:
            return None
        return cls(entry.payload[:DIGEST_BYTES], entry.payload[DIGEST_BYTES:], entry.cached_time)


class Querying:
    """Answers named queries.

    A result is cached under the generations of the kinds that it depends on, which were
    read before it was computed by SQL that sees all that was committed by then. A change
    ends its kind's generation, so that nobody finds the result any more. Hence every
    caller who has read the same generations may be given it, whoever computed it: here no
    lease guards what is cached, it only keeps others from computing the same.
    """

    def __init__(
        self,
        *,
        checks: QueryChecks,
        queries: Queries,
        cache: Cache,
        generations: Generations,
        flights: ResultFlights[_Found],
        encode: Callable[[Result], bytes],
        row_bytes: Callable[[Row], int],
        slice_of: Callable[[bytes, int, int], tuple[bytes, int]],
        pauses: Callable[[float], Sequence[float]],
        pause: Callable[[float], None],
        jitter: Callable[[], float],
        now: Callable[[], datetime],
        served: Callable[[str, Store], None],
    ) -> None:
        """``slice_of`` takes some rows, by offset and number, of what ``encode`` has made.

        And tells how many there are in all. ``row_bytes`` is the size of a row in there;
        ``pauses`` are those that wait for so many seconds in all; ``jitter`` is the part of a
        TTL to use, at most 1; ``served`` counts answers.
        """
        self._checks = checks
        self._queries = queries
        self._cache = cache
        self._generations = generations
        self._flights = flights
        self._encode = encode
        self._row_bytes = row_bytes
        self._slice_of = slice_of
        self._pauses = pauses
        self._pause = pause
        self._jitter = jitter
        self._now = now
        self._served = served
        self._abandoned: AbandonedLeases[ResultKey] = AbandonedLeases()

    def query(
        self,
        tenant: str,
        name: str,
        params: JsonObject,
        deadline: Deadline,
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> QueryPage:
        """Return a page of the result, the whole if ``page_size`` is 0 and there is no token.

        Raises ``InvalidRequestError``, ``ResultTooLargeError``, ``ResultChangedError``, and as
        ``Queries.open`` does if the result has to be computed.
        """
        call = self._checks.call(tenant, name, params, *page_violations(page_size, page_token))
        token = PageToken.parse(page_token) if page_token else None
        if token is not None and token.call != call_digest(call):
            text = "is of another query, tenant or parameters"
            raise InvalidRequestError([FieldViolation("page_token", text)])
        found = self._result(call, deadline)
        store = Store.AURORA if found.cached_time is None else Store.CACHE
        self._served(name, store)
        if token is not None and token.rows != found.digest:
            raise ResultChangedError
        payload, next_page_token = self._page(call, found, token, page_size)
        return QueryPage(payload, next_page_token, store, found.cached_time)

    def _page(
        self, call: QueryCall, found: _Found, token: PageToken | None, size: int
    ) -> tuple[bytes, str]:
        offset = token.offset if token else 0
        if not offset and not size:
            return found.payload, ""
        payload, total = self._slice_of(found.payload, offset, size or call.query.max_rows)
        end = offset + (size or call.query.max_rows)
        if end >= total:
            return payload, ""
        return payload, str(PageToken(end, found.digest, call_digest(call)))

    def _result(self, call: QueryCall, deadline: Deadline) -> _Found:
        query = call.query
        if not query.cache_ttl:
            return self._compute(call, deadline)
        nonces = self._generations.read(call.tenant, query.depends_on)
        if nonces is None:
            return self._compute(call, deadline)
        key = _key(call, nonces)
        entry = self._look(key)
        if isinstance(entry, _Found):
            return entry
        land = partial(self._land, key, call, entry, deadline)
        # Again if the first flight has brought nothing: not all who waited shall begin at once.
        for _ in range(_FLIGHTS):
            patience = min(query.timeout + _MARGIN, deadline.part(_PATIENCE).remaining())
            if (found := self._flights.join(key, patience, land)) is not None:
                return found
        return self._compute(call, deadline)

    def _land(
        self, key: ResultKey, call: QueryCall, held: Lease | None, deadline: Deadline
    ) -> _Found:
        """Compute a result and cache it, unless another process does: then wait for that."""
        if held is None and (lease := self._lease(key)) is not None:
            return self._compute_for(key, lease, call, deadline)
        if held is None or not self._abandoned.holds(key, held):
            found = self._await(key, call.query.timeout, deadline)
            if isinstance(found, _Found):
                return found
            if isinstance(found, Lease):
                self._abandoned.add({key: found})
        return self._compute_for(key, None, call, deadline)

    def _await(self, key: ResultKey, patience: float, deadline: Deadline) -> _Found | Lease | None:
        """Wait for what another process computes; return its lease if that took too long."""
        limit = deadline.part(SHARE)
        entry: _Found | Lease | None = None
        for pause in self._pauses(patience):
            try:
                self._pause(limit.bound(pause))
            except DeadlineExceededError:
                return entry
            entry = self._look(key)
            if not isinstance(entry, Lease):
                return entry
        return entry

    def _look(self, key: ResultKey) -> _Found | Lease | None:
        try:
            entry = self._cache.read((key,)).get(key)
        except StoreError:
            return None
        return _Found.of(entry) if isinstance(entry, Cached) else entry

    def _lease(self, key: ResultKey) -> Lease | None:
        try:
            return self._cache.lease((key,)).get(key)
        except StoreError:
            return None

    def _compute_for(
        self, key: ResultKey, lease: Lease | None, call: QueryCall, deadline: Deadline
    ) -> _Found:
        """Compute a result and cache it, or make room at once for another to try."""
        try:
            found = self._compute(call, deadline)
        except BaseException:
            if lease is not None:
                self._give_up(key)
            raise
        self._fill(key, lease, call, found)
        return found

    def _compute(self, call: QueryCall, deadline: Deadline) -> _Found:
        """Run the SQL, for no longer than the query may take in all."""
        try:
            return self._run(call, deadline.within(call.query.timeout))
        except DeadlineExceededError as error:
            if deadline.is_abandoned():
                raise
            raise QueryTimeoutError(call.query.name) from error

    def _run(self, call: QueryCall, deadline: Deadline) -> _Found:
        query = call.query
        rows: list[Row] = []
        size = 0
        with self._queries.open(call, deadline) as results:
            for portion in results.portions():
                rows += portion
                size += sum(map(self._row_bytes, portion))
                if len(rows) > query.max_rows:
                    raise ResultTooLargeError(query.name, "max_rows", query.max_rows)
                if size > query.max_bytes:
                    raise ResultTooLargeError(query.name, "max_bytes", query.max_bytes)
            result = Result(results.columns, rows, results.as_of)
        return _Found(rows_digest(result), self._encode(result))

    def _fill(self, key: ResultKey, lease: Lease | None, call: QueryCall, found: _Found) -> None:
        entry = Cached(_VERSION, found.digest + found.payload, self._now())
        ttl = max(LEAST_TTL, call.query.cache_ttl * self._jitter())
        try:
            if lease is not None and self._cache.fill(key, lease, entry, ttl):
                return
            # The lease has run out while the result was computed.
            if (lease := self._lease(key)) is not None:
                self._cache.fill(key, lease, entry, ttl)
        except StoreError:
            return

    def _give_up(self, key: ResultKey) -> None:
        try:
            self._cache.invalidate((key,))
        except StoreError:
            return


def _key(call: QueryCall, nonces: tuple[bytes, ...]) -> ResultKey:
    query = call.query
    parts = [
        query.sql.digest,
        query.max_rows,
        query.max_bytes,
        # The same text is another value as another type.
        [
            [param.name, param.type.value, param.is_list]
            for _, param in sorted(query.params.items())
        ],
        canonical(call.values),
        *(nonce.hex() for nonce in nonces),
    ]
    digest = blake2b(json.dumps(parts).encode(), digest_size=_KEY_BYTES).hexdigest()
    return ResultKey(call.tenant, query.name, digest)
