"""`duostore query` and `duostore export`: what they send, print, write and end with."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import stat
import threading
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format

from duostore.v1 import data_access_pb2 as pb
from duostore.v1 import entity_pb2
from tests.support.client_commands import duostore, start
from tests.support.recording_service import (
    RecordingService,
    Served,
    invalid,
    serving,
    status,
)
from tests.support.results import AS_OF, first_portion, page, portion
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.rpc import status_pb2

COLUMNS = {"id": "text", "count": "bigint", "tags": "text[]", "extra": "jsonb"}
ROWS: list[list[Any]] = [
    ["p1", 3.0, ["a", "b"], {"x": 1.0}],
    ['Zoë, "the"\nfirst', "9007199254740993", [], "5"],
    ["", None, None, 5.0],
    [None, -1.0, [None], None],
]
DOWN = status(grpc.StatusCode.UNAVAILABLE, "aurora is down", "STORE_UNAVAILABLE")


@pytest.fixture
def service() -> RecordingService:
    service = RecordingService()
    service.result = page(ROWS, COLUMNS)
    service.portions = [first_portion(ROWS[:1], COLUMNS), portion(ROWS[1:3]), portion(ROWS[3:])]
    return service


@pytest.fixture
def served(service: RecordingService) -> Iterator[Served]:
    with serving(service) as served:
        yield served


# What is asked.


@pytest.mark.parametrize("command", ["query", "export"])
def test_a_query_is_asked_with_its_parameters(
    service: RecordingService, served: Served, command: str
) -> None:
    arguments = ["-p", "status=published", "--param", "limit=10", "-p", 'code:="007"']
    arguments += ["--params-json", '{"ids": ["a"]}', "--tenant", "t"]
    ran = duostore(command, "by_status", *arguments, "--target", served.address)
    assert ran.exit_code == 0
    [asked] = service.asked
    assert json_format.MessageToDict(asked.request) == {
        "tenant": "t",
        "query": "by_status",
        "params": {"status": "published", "limit": 10.0, "code": "007", "ids": ["a"]},
    }
    assert re.fullmatch("[0-9a-f]{32}", str(asked.metadata["x-request-id"]))


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["query"], "Missing argument 'QUERY'"),
        (["query", "q", "-p", "x"], "neither name=value nor name:=json"),
        (["export", "q", "-p", "x:=y"], "is not JSON"),
        (["query", "q", "--params-json", "[]"], "not a JSON object"),
        (["query", "q", "--page-size", "-1"], "--page-size"),
        (["query", "q", "--format", "parquet"], "--format"),
        (["export", "q", "--format", "table"], "--format"),
        (["export", "q", "--timeout", "0"], "--timeout"),
        (["query", "q", "-p", "x=\udcff"], "not UTF-8"),
        (["export", "q\udcff"], "not UTF-8"),
        (["export", "q", "-o", "x.xlsx"], "x.xlsx ends in none of .jsonl, .csv, .parquet"),
        (["export", "q", "-o", ""], "--output is empty: name a file"),
    ],
)
def test_a_bad_command_line_is_refused(command: list[str], problem: str) -> None:
    ran = duostore(*command)
    assert ran.exit_code == 2
    assert problem in " ".join(re.sub("[│╭╮╰╯─]", " ", ran.stderr).split())


@pytest.mark.parametrize("command", ["query", "export"])
def test_help_shows_how_parameters_are_given(command: str) -> None:
    told = " ".join(re.sub("[│╭╮╰╯─]", " ", duostore(command, "--help").stdout).split())
    assert f"duostore {command} proposals_by_status -p status=published" in told
    if command == "query":
        assert """'ids=["p1", "p2"]'""" in told, "no markup"
        assert """'code:="42"'""" in told


# What `duostore query` prints.


def test_people_get_a_table(service: RecordingService, served: Served) -> None:
    ran = duostore("query", "q", "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, f"4 rows, as of {AS_OF}, from aurora\n")
    assert ran.stdout_bytes.decode().splitlines() == [
        "id                           count  tags       extra",
        'p1                               3  ["a","b"]  {"x":1}',
        'Zoë, "the"\N{REPLACEMENT CHARACTER}first  9007199254740993  []         "5"',
        "                              null  null       5",
        "null                            -1  [null]     null",
    ]
    service.result = page([["x" * 61], ["日" * 31], ["y" * 60], ["\x1b[31m"]], {"text": "text"})
    service.result.receipt.served_from = entity_pb2.STORE_CACHE
    ran = duostore("query", "q", "--target", served.address)
    assert ran.stdout_bytes.decode().splitlines()[1:] == [
        "x" * 59 + "…",
        "日" * 29 + "…",
        "y" * 60,
        "\N{REPLACEMENT CHARACTER}[31m",
    ]
    assert ran.stderr.endswith("from cache\n")
    service.result = page([], {"text": "text"})
    ran = duostore("query", "q", "--target", served.address)
    assert (ran.exit_code, ran.stdout) == (0, "text\n")
    assert ran.stderr.startswith("0 rows, ")


def test_scripts_get_json(service: RecordingService, served: Served) -> None:
    service.result.receipt.served_from = entity_pb2.STORE_CACHE
    service.result.receipt.cached_time.FromJsonString("2026-01-02T03:04:06Z")
    ran = duostore("query", "q", "--format", "json", "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert json.loads(ran.stdout_bytes) == {
        "columns": list(COLUMNS),
        "column_types": list(COLUMNS.values()),
        "rows": ROWS,
        "as_of": AS_OF,
        "served_from": "cache",
        "cached_time": "2026-01-02T03:04:06Z",
    }
    assert "9007199254740993.0" not in ran.stdout
    ran = duostore("query", "q", "--format", "json", "--page-size", "3", "--target", served.address)
    assert json.loads(ran.stdout)["next_page_token"] == "3"
    assert len(json.loads(ran.stdout)["rows"]) == 3


JSONL = (
    '{"id":"p1","count":3,"tags":["a","b"],"extra":{"x":1}}\n'
    '{"id":"Zoë, \\"the\\"\\nfirst","count":"9007199254740993","tags":[],"extra":"5"}\n'
    '{"id":"","count":null,"tags":null,"extra":5}\n'
    '{"id":null,"count":-1,"tags":[null],"extra":null}\n'
)
CSV = (
    "id,count,tags,extra\r\n"
    'p1,3,"[""a"",""b""]","{""x"":1}"\r\n'
    '"Zoë, ""the""\nfirst",9007199254740993,[],"""5"""\r\n'
    '"",,,5\r\n'
    ",-1,[null],\r\n"
)


@pytest.mark.parametrize(("format_", "text"), [("jsonl", JSONL), ("csv", CSV)])
def test_rows_are_written_the_same_by_both_commands(
    served: Served, tmp_path: Path, format_: str, text: str
) -> None:
    options = ("--format", format_, "--target", served.address)
    for command in ("query", "export"):
        ran = duostore(command, "q", *options)
        assert (ran.exit_code, ran.stderr) == (0, "")
        assert ran.stdout_bytes.decode() == text
    path = tmp_path / f"out.{format_}"
    ran = duostore("export", "q", "-o", str(path), "--target", served.address)
    size = len(text.encode())
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout == f"{path}: 4 rows, {size} bytes, as of {AS_OF}\n"
    assert path.read_bytes().decode() == text


def test_csv_is_read_back_equal(service: RecordingService, served: Served) -> None:
    texts = ["", "a", "a,b", 'a"b', "a\nb", "a\r\nb", " a ", "=1+1", "\\.", "null", "\t"]
    service.portions = [first_portion([[text, "x"] for text in texts], {"a": "text", "b": "text"})]
    ran = duostore("export", "q", "--format", "csv", "--target", served.address)
    read = list(csv.reader(io.StringIO(ran.stdout_bytes.decode(), newline="")))
    assert read == [["a", "b"], *([text, "x"] for text in texts)]
    # Of one column, a row of NULL would be an empty line, which readers pass over.
    service.portions = [first_portion([[None], ["x"]], {"a": "text"})]
    ran = duostore("export", "q", "--format", "csv", "--target", served.address)
    assert ran.stdout_bytes == b'a\r\n""\r\nx\r\n'


def test_a_page_is_printed_and_the_next_one_named(
    service: RecordingService, served: Served
) -> None:
    options = ("--page-size", "2", "--format", "jsonl", "--target", served.address)
    ran = duostore("query", "q", *options)
    assert (ran.exit_code, ran.stdout_bytes.decode().splitlines()) == (0, JSONL.splitlines()[:2])
    assert ran.stderr == "There are more: --all shows them, or --page-token 2 the next.\n"
    ran = duostore("query", "q", *options, "--page-token", "2")
    assert (ran.stdout_bytes.decode().splitlines(), ran.stderr) == (JSONL.splitlines()[2:], "")
    service.asked.clear()
    ran = duostore("query", "q", *options, "--all")
    assert (ran.exit_code, ran.stdout_bytes.decode(), ran.stderr) == (0, JSONL, "")
    tokens = [(asked.request.page_token, asked.request.page_size) for asked in service.asked]
    assert tokens == [("", 2), ("2", 2)]


FAILURES: list[tuple[status_pb2.Status, int, list[str]]] = [
    (
        invalid(params__status="is required, and is a string"),
        2,
        [
            "the request was refused (INVALID_REQUEST, request id r-1)",
            "  params.status: is required, and is a string",
        ],
    ),
    (
        status(grpc.StatusCode.FAILED_PRECONDITION, "too many rows", "RESULT_TOO_LARGE"),
        1,
        [
            "too many rows (RESULT_TOO_LARGE, request id r-1)",
            "`duostore export` has no such limit.",
        ],
    ),
    (
        status(grpc.StatusCode.ABORTED, "it has changed", "RESULT_CHANGED"),
        1,
        [
            "it has changed (RESULT_CHANGED, request id r-1)",
            "Repeat the command from the first page.",
        ],
    ),
    (
        status(grpc.StatusCode.FAILED_PRECONDITION, "22012", "QUERY_FAILED"),
        1,
        ["22012 (QUERY_FAILED, request id r-1)"],
    ),
    (
        status(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow", "QUERY_TIMEOUT"),
        3,
        [
            "too slow (QUERY_TIMEOUT, request id r-1)",
            "Narrow its parameters; its timeout is set in the service's configuration.",
        ],
    ),
    (
        status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many exports", "OVERLOADED"),
        3,
        ["too many exports (OVERLOADED, request id r-1)", "Try again in 1 s."],
    ),
]


@pytest.mark.parametrize("command", ["query", "export"])
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure[2][0])
def test_a_failure_says_what_happened_and_what_to_do(
    service: RecordingService,
    served: Served,
    command: str,
    failure: tuple[status_pb2.Status, int, list[str]],
) -> None:
    answer, code, lines = failure
    service.failing = lambda _: answer
    ran = duostore(command, "q", "--target", served.address)
    assert (ran.exit_code, ran.stdout, ran.stderr.splitlines()) == (code, "", lines)


def test_nothing_is_printed_of_a_result_that_changed_meanwhile(
    service: RecordingService, served: Served
) -> None:
    changed = status(grpc.StatusCode.ABORTED, "it has changed", "RESULT_CHANGED")
    service.failing = lambda request: changed if request.page_token else None
    for format_ in ("table", "json", "jsonl", "csv"):
        options = ("--page-size", "2", "--all", "--format", format_)
        ran = duostore("query", "q", *options, "--target", served.address)
        assert (ran.exit_code, ran.stdout) == (1, "")


def test_who_gives_an_export_time_is_told_when_it_is_over(
    service: RecordingService, served: Served
) -> None:
    late = status(grpc.StatusCode.DEADLINE_EXCEEDED, "too late", "DEADLINE_EXCEEDED")
    service.failing = lambda _: late
    ran = duostore("export", "q", "--target", served.address)
    assert ran.stderr.splitlines()[1] == (
        "The service's configuration says how long an export may take."
    )
    ran = duostore("export", "q", "--timeout", "60", "--target", served.address)
    assert ran.stderr.splitlines()[1] == "Try again; --timeout waits longer."


# What `duostore export` writes.


def test_a_file_is_there_once_it_is_whole(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("what was there before")
    seen: list[list[str]] = []

    def slow() -> Iterator[pb.ExportResponse]:
        yield from service_portions
        # The second portion was written by now, or is being.
        eventually(lambda: len(list(tmp_path.iterdir())) == 2, within=30, what="it is begun")
        seen.append(sorted(each.name for each in tmp_path.iterdir()))
        assert path.read_text() == "what was there before"

    service_portions = service.portions
    service.portions = slow()  # type: ignore[assignment]  # streamed as it is iterated
    ran = duostore("export", "q", "--output", str(path), "--target", served.address)
    assert (ran.exit_code, path.read_bytes().decode()) == (0, JSONL)
    [[partial, final]] = seen
    assert final == "out.jsonl"
    assert re.fullmatch(r"\.out\.jsonl\.[0-9a-f]{8}\.partial", partial)
    assert [each.name for each in tmp_path.iterdir()] == ["out.jsonl"]
    beside = tmp_path / "beside"
    beside.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(beside.stat().st_mode)


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_nothing_is_left_of_an_export_that_breaks_off(
    service: RecordingService, served: Served, tmp_path: Path, format_: str
) -> None:
    service.broken = DOWN
    path = tmp_path / f"out.{format_}"
    command = ("export", "q", "--output", str(path), "--target", served.address)
    ran = duostore(*command)
    assert (ran.exit_code, ran.stdout) == (3, "")
    assert ran.stderr.splitlines()[0] == "aurora is down (STORE_UNAVAILABLE, request id r-1)"
    assert list(tmp_path.iterdir()) == []
    path.write_text("what was there before")
    assert duostore(*command).exit_code == 3
    assert [each.read_text() for each in tmp_path.iterdir()] == ["what was there before"]


def test_what_was_written_to_standard_output_is_said_not_to_be_all(
    service: RecordingService, served: Served
) -> None:
    service.broken = DOWN
    ran = duostore("export", "q", "--target", served.address)
    assert (ran.exit_code, ran.stdout_bytes.decode()) == (3, JSONL)
    assert ran.stderr.splitlines()[-1] == (
        "What was written until then, 4 rows, is not the whole result."
    )
    # To its exit: what writes Parquet ends the file when it is dropped, unless it is kept from it.
    with start("export", "q", "--format", "parquet", "--target", served.address) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (3, "PAR1"), "it begins, and has no end"
    assert err == ran.stderr


def test_a_file_that_cannot_be_is_told_before_anything_is_asked(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    for path, problem in (
        (tmp_path / "none" / "out.csv", "cannot be written: No such file or directory"),
        (tmp_path, "is a folder: name a file in it"),
        ("/dev/null", "is no regular file; - writes to standard output"),
    ):
        ran = duostore("export", "q", "--output", str(path), "--target", served.address)
        assert (ran.exit_code, ran.stderr) == (2, f"{path} {problem}\n")
    assert service.asked == []


def test_a_full_disk_ends_an_export(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))"
    service.portions = [first_portion([["x" * 1000, 1]] * 100)]
    path = tmp_path / "out.jsonl"
    with start("export", "q", "-o", str(path), "--target", served.address, before=limit) as ran:
        out, err = ran.communicate(timeout=30)
    assert (ran.returncode, out) == (1, "")
    assert err == f"{path} cannot be written: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_written_through(served: Served, tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    ran = duostore("export", "q", "-o", str(tmp_path / "link.csv"), "--target", served.address)
    assert ran.exit_code == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_bytes().decode() == CSV


class Endless:
    """An export that never ends by itself; ``ended`` once its call is over."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.under_way = threading.Event()

    def __iter__(self) -> Iterator[pb.ExportResponse]:
        try:
            yield first_portion([["p1", 1]])
            while True:
                yield portion([["p2", 2]] * 100)
                self.under_way.set()
        finally:
            self.ended.set()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(
    service: RecordingService, served: Served, tmp_path: Path, signum: signal.Signals
) -> None:
    endless = Endless()
    service.portions = endless  # type: ignore[assignment]  # streamed as it is iterated
    path = tmp_path / "out.csv"
    with start("export", "q", "-o", str(path), "--target", served.address) as ran:
        eventually(lambda: list(tmp_path.iterdir()), within=30, what="it is begun")
        assert endless.under_way.wait(30)
        ran.send_signal(signum)
        out, err = ran.communicate(timeout=30)
    assert (ran.returncode, out, err) == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []
    assert endless.ended.wait(30), "the service is told"


