"""What the documents say is what the code does, wherever a machine can tell."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from duostore.v1 import admin_pb2, data_access_pb2, errors_pb2
from duostore_server.cli.main import app
from duostore_server.domain.errors import DuostoreError, Reason, RefusalError, StoreError
from duostore_server.domain.quotas import AlgorithmName
from duostore_server.rpc.status import CODES
from duostore_server.storage.dynamodb.tables import (
    counter_table,
    idempotency_table,
    projection_table,
    snapshot_table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor, MethodDescriptor
    from typer import Typer

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server" / "duostore_server"
API = ROOT / "docs" / "api.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
METRICS = ROOT / "docs" / "metrics.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PICTURES = sorted((ROOT / "docs").glob("*.svg"))
PAGES = sorted(
    page
    for pattern in ("*.md", "clients/*/*.md", "docs/**/*.md", "examples/**/*.md")
    for page in ROOT.glob(pattern)
)

# Messages whose fields one section explains for all calls.
EXPLAINED_ONCE = {
    "EntityKey": "Keys",
    "Entity": "Get",
    "Receipt": "Get",
    "EntitySnapshot": "GetSnapshot",
    "Drift": "CheckConsistency",
    "Difference": "CheckConsistency",
    "BackfillResponse": "Backfill",
    "ReadOnly": "SetReadOnly",
    "Flag": "ListFlags",
}
# What a role must be allowed for a call that is not a right by itself.
RIGHTS = {
    "batch_execute_statement": ("PartiQLInsert", "PartiQLUpdate"),
    "transact_write_items": ("PutItem", "UpdateItem"),
}
# A link to a test.
PROOF = re.compile(r"\[`(test_\w+)`\]\((?:\.\./)+(tests/[\w/]+\.py)\)")
METHODS = [
    *data_access_pb2.DESCRIPTOR.services_by_name["DataAccess"].methods,
    *admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods,
]
REASONS = [
    value.name.removeprefix("ERROR_REASON_")
    for value in errors_pb2.ErrorReason.DESCRIPTOR.values
    if value.number
]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", text_of(page))


def section(page: Path, title: str) -> str:
    """Return the text between a heading and the next one."""
    found = re.search(rf"(?ms)^#+ {re.escape(title)}$(.*?)(?=^#+ |\Z)", text_of(page))
    assert found, f"{named(page)} has no heading {title!r}"
    return found[1]


# Links and pictures.


def anchors(page: Path) -> set[str]:
    """Return what headings can be linked to by, as GitHub makes it of their words."""
    titles = re.findall(r"(?m)^#+ (.+)$", prose(page))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    other = page.parent / path if path else page
    return other.exists() and (not anchor or anchor in anchors(other))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    broken = [
        target
        for target in targets
        if not re.match(r"https?://", target) and not leads_somewhere(page, target)
    ]
    assert broken == []


@pytest.mark.parametrize("picture", PICTURES, ids=named)
def test_a_picture_is_shown_needs_nothing_else_and_knows_light_and_dark(picture: Path) -> None:
    pages = (ARCHITECTURE, ROOT / "README.md")
    assert any(re.search(rf"\((docs/)?{picture.name}\)", text_of(page)) for page in pages)
    text = text_of(picture)
    assert ET.fromstring(text).find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in text
    inside = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|@font-face|url\(|<image|<script", inside)


# The API.


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_call_is_explained_with_every_field_it_takes_and_gives(
    method: MethodDescriptor,
) -> None:
    untold = [
        f"{message.name}.{field.name}"
        for message in messages_of(method)
        for field in message.fields
        if field.name not in told_in(EXPLAINED_ONCE.get(message.name, method.name))
    ]
    assert untold == []


def messages_of(method: MethodDescriptor) -> Iterator[Descriptor]:
    """Yield what a method takes and gives, and our messages in there."""
    seen: set[str] = set()
    left: list[Descriptor] = [method.input_type, method.output_type]
    while left:
        message = left.pop()
        if message.full_name in seen or not message.full_name.startswith("duostore."):
            continue
        seen.add(message.full_name)
        yield message
        left += [field.message_type for field in message.fields if field.message_type]


def told_in(title: str) -> set[str]:
    return set(re.findall(r"`(\w+)", section(API, title)))


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_explained_with_its_status_and_metadata(reason: str) -> None:
    row = re.search(rf"(?m)^\| `{reason}` \|([^|]+)\|([^|]*)\|[^|]+\|$", section(API, "Errors"))
    assert row, f"docs/api.md does not list {reason}"
    assert row[1].strip() == f"`{CODES[Reason(reason)].name}`"
    assert set(re.findall(r"`(\w+)`", row[2])) == metadata_of(Reason(reason))


def metadata_of(reason: Reason) -> set[str]:
    """Return the names of the metadata that errors with this reason carry."""
    if reason is Reason.INTERNAL:
        return {"request_id"}
    kinds = [kind for kind in subclasses(DuostoreError) if getattr(kind, "reason", None) is reason]
    return {name for kind in kinds for name in metadata_names(kind)}


def metadata_names(kind: type[DuostoreError]) -> Iterator[str]:
    yield from kind.details
    if issubclass(kind, RefusalError):
        yield "mutation"
    if issubclass(kind, StoreError):
        yield "store"


def subclasses(kind: type[DuostoreError]) -> Iterator[type[DuostoreError]]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_mode_of_a_quota_is_explained() -> None:
    modes = set(data_access_pb2.Mode.keys())
    assert modes - told_in("Quota") == set()


@pytest.mark.parametrize(
    ("call", "enum"),
    [
        ("Explain", admin_pb2.TierState.Holding),
        ("CheckConsistency", admin_pb2.DriftKind),
        ("Backfill", admin_pb2.BackfillRequest.Action),
        ("Backfill", admin_pb2.BackfillResponse.State),
    ],
    ids=["holdings", "drifts", "actions", "states"],
)
def test_every_value_that_an_operator_meets_is_explained(call: str, enum: Any) -> None:
    values = {name for name in enum.keys() if not name.endswith("_UNSPECIFIED")}  # noqa: SIM118 - no dict
    assert values - told_in(call) == set()


def test_every_algorithm_has_its_column() -> None:
    head = re.search(r"(?m)^\| \|(.*)\|$", section(API, "How quotas count"))
    assert head
    assert re.findall(r"`(\w+)`", head[1]) == [name.value for name in AlgorithmName]


# Commands, metrics and log lines.


def test_every_command_is_listed() -> None:
    listed = re.findall(r"(?m)^\| `duostore ([^|]+`) \|", section(OPERATIONS, "Commands"))
    told = {tuple(words) for cell in listed for words in named_in(cell)}
    assert told == set(commands_of(app))


def named_in(cell: str) -> Iterator[list[str]]:
    """Yield the commands of a cell: the first in full, each other one by its last word."""
    first, *others = (words.split() for words in cell.rstrip("`").split("`, `"))
    yield first
    for words in others:
        yield [*first[:-1], *words]


def commands_of(group: Typer) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that is shown."""
    for command in group.registered_commands:
        if not command.hidden:
            assert command.callback
            yield (command.name or command.callback.__name__.replace("_", "-"),)
    for part in group.registered_groups:
        assert part.name
        assert part.typer_instance
        for words in commands_of(part.typer_instance):
            yield (part.name, *words)


