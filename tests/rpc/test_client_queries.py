"""Queries and exports: what the client sends, and what it makes of the answers."""

from __future__ import annotations

import gc
import threading
import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

import grpc
import pytest
from google.protobuf import json_format

from duostore import (
    Client,
    DeadlineExceededError,
    Error,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    QueryTimeoutError,
    ResultChangedError,
    ResultTooLargeError,
    Store,
    UnavailableError,
)
from duostore.v1 import entity_pb2
from tests.support.ports import free_port
from tests.support.results import AS_OF, COLUMNS, first_portion, page, portion
from tests.support.scripted_service import (
    DIRECT,
    UNAVAILABLE,
    ScriptedService,
    client_of,
    hold,
    reason,
    status,
)
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

    from duostore.v1 import data_access_pb2 as pb

CUT = status(grpc.StatusCode.UNAVAILABLE, "connection reset")
OVERLOADED = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much", reason("OVERLOADED"))
CHANGED = status(grpc.StatusCode.ABORTED, "the result has changed", reason("RESULT_CHANGED"))
SEEN = datetime.fromisoformat(AS_OF)
ASKING = [Client.query, Client.export]


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


def test_a_result_has_its_columns_and_rows(service: ScriptedService) -> None:
    answer = page([["p1", 3.0], ["p2", "9007199254740993"], [None, 1.5]])
    answer.receipt.served_from = entity_pb2.STORE_CACHE
    answer.receipt.cached_time.FromDatetime(SEEN + timedelta(seconds=1))
    service.script("Query", answer)
    with client_of(service) as client:
        result = client.query("by_status", {"status": "published"}, tenant="acme")
    assert (result.columns, result.column_types) == (("id", "count"), ("text", "bigint"))
    assert result.rows == [["p1", 3], ["p2", "9007199254740993"], [None, 1.5]]
    assert [type(row[1]) for row in result.rows] == [int, str, float]
    assert list(result) == [
        {"id": "p1", "count": 3},
        {"id": "p2", "count": "9007199254740993"},
        {"id": None, "count": 1.5},
    ]
    assert (result.as_of, result.served_from) == (SEEN, Store.CACHE)
    assert result.cached_time == SEEN + timedelta(seconds=1)
    assert "query('by_status', {'status'}, tenant='acme'): 3 rows, as of" in repr(result)
    [asked] = service.asked
    assert json_format.MessageToDict(asked.request) == {
        "tenant": "acme",
        "query": "by_status",
        "params": {"status": "published"},
    }


def test_a_query_needs_no_parameters(service: ScriptedService) -> None:
    service.script("Query", page([]))
    service.script("Export", [first_portion()])
    with client_of(service) as client:
        result = client.query("all")
        assert (list(result), result.rows, result.cached_time) == ([], [], None)
        assert list(client.export("all")) == []
    assert all(not asked.request.params.fields for asked in service.asked)


class Status(StrEnum):
    OPEN = "open"


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("", ""),
        ("Zoë", "Zoë"),
        (Status.OPEN, "open"),
        (None, None),
        (True, True),
        (7, 7.0),
        (2**53 - 1, float(2**53 - 1)),
        (2**53, "9007199254740992"),
        (-(2**63), "-9223372036854775808"),
        (1.5, 1.5),
        (1e300, 1e300),
        (Decimal("12.50"), "12.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E-7"), "0.0000001"),
        (Decimal("NaN"), "NaN"),
        (date(2026, 1, 31), "2026-01-31"),
        (datetime(2026, 1, 31, 12, tzinfo=UTC), "2026-01-31T12:00:00Z"),
        (
            datetime(2026, 1, 31, 12, 0, 0, 5, timezone(timedelta(hours=2, seconds=1))),
            "2026-01-31T09:59:59.000005Z",
        ),
        (
            UUID("0b1c64f2-4a3c-4b8e-9a55-1f5f2d9c7e11"),
            "0b1c64f2-4a3c-4b8e-9a55-1f5f2d9c7e11",
        ),
        ([], []),
        (["a", None, 2**53], ["a", None, "9007199254740992"]),
        ((date(2026, 1, 31),), ["2026-01-31"]),
    ],
)
def test_a_parameter_is_sent_as_the_server_takes_it(
    service: ScriptedService, value: Any, sent: Any
) -> None:
    service.script("Query", page([]))
    service.script("Export", [first_portion()])
    with client_of(service) as client:
        client.query("q", {"p": value})
        client.export("q", {"p": value}).close()
    for asked in service.asked:
        assert json_format.MessageToDict(asked.request.params) == {"p": sent}


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    ("params", "field", "problem"),
    [
        ({"p": float("nan")}, "params.p", "is nan, which is no number"),
        ({"p": ["a", float("-inf")]}, "params.p[1]", "is -inf, which is no number"),
        ({"p": datetime(2026, 1, 31)}, "params.p", "is a datetime without a zone"),  # noqa: DTZ001 - as tested
        (
            {"p": datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))},
            "params.p",
            "after 9999",
        ),
        ({"p": b"x"}, "params.p", "is of type bytes; send a str, int, float"),
        ({"p": {"a": 1}}, "params.p", "is of type dict"),
        ({"p": [[1]]}, "params.p[0]", "is of type list"),
        ({"p": 10**10_000}, "params.p", "so many digits"),
        ({"p": Decimal("1E+1000000000")}, "params.p", "so many digits"),
        ({"p": Decimal("1E-1000000000")}, "params.p", "so many digits"),
        ({"p": "\ud800"}, "params.p", "is a string that is not Unicode"),
        ({"\ud800": 1}, "params", "that is not Unicode"),
        ({7: 1}, "params", "has the key 7; send strings"),
        ([("p", 1)], "params", "is of type list; send a dict"),
    ],
)
def test_a_parameter_that_cannot_be_sent_is_refused_by_its_name(
    service: ScriptedService, ask: Callable[..., object], params: Any, field: str, problem: str
) -> None:
    with client_of(service) as client, pytest.raises(InvalidRequestError) as raised:
        ask(client, "q", params)
    [violation] = raised.value.field_violations
    assert violation.field == field
    assert problem in violation.description
    assert service.asked == []


