"""The engines of the projections, and words for the suites that run over them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Form, Projection
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb.items import encode
from duostore_server.storage.dynamodb.projections import direct_projections, open_projections
from duostore_server.storage.dynamodb.tables import create_tables, projection_table
from tests.support.dynamodb_engines import never
from tests.support.simulated_dynamodb import SimulatedDynamoDB

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.ports import Projections

KEY = EntityKey("acme", "proposal", "p-1")
TEXT = b"every reader that starts from now on sees it; " * 50
COMPRESS_ABOVE = 1024


def soon() -> Deadline:
    return Deadline.after(30)


def value(version: int, payload: bytes = b"payload") -> Projection:
    return Projection(version, Form.VALUE, payload)


def shaped(version: int, *shapes: int, of: bytes = b"in shape %d") -> Projection:
    """Return a projection in these shapes, each with a payload of its own, made ``of`` its number.

    A payload is compressed if ``of`` is long enough.
    """
    payloads = {shape: of.replace(b"%d", b"%d" % shape) for shape in shapes}
    first = payloads.pop(1, None)
    return Projection(version, Form.VALUE, first, tuple(payloads.items()))


def key_of(number: int) -> EntityKey:
    return EntityKey("acme", "proposal", f"p-{number}")


@dataclass
class Engine:
    """Projections, and what is below them."""

    client: DynamoDBClient
    prefix: str
    projections: Projections
    unreadable: list[tuple[EntityKey, int, str]] = field(default_factory=list)
    counts_base64: bool = False

    @property
    def table(self) -> str:
        return projection_table(self.prefix)

    def read(self, key: EntityKey = KEY) -> Projection | None:
        return self.projections.read((key,), soon()).get(key)

    def put(self, projection: Projection, key: EntityKey = KEY) -> Projection:
        return self.projections.put(key, projection, soon())

    def item(self, key: EntityKey = KEY) -> dict[str, Any]:
        return dict(
            self.client.get_item(
                TableName=self.table, Key={"pk": {"S": str(key)}}, ConsistentRead=True
            )["Item"]
        )

    def damage(self, key: EntityKey, **attributes: Any) -> None:
        """Leave these attributes, and no others, in the place of an item."""
        self.client.put_item(TableName=self.table, Item={"pk": {"S": str(key)}, **attributes})

    def raise_version(self, version: int, payload: bytes, key: EntityKey = KEY) -> None:
        """Put a version as a release does that knows of shape 1 alone."""
        self.client.update_item(
            TableName=self.table,
            Key={"pk": {"S": str(key)}},
            UpdateExpression="SET version = :version, payload = :payload, crc = :crc "
            "REMOVE #encoding",
            ExpressionAttributeNames={"#encoding": "encoding"},
            ExpressionAttributeValues={
                ":version": {"N": str(version)},
                ":payload": {"B": payload},
                ":crc": encode(
                    key, Projection(version, Form.VALUE, payload), compress_above=len(payload)
                ).item["crc"],
            },
        )


# The names of the engines.
ENGINES = (
    "dynamodb_local",
    "single_puts",  # the same, with no statements
    "only_statements",  # the same, with no puts but of what statements do not do
    "embedded",
    "simulated",
    "simulated_single_puts",
)


@contextmanager
def engine_named(name: str, request: pytest.FixtureRequest, prefix: str) -> Iterator[Engine]:
    """Run an engine, on a client that is a fixture: ``embedded_client``, ``dynamodb_client``."""
    if name in ("simulated", "simulated_single_puts"):
        yield direct(SimulatedDynamoDB().client, prefix, statements=name == "simulated")
        return
    client: DynamoDBClient = request.getfixturevalue(
        "embedded_client" if name == "embedded" else "dynamodb_client"
    )
    if name == "only_statements":
        yield direct(client, prefix)
        return
    with threaded(client, prefix, statements=name == "dynamodb_local") as engine:
        engine.counts_base64 = name == "embedded"
        yield engine


@contextmanager
def threaded(client: DynamoDBClient, prefix: str, *, statements: bool = True) -> Iterator[Engine]:
    """Run projections with threads of their own."""
    create_tables(client, prefix=prefix, pause=time.sleep)
    unreadable: list[tuple[EntityKey, int, str]] = []
    with open_projections(
        client,
        prefix=prefix,
        unreadable=lambda *problem: unreadable.append(problem),
        compress_above=COMPRESS_ABOVE,
        timeout=20,
        statements=statements,
    ) as projections:
        yield Engine(client, prefix, projections, unreadable)


def direct(client: DynamoDBClient, prefix: str = "", *, statements: bool = True) -> Engine:
    """Return projections that call from their caller's thread."""
    create_tables(client, prefix=prefix, pause=never)
    unreadable: list[tuple[EntityKey, int, str]] = []
    projections = direct_projections(
        client,
        prefix=prefix,
        unreadable=lambda *problem: unreadable.append(problem),
        pause=never,
        clock=time.monotonic,
        compress_above=COMPRESS_ABOVE,
        statements=statements,
    )
    return Engine(client, prefix, projections, unreadable)


