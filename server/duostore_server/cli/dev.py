"""`duostore dev`: a whole deployment in one process, and what to try on it."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from duostore_server.cli.addresses import check_free
from duostore_server.processes import run_dev

if TYPE_CHECKING:
    from duostore_server.config import Settings


def run(settings: Settings, data: Path) -> None:
    """Run the deployment until Ctrl-C; raises ``AddressInUseError`` if a port is taken."""
    check_free(settings.server.address)
    if settings.metrics.address is not None:
        check_free(settings.metrics.address)
    console = Console(highlight=False, soft_wrap=True)
    with console.status("Starting PostgreSQL, DynamoDB and the cache…") as status:

        def ready() -> None:
            status.stop()
            for line in greeting(settings, data, program(sys.argv[0])):
                console.print(line, markup=False)

        run_dev(settings, data, ready)
    console.print("Stopped.")


def program(argument: str) -> str:
    """Return what a person types to run the program that was started by this ``argv[0]``."""
    path = Path(argument)
    if path.suffix == ".py":
        return f"{shlex.quote(sys.executable)} -m duostore_server.cli.main"
    found = shutil.which(path.name)
    is_on_the_path = found is not None and Path(found).resolve() == path.resolve()
    return path.name if is_on_the_path else shlex.quote(argument)


def greeting(settings: Settings, data: Path, duostore: str) -> list[str]:
    """Return what a person reads once the deployment answers; its commands work as pasted.

    ``duostore`` is what this program is called there.
    """
    address = str(settings.server.address)
    lines = [
        f"Duostore answers on {address}.",
        f"Kept between runs: PostgreSQL, in {data / 'postgres'}.",
        "Not kept: DynamoDB (emulated) and the cache. What is at home in PostgreSQL fills them",
        "again; snapshots, and kinds at home in DynamoDB, are gone when this ends.",
        "",
        *_to_try(settings, address, duostore),
    ]
    if settings.metrics.address is not None:
        lines += ["", f"Metrics: http://{settings.metrics.address}/metrics"]
    return [*lines, "Stop it with Ctrl-C."]


def _to_try(settings: Settings, address: str, duostore: str) -> list[str]:
    """Return what to do with the first kind that can be saved; without one, with what there is."""
    kind = next((name for name, kind in settings.kinds.items() if not kind.is_derived), None)
    if kind is not None:
        return _saving(settings, kind, address, duostore)
    if settings.quotas:
        quota = next(iter(settings.quotas))
        return [
            "Use a quota:",
            f"  {_grpcurl(address, 'Quota', {'quota': quota, 'subject': 'alice'})}",
            "or, without grpcurl:",
            f"  {duostore} quota {shlex.quote(quota)} alice --target {address}",
        ]
    if settings.queries:
        query = next(iter(settings.queries))
        return [
            "Ask a query:",
            f"  {_grpcurl(address, 'Query', {'query': query})}",
            "or, without grpcurl:",
            f"  {duostore} query {shlex.quote(query)} --target {address}",
        ]
    key = {"kind": next(iter(settings.kinds)), "id": "1"}
    return ["Read something:", f"  {_grpcurl(address, 'Get', {'key': key})}"]


def _saving(settings: Settings, kind: str, address: str, duostore: str) -> list[str]:
    schema = settings.kinds[kind].document_schema
    document = (schema.example if schema else None) or {"hello": "world"}
    key = {"kind": kind, "id": "1"}
    return [
        "Save something and read it back:",
        f"  {_grpcurl(address, 'Save', {'key': key, 'data': document})}",
        f"  {_grpcurl(address, 'Get', {'key': key})}",
        "or, without grpcurl:",
        f"  {duostore} get {shlex.quote(kind)} 1 --target {address}",
    ]


def _grpcurl(address: str, method: str, request: dict[str, object]) -> str:
    body = shlex.quote(json.dumps(request, ensure_ascii=False))
    return f"grpcurl -plaintext -d {body} {address} duostore.v1.DataAccess/{method}"