def test_every_metric_that_is_spoken_of_is_there() -> None:
    known = set(re.findall(r"(?m)^\| `(duostore_\w+)`", text_of(METRICS)))
    assert known
    series = known | {f"{name}_{part}" for name in known for part in ("bucket", "count", "sum")}
    alerts = set(re.findall(r"\bduostore_\w+", section(OPERATIONS, "SLOs and alerts")))
    assert alerts
    assert alerts - series == set()


def logged_events() -> set[str]:
    """Return the first argument of every call that logs, in the whole server."""
    return {
        part.value
        for path in SERVER.rglob("*.py")
        for call in ast.walk(ast.parse(text_of(path)))
        if isinstance(call, ast.Call) and call.args and is_log_call(call.func)
        for part in ast.walk(call.args[0])
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


def is_log_call(function: ast.expr) -> bool:
    match function:
        case ast.Attribute(value=ast.Name(id="_log"), attr=attr):
            return attr in {"debug", "info", "warning", "error", "exception", "critical"}
    return False


def test_every_log_line_is_explained_and_no_other() -> None:
    cells = re.findall(r"(?m)^\| (`[^|]+`) \|", section(OPERATIONS, "Log lines"))
    explained = {event for cell in cells for event in re.findall(r"`([^`]+)`", cell)}
    assert explained == logged_events()


# Tables and rights.


def test_every_table_is_spoken_of() -> None:
    migrations = SERVER / "storage" / "aurora" / "migrations"
    sql = "".join(text_of(path) for path in sorted(migrations.glob("*.sql")))
    of_aurora = set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(duostore\.\w+)", sql))
    tables = (projection_table, snapshot_table, idempotency_table, counter_table)
    of_dynamodb = {name("") for name in tables}
    assert of_aurora - told_of_growth() == set()
    assert of_dynamodb - told_of_growth() == set()
    stores = section(OPERATIONS, "Stores")
    assert {name for name in of_dynamodb if f"`<table_prefix>{name}`" not in stores} == set()


def told_of_growth() -> set[str]:
    rows = re.findall(r"(?m)^\| (`[^|]+) \|", section(OPERATIONS, "What grows"))
    return {name for cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def test_every_right_that_a_call_of_dynamodb_needs_is_listed() -> None:
    calls = {
        found
        for path in (SERVER / "storage" / "dynamodb").glob("*.py")
        for found in re.findall(r"client\.([a-z_]+)\(", text_of(path))
    }
    assert {"update_item", "batch_execute_statement", "transact_write_items"} <= calls
    rights = {right for call in calls - {"close"} for right in RIGHTS.get(call, (camel(call),))}
    told = set(re.findall(r"`(?:dynamodb:)?(\w+)`", section(OPERATIONS, "Stores")))
    assert rights - told == set()


def camel(call: str) -> str:
    return "".join(word.capitalize() for word in call.split("_"))


# Tests that are named as proof.


def test_every_test_that_is_named_as_proof_is_there() -> None:
    claims = section(ARCHITECTURE, "Claims, and the tests that can refute them")
    rows = re.findall(r"(?m)^\| (C\d+) \|.*$", claims)
    assert rows == [f"C{number}" for number in range(1, 12)]
    for row in re.findall(r"(?m)^\| C\d+ \|.*$", claims):
        assert PROOF.search(row), row
    for page in PAGES:
        for name, path in PROOF.findall(text_of(page)):
            assert re.search(rf"(?m)^\s*def {name}\(", text_of(ROOT / path)), f"{path}: {name}"
