"""Queries in memory, of which a test decides what they answer and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from duostore_server.domain.errors import DeadlineExceededError
from duostore_server.domain.queries import Column, QueryCall, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duostore_server.domain.deadline import Deadline

# The rows of a query, or what computes them of its parameters.
Answer: TypeAlias = Sequence[Row] | Callable[[QueryCall], Sequence[Row]]


def _now() -> datetime:
    return datetime.now(UTC)


def _nothing(_: QueryCall) -> None:
    pass


@dataclass
class FakeResults:
    """``ports.ResultSet`` of rows in memory, some of them a portion."""

    columns: tuple[Column, ...]
    as_of: datetime
    rows: Sequence[Row]
    portion: int
    deadline: Deadline

    def portions(self) -> Iterator[Sequence[Row]]:
        for start in range(0, len(self.rows), self.portion):
            if self.deadline.is_abandoned():
                raise DeadlineExceededError
            yield self.rows[start : start + self.portion]


class FakeQueries:
    """``ports.Queries`` whose rows a test gives by the names of the queries.

    ``during`` is called when the rows are there and before they are given out: it may take
    its time, or raise what the database would. ``opens`` counts the calls of each query, and
    ``open_now`` those that have not ended.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer],
        *,
        columns: Mapping[str, tuple[Column, ...]],
        portion: int = 100,
        now: Callable[[], datetime] = _now,
        during: Callable[[QueryCall], None] = _nothing,
    ) -> None:
        self._answers = answers
        self._columns = columns
        self._portion = portion
        self._now = now
        self.during = during
        self.opens: Counter[str] = Counter()
        self.open_now = 0

    @contextmanager
    def open(self, call: QueryCall, deadline: Deadline) -> Iterator[FakeResults]:
        name = call.query.name
        deadline.bound(call.query.timeout)
        self.opens[name] += 1
        self.open_now += 1
        try:
            as_of = self._now()
            answer = self._answers[name]
            rows = answer(call) if callable(answer) else answer
            self.during(call)
            if deadline.is_abandoned():
                raise DeadlineExceededError
            yield FakeResults(self._columns[name], as_of, rows, self._portion, deadline)
        finally:
            self.open_now -= 1