_GARBAGE = {"payload": {"B": b"garbage"}, "encoding": {"S": "zstd"}}
_FRAME = encode(KEY, value(1, TEXT), compress_above=0).item["payload"]["B"]
_VALUE = {"version": {"N": "7"}, "form": {"S": "value"}}


def _attributes(key: EntityKey) -> dict[str, Any]:
    """Return what is put of version 7 of an entity, but for its key."""
    item = encode(key, value(7, TEXT), compress_above=0).item
    return {name: held for name, held in item.items() if name != "pk"}


_WHOLE = _attributes(KEY)
_LATER = {**_VALUE, "payload": {"B": b"p"}, "version_2": {"N": "7"}}

# Attributes that make no projection, and the version that is seen in them.
UNREADABLE: dict[str, tuple[dict[str, Any], int]] = {
    "nothing": ({}, 0),
    "no version": ({"form": {"S": "value"}, "payload": {"B": b"p"}}, 0),
    "version of text": ({"version": {"S": "7"}, "form": {"S": "tombstone"}}, 0),
    "version zero": ({"version": {"N": "0"}, "form": {"S": "tombstone"}}, 0),
    "no form": ({"version": {"N": "7"}}, 7),
    "form of a number": ({"version": {"N": "7"}, "form": {"N": "1"}}, 7),
    "unknown form": ({"version": {"N": "7"}, "form": {"S": "essay"}}, 7),
    "no payload": (_VALUE, 7),
    "payload of text": ({**_VALUE, "payload": {"S": "p"}}, 7),
    "corrupt payload": ({**_VALUE, **_GARBAGE}, 7),
    "torn payload": ({**_VALUE, "payload": {"B": _FRAME[:-3]}, "encoding": {"S": "zstd"}}, 7),
    "a payload that was changed": (
        {**_VALUE, "payload": {"B": b"changed"}, "crc": _WHOLE["crc"]},
        7,
    ),
    "the payload of another item": (_attributes(replace(KEY, id="another")), 7),
    "the payload of another version": (
        {**_WHOLE, "version": {"N": "8"}},
        8,
    ),
    "the first shape's payload as the second": (
        {
            **_VALUE,
            "payload_2": _WHOLE["payload"],
            "encoding_2": _WHOLE["encoding"],
            "crc_2": _WHOLE["crc"],
            "version_2": {"N": "7"},
        },
        7,
    ),
    "a crc of text": ({**_VALUE, "payload": {"B": b"p"}, "crc": {"S": "1"}}, 7),
    "unknown encoding": ({**_VALUE, "payload": {"B": b"p"}, "encoding": {"S": "brotli"}}, 7),
    "later payload of text": ({**_LATER, "payload_2": {"S": "p"}}, 7),
    "torn later payload": (
        {**_LATER, "payload_2": {"B": _FRAME[:-3]}, "encoding_2": {"S": "zstd"}},
        7,
    ),
    "unknown encoding of a later payload": (
        {**_LATER, "payload_2": {"B": b"p"}, "encoding_2": {"N": "1"}},
        7,
    ),
    "a later payload that was left behind, and no other": (
        {**_VALUE, "payload_2": {"B": b"p"}, "version_2": {"N": "6"}},
        7,
    ),
}
