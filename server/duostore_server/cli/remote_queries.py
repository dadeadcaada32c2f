"""`duostore query`: one result, as a table for people or in a format for scripts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from duostore.v1 import data_access_pb2, entity_pb2
from duostore_server.cli.answers import name_shown
from duostore_server.cli.failure import FAILED
from duostore_server.cli.one_call import complain, print_json, run
from duostore_server.cli.output import Output
from duostore_server.cli.result_table import table
from duostore_server.cli.row_writers import writer_of
from duostore_server.cli.rows import UnfitRowsError, counted, head_of, rows_of
from duostore_server.domain.errors import Reason

if TYPE_CHECKING:
    from duostore.v1.data_access_pb2_grpc import DataAccessStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.query_question import Question
    from duostore_server.cli.rows import Row
    from duostore_server.cli.target import Target

ADVICE: Final = {
    Reason.RESULT_TOO_LARGE: "`duostore export` has no such limit.",
    Reason.RESULT_CHANGED: "Repeat the command from the first page.",
    Reason.QUERY_TIMEOUT: (
        "Narrow its parameters; its timeout is set in the service's configuration."
    ),
}


def query(
    target: Target,
    question: Question,
    *,
    page_size: int,
    page_token: str,
    all_pages: bool,
    format_: str,
    timeout: float,
) -> int:
    """Print a page of a result, or all from it on, in a format; return the exit code.

    ``timeout`` bounds each page. Nothing is printed before all that shall be is there.
    """
    request = data_access_pb2.QueryRequest(
        tenant=question.tenant, query=question.query, page_size=page_size, page_token=page_token
    )
    request.params.update(question.params)

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        page = stub.Query(request, timeout=timeout, metadata=metadata)
        first, rows = page, rows_of(page.rows, head_of(page))
        while all_pages and page.next_page_token:
            request.page_token = page.next_page_token
            page = stub.Query(request, timeout=timeout, metadata=metadata)
            rows += rows_of(page.rows, head_of(page))
        _print(first, rows, page.next_page_token, format_)

    try:
        return run(target, work, advice=ADVICE)
    except UnfitRowsError as error:
        complain(str(error))
        return FAILED


def _print(
    first: data_access_pb2.QueryResponse, rows: list[Row], next_page_token: str, format_: str
) -> None:
    head = head_of(first)
    store = name_shown(entity_pb2.Store, first.receipt.served_from).removeprefix("STORE_").lower()
    if format_ == "json":
        answer: dict[str, Any] = {
            "columns": list(head.columns),
            "column_types": list(head.types),
            "rows": rows,
            "as_of": head.as_of,
            "served_from": store,
        }
        if first.receipt.HasField("cached_time"):
            answer["cached_time"] = first.receipt.cached_time.ToJsonString()
        print_json(answer | ({"next_page_token": next_page_token} if next_page_token else {}))
        return
    output = Output(sys.stdout.buffer)
    if format_ == "table":
        output.write("".join(f"{line}\n" for line in table(head, rows)).encode())
    else:
        writer = writer_of(format_, output)
        writer.begin(head)
        writer.write(rows)
        writer.end()
    output.flush()
    output.discard()
    if format_ == "table":
        complain(f"{counted(len(rows))}, as of {head.as_of}, from {store}")
    if next_page_token:
        complain(f"There are more: --all shows them, or --page-token {next_page_token} the next.")