@pytest.mark.parametrize("ask", ASKING)
def test_everything_that_is_wrong_is_told_at_once(
    service: ScriptedService, ask: Callable[..., object]
) -> None:
    with client_of(service) as client:
        with pytest.raises(InvalidRequestError) as raised:
            ask(client, "q", {"a": b"", "b": 1, "c": {}})
        for arguments in ({"query": 7}, {"query": "q", "tenant": None}):
            with pytest.raises(TypeError, match="; send a str"):
                ask(client, **arguments)
    assert [violation.field for violation in raised.value.field_violations] == [
        "params.a",
        "params.c",
    ]
    assert service.asked == []


def test_what_was_asked_is_told_without_the_values(service: ScriptedService) -> None:
    with client_of(service) as client, pytest.raises(Error) as raised:
        client.query("q", {"secret": "s3"}, tenant="acme")
    assert str(raised.value).startswith("query('q', {'secret'}, tenant='acme'): ")


def test_pages_are_fetched_as_they_are_needed_and_once(service: ScriptedService) -> None:
    service.script(
        "Query",
        page([["p1", 1], ["p2", 2]], token="2"),
        page([], token="2b"),
        page([["p3", 3]]),
    )
    with client_of(service) as client:
        result = client.query("q", {"p": 1}, page_size=2)
        assert "2 rows and more" in repr(result)
        rows = iter(result)
        assert [next(rows)["id"], next(rows)["id"]] == ["p1", "p2"]
        assert len(service.asked) == 1
        assert [row["id"] for row in rows] == ["p3"], "a page may be empty"
        assert [row["id"] for row in result] == ["p1", "p2", "p3"]
        assert result.rows == [["p1", 1], ["p2", 2], ["p3", 3]]
    tokens = [(asked.request.page_token, asked.request.page_size) for asked in service.asked]
    assert tokens == [("", 2), ("2", 2), ("2b", 2)]
    assert all(asked.request.params["p"] == 1 for asked in service.asked)
    identifiers = {asked.metadata["x-request-id"] for asked in service.asked}
    assert len(identifiers) == 3, "each page is a call of its own"


def test_two_who_iterate_at_once_have_all_rows_each(service: ScriptedService) -> None:
    service.script("Query", page([["p1", 1]], token="1"), page([["p2", 2]]))
    with client_of(service) as client:
        result = client.query("q", page_size=1)
        pairs = list(zip(result, result, strict=True))
    assert [(one["id"], other["id"]) for one, other in pairs] == [("p1", "p1"), ("p2", "p2")]


def test_a_result_that_has_changed_is_an_error_of_its_own(service: ScriptedService) -> None:
    service.script("Query", page([["p1", 1]], token="1"), CHANGED, page([["p2", 2]]))
    with client_of(service) as client:
        rows = iter(client.query("q", page_size=1))
        assert next(rows) == {"id": "p1", "count": 1}
        with pytest.raises(ResultChangedError) as raised:
            next(rows)
    assert raised.value.maybe_applied is False
    assert len(service.asked) == 2, "another try would not help"