def test_a_reader_that_has_seen_enough_ends_it_quietly(
    service: RecordingService, served: Served
) -> None:
    for format_ in ("jsonl", "parquet"):
        endless = Endless()
        service.portions = endless  # type: ignore[assignment]  # streamed as it is iterated
        with start("export", "q", "--format", format_, "--target", served.address) as ran:
            assert ran.stdout
            assert ran.stderr
            assert endless.under_way.wait(30)
            ran.stdout.close()
            assert ran.stderr.read() == ""
            assert ran.wait(30) == 1
        assert endless.ended.wait(30), "the service is told"


def test_a_row_that_breaks_the_contract_is_no_row(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    path = tmp_path / "out.csv"
    for portions, problem in (
        ([first_portion([["p1", 1]]), portion([["p2"]])], "a value too many, or too few"),
        ([], "sent no columns"),
    ):
        service.portions = portions
        ran = duostore("export", "q", "-o", str(path), "--target", served.address)
        assert ran.exit_code == 1
        assert problem in ran.stderr
        assert list(tmp_path.iterdir()) == []


def test_columns_of_one_name_are_refused_where_a_name_has_one_value(
    service: RecordingService, served: Served
) -> None:
    service.result.columns[1] = "id"
    service.portions[0].columns[1] = "id"
    target = ("--target", served.address)
    for command, format_ in (("query", "jsonl"), ("export", "jsonl"), ("export", "parquet")):
        ran = duostore(command, "q", "--format", format_, *target)
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert "have one name" in ran.stderr
    for command, format_ in (("query", "json"), ("query", "table"), ("export", "csv")):
        assert duostore(command, "q", "--format", format_, *target).exit_code == 0


# Parquet.

TYPED = {
    "small": "smallint",
    "large": "bigint",
    "ratio": "double precision",
    "flag": "boolean",
    "day": "date",
    "instant": "timestamp with time zone",
    "local": "timestamp without time zone",
    "price": "numeric",
    "data": "jsonb",
    "tags": "text[]",
    "text": "text",
}
TYPED_ROWS: list[list[Any]] = [
    [
        1,
        "-9223372036854775808",
        1.5,
        True,
        "2026-01-31",
        "2026-01-31T12:00:00.123456Z",
        "2026-01-31T12:00:00.5",
        "12345678901234567890.5",
        {"a": [1]},
        ["x", None],
        "Zoë",
    ],
    [2, 9007199254740991, "NaN", False, None, "0001-01-01T00:00:00Z", None, "NaN", "5", [], ""],
    [3, 0, "-Infinity", None, "9999-12-31", None, "1970-01-01T00:00:00", "0", 5, None, None],
    [None] * len(TYPED),
]
SCHEMA = pa.schema(
    {
        "small": pa.int64(),
        "large": pa.int64(),
        "ratio": pa.float64(),
        "flag": pa.bool_(),
        "day": pa.date32(),
        "instant": pa.timestamp("us", tz="UTC"),
        "local": pa.timestamp("us"),
        "price": pa.string(),
        "data": pa.string(),
        "tags": pa.string(),
        "text": pa.string(),
    }
)


def test_parquet_is_read_back_equal(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    service.portions = [first_portion(TYPED_ROWS[:1], TYPED), portion([]), portion(TYPED_ROWS[1:])]
    path = tmp_path / "out.parquet"
    ran = duostore("export", "q", "--output", str(path), "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    read = pq.read_table(path)
    assert read.schema.equals(SCHEMA)
    assert read.schema.metadata[b"duostore.as_of"].decode() == AS_OF
    columns = read.to_pydict()
    ratios = columns.pop("ratio")
    assert ratios[0] == 1.5
    assert str(ratios[1]) == "nan"
    assert ratios[2:] == [float("-inf"), None]
    assert columns == {
        "small": [1, 2, 3, None],
        "large": [-(2**63), 2**53 - 1, 0, None],
        "flag": [True, False, None, None],
        "day": [date(2026, 1, 31), None, date(9999, 12, 31), None],
        "instant": [
            datetime(2026, 1, 31, 12, 0, 0, 123456, UTC),
            datetime(1, 1, 1, tzinfo=UTC),
            None,
            None,
        ],
        "local": [
            datetime(2026, 1, 31, 12, 0, 0, 500_000),  # noqa: DTZ001 - as the database has it
            None,
            datetime(1970, 1, 1),  # noqa: DTZ001 - as above
            None,
        ],
        "price": ["12345678901234567890.5", "NaN", "0", None],
        "data": ['{"a":[1]}', '"5"', "5", None],
        "tags": ['["x",null]', "[]", None, None],
        "text": ["Zoë", "", None, None],
    }


def test_parquet_goes_to_standard_output_too(service: RecordingService, served: Served) -> None:
    service.portions = [first_portion(TYPED_ROWS, TYPED)]
    ran = duostore("export", "q", "--format", "parquet", "--target", served.address)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert pq.read_table(pa.BufferReader(ran.stdout_bytes)).num_rows == 4


def test_parquet_of_no_rows_has_its_columns(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    service.portions = [first_portion([], TYPED)]
    path = tmp_path / "out.parquet"
    assert duostore("export", "q", "-o", str(path), "--target", served.address).exit_code == 0
    assert pq.read_table(path).schema.equals(SCHEMA)


@pytest.mark.parametrize(
    ("type_", "value", "problem"),
    [
        ("date", "infinity", "day is 'infinity', which is no date32[day] of Parquet"),
        ("timestamp with time zone", "0044-03-15 BC", "which is no timestamp[us, tz=UTC]"),
        ("bigint", 1.5, "day is '1.5', which is no int64"),
        ("boolean", "yes", "day is 'yes', which is no bool"),
    ],
)
def test_a_value_that_parquet_has_not_is_told_with_its_row(
    service: RecordingService, served: Served, type_: str, value: Any, problem: str
) -> None:
    service.portions = [
        first_portion([[None], [None]], {"day": type_}),
        portion([[None], [value]]),
    ]
    ran = duostore("export", "q", "--format", "parquet", "--target", served.address)
    assert ran.exit_code == 1
    assert ran.stderr.startswith("row 4: ")
    assert problem in ran.stderr


def test_parquet_is_written_in_groups_that_fit_into_memory(
    service: RecordingService, served: Served, tmp_path: Path
) -> None:
    text = "".join(chr(33 + n % 90) for n in range(50_000))
    large = portion([[f"{text}{n}", n] for n in range(60)])
    service.portions = [first_portion(), *[large] * 12]
    path = tmp_path / "out.parquet"
    assert duostore("export", "q", "-o", str(path), "--target", served.address).exit_code == 0
    found = pq.ParquetFile(path)
    assert found.metadata.num_rows == 720
    assert found.metadata.num_row_groups == 2
    assert [row["count"] for row in found.read(["count"]).to_pylist()] == [*range(60)] * 12


def test_who_lacks_parquet_is_told_what_to_install(served: Served) -> None:
    hidden = "import sys; sys.modules['pyarrow'] = None"
    command = ("export", "q", "--format", "parquet", "--target", served.address)
    with start(*command, before=hidden) as ran:
        out, err = ran.communicate(timeout=30)
    assert (ran.returncode, out) == (1, "")
    assert err == (
        'Parquet needs pyarrow, which is not installed: pip install "duostore-server[parquet]"\n'
    )
