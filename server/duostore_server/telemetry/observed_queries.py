"""Queries, with every one measured until its first rows are there."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from duostore_server.domain.errors import Store
from duostore_server.telemetry.store_calls import StoreCalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.ports import Queries, ResultSet
    from duostore_server.domain.queries import QueryCall
    from duostore_server.telemetry.metrics import Metrics


class ObservedQueries:
    """Measures ``Queries`` and changes nothing about them."""

    def __init__(self, delegate: Queries, metrics: Metrics) -> None:
        self._delegate = delegate
        self._begin = StoreCalls(metrics, Store.AURORA, "query_open")

    @contextmanager
    def open(self, call: QueryCall, deadline: Deadline) -> Iterator[ResultSet]:
        with ExitStack() as stack:
            with self._begin():
                opened = stack.enter_context(self._delegate.open(call, deadline))
            yield opened