@pytest.mark.parametrize(
    "second",
    [
        page([["p2", 2]], token="1"),
        page([["p2", 2]], {"id": "text", "size": "bigint"}),
        page([["p2"]]),
        page([["p2", 2, 3]]),
    ],
    ids=["same page", "columns", "short", "long"],
)
def test_a_page_that_breaks_the_contract_is_refused(
    service: ScriptedService, second: Message
) -> None:
    service.script("Query", page([["p1", 1]], token="1"), second)
    with client_of(service) as client:
        result = client.query("q", page_size=1)
        with pytest.raises(InternalError, match="breaks the server's contract") as raised:
            _ = result.rows
    assert raised.value.maybe_applied is False


def test_columns_of_one_name_are_no_dict(service: ScriptedService) -> None:
    answer = page([[1, 2]], {"a": "bigint", "b": "bigint"})
    answer.columns[1] = "a"
    begun = first_portion([[1, 2]], {"a": "bigint", "b": "bigint"})
    begun.columns[1] = "a"
    service.script("Query", answer)
    service.script("Export", [begun])
    with client_of(service) as client:
        for result in (client.query("q"), client.export("q")):
            with pytest.raises(ValueError, match="have one name, and a dict would drop"):
                iter(result)
            assert list(result.rows) == [[1, 2]]


TOO_LARGE = status(
    grpc.StatusCode.FAILED_PRECONDITION,
    "too many",
    reason("RESULT_TOO_LARGE", query="q", bound="max_rows", limit="1000"),
)
TOO_SLOW = status(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow", reason("QUERY_TIMEOUT"))


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (TOO_LARGE, ResultTooLargeError),
        (TOO_SLOW, QueryTimeoutError),
        (OVERLOADED, OverloadedError),
    ],
    ids=["size", "time", "overload"],
)
def test_what_would_fail_again_is_not_tried_again(
    service: ScriptedService, ask: Callable[..., object], failure: Message, kind: type[Error]
) -> None:
    service.script("Query", failure)
    service.script("Export", failure)
    with client_of(service) as client, pytest.raises(kind) as raised:
        ask(client, "q")
    assert raised.value.maybe_applied is False
    assert len(service.asked) == 1


@pytest.mark.parametrize("failure", [UNAVAILABLE, CUT], ids=["store", "connection"])
def test_what_has_given_no_row_is_tried_again(service: ScriptedService, failure: Message) -> None:
    service.script("Query", failure, page([["p1", 1]], token="1"), failure, page([["p2", 2]]))
    service.script("Export", failure, [failure], [first_portion([["p1", 1]])])
    with client_of(service) as client:
        assert len(client.query("q", page_size=1).rows) == 2
        assert list(client.export("q").rows) == [["p1", 1]]


def test_a_server_that_is_away_is_told_in_time(service: ScriptedService) -> None:
    with Client(f"127.0.0.1:{free_port()}", options=[DIRECT], timeout=0.3) as client:
        for ask in (client.query, client.export):
            with pytest.raises(UnavailableError):
                ask("q")
    service.script("Export", CUT, [first_portion()])
    with client_of(service, retries=False) as client, pytest.raises(UnavailableError):
        client.export("q")


def test_rows_of_an_export_come_as_they_are_sent(service: ScriptedService) -> None:
    second = threading.Event()

    def later(*_: object) -> Message:
        assert second.wait(30)
        return portion([["p2", 2], ["p3", "9007199254740993"]])

    replies: list[Any] = [first_portion([["p1", 1]]), later, portion([])]
    service.script("Export", replies)
    with (
        client_of(service) as client,
        client.export("q", {"p": 1}, tenant="acme") as export,
    ):
        assert (export.columns, export.column_types) == (tuple(COLUMNS), tuple(COLUMNS.values()))
        assert export.as_of == SEEN
        assert "export('q', {'p'}, tenant='acme'), as of" in repr(export)
        rows = iter(export)
        assert next(rows) == {"id": "p1", "count": 1}
        second.set()
        assert list(rows) == [
            {"id": "p2", "count": 2},
            {"id": "p3", "count": "9007199254740993"},
        ]
        assert list(export) == [], "each comes once"
    [asked] = service.asked
    assert json_format.MessageToDict(asked.request) == {
        "tenant": "acme",
        "query": "q",
        "params": {"p": 1.0},
    }
    assert asked.remaining > 1e9, "it has no deadline of its own"


def test_an_export_that_breaks_off_is_not_taken_for_whole(service: ScriptedService) -> None:
    service.script("Export", [first_portion([["p1", 1]]), CUT], [first_portion([["p1", 1]])])
    with client_of(service) as client, client.export("q") as export:
        rows = iter(export)
        assert next(rows) == {"id": "p1", "count": 1}
        with pytest.raises(UnavailableError) as raised:
            next(rows)
        for _ in range(2):
            with pytest.raises(UnavailableError) as again:
                list(export)
            assert again.value is raised.value
    assert len(service.asked) == 1, "a row would come twice"


def test_the_timeout_of_an_export_bounds_all_of_it(service: ScriptedService) -> None:
    replies: list[Any] = [first_portion([["p1", 1]]), hold]
    service.script("Export", replies)
    with (
        client_of(service) as client,
        client.export("q", timeout=0.5) as export,
        pytest.raises(DeadlineExceededError),
    ):
        list(export)
    assert service.asked[0].remaining < 1
    for timeout in (float("inf"), float("nan")):
        with client_of(service) as client, pytest.raises(ValueError, match="finite"):
            client.export("q", timeout=timeout)


class Endless:
    """An export whose second portion never comes; ``ended`` once its call is over."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.under_way = threading.Event()

    def __call__(self, _: Any, context: grpc.ServicerContext) -> Message:
        if context.add_callback(self.ended.set):
            self.under_way.set()
            self.ended.wait(30)
        return portion([])

    def replies(self) -> Iterator[Any]:
        return iter([first_portion([["p1", 1], ["p2", 2]]), self])


def test_the_end_of_a_block_ends_the_call(service: ScriptedService) -> None:
    endless = Endless()
    service.script("Export", endless.replies())
    with client_of(service) as client:
        with client.export("q") as export:
            rows = iter(export)
            next(rows)
            assert endless.under_way.wait(30)
        assert endless.ended.wait(30)
        for take in (lambda: next(rows), lambda: list(export), lambda: list(export.rows)):
            with pytest.raises(ValueError, match="the export is closed"):
                take()
        export.close()


def test_close_wakes_who_waits_for_a_row(service: ScriptedService) -> None:
    endless = Endless()
    service.script("Export", endless.replies())
    with client_of(service) as client:
        export = client.export("q")

        def close() -> None:
            endless.under_way.wait(30)
            export.close()

        closing = threading.Thread(target=close)
        closing.start()
        with pytest.raises(ValueError, match="the export is closed"):
            list(export)
        closing.join(30)
    assert endless.ended.wait(30)


def test_an_export_that_is_forgotten_ends(service: ScriptedService) -> None:
    endless = Endless()
    service.script("Export", endless.replies())
    with client_of(service) as client:
        export = client.export("q")
        rows = iter(export)
        next(rows)
        assert endless.under_way.wait(30)
        # It ends with its last name: no collector of cycles has to come for it.
        gc.disable()
        try:
            del export, rows
            assert endless.ended.wait(30)
        finally:
            gc.enable()


def test_an_export_does_not_outlive_its_client(service: ScriptedService) -> None:
    endless = Endless()
    service.script("Export", endless.replies())
    with client_of(service) as client:
        rows = iter(client.export("q"))
        assert endless.under_way.wait(30)
        client.close()
        with pytest.raises(Error):
            list(rows)
        with pytest.raises(RuntimeError, match="closed"):
            client.export("q")
    assert endless.ended.wait(30)


@pytest.mark.parametrize(
    "portions",
    [[], [portion([["p1", 1]])], [first_portion([["p1", 1]]), portion([["p2"]])]],
    ids=["nothing", "no columns", "short"],
)
def test_an_export_that_breaks_the_contract_is_refused(
    service: ScriptedService, portions: list[pb.ExportResponse]
) -> None:
    service.script("Export", portions)
    with client_of(service) as client, pytest.raises(InternalError, match="contract"):
        list(client.export("q"))


def test_what_is_not_taken_is_not_sent(service: ScriptedService) -> None:
    sent, last = 0, 0.0
    large = portion([["x" * 100_000, 1]] * 5)

    def replies() -> Iterator[Message]:
        nonlocal sent, last
        yield first_portion([["p1", 1]])
        for _ in range(200):
            sent, last = sent + 1, time.monotonic()
            yield large

    service.script("Export", replies())
    with client_of(service) as client, client.export("q") as export:
        rows = iter(export)
        next(rows)
        eventually(
            lambda: sent and time.monotonic() - last > 0.3, within=30, what="the server waits"
        )
        at_rest = sent
        assert sum(1 for _ in rows) == 5 * 200
    assert at_rest < 100, "a connection holds but so much by itself"
    assert sent == 200
