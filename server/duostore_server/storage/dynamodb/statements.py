"""Conditional writes as PartiQL statements, of which one call carries many.

A call of ``BatchExecuteStatement`` takes 25 of them, each with its own condition, its
own result and the price of a single write, for about a tenth of the client's CPU. Only
a statement's success is to be believed; of a refused one, DynamoDB does not say what is
held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.domain.entities import AS_SAVED, Form
from duostore_server.storage.dynamodb.items import attributes_of

if TYPE_CHECKING:
    from types_boto3_dynamodb.type_defs import (
        BatchStatementRequestTypeDef,
        BatchStatementResponseTypeDef,
    )

    from duostore_server.storage.dynamodb.items import Write

MAX_STATEMENTS: Final = 25

# The ways to say that what is held is as new, or that there was nothing to update.
EXPECTED_REFUSALS: Final = frozenset({"ConditionalCheckFailed", "DuplicateItem"})


def does_all_of(write: Write) -> bool:
    """Return whether a statement leaves nothing of what was held before.

    An UPDATE does not remove what it does not name, and of a document that was deleted
    nothing may stay, in whatever shapes it was held.
    """
    return write.projection.form is Form.VALUE or write.projection.version == 1


def statement(table: str, write: Write) -> BatchStatementRequestTypeDef:
    """Return the statement that stores a write if it is newer than what is held.

    A first version is inserted, unless anything is held; a later one updates an older
    one. UPDATE does not create, and does not remove what it does not name: a shape may be
    left behind that nobody reads any more.
    """
    if write.projection.version == 1:
        return _insert(table, write)
    return _update(table, write)


def refusal(response: BatchStatementResponseTypeDef) -> str | None:
    """Return why a statement was not applied, in DynamoDB's word, or None if it was."""
    error = response.get("Error")
    return None if error is None else error.get("Code", "unknown")


def _insert(table: str, write: Write) -> BatchStatementRequestTypeDef:
    attributes = ", ".join(f"'{name}': ?" for name in write.item)
    return {
        "Statement": f'INSERT INTO "{table}" VALUE {{{attributes}}}',
        "Parameters": list(write.item.values()),
    }


def _update(table: str, write: Write) -> BatchStatementRequestTypeDef:
    assigned = {name: value for name, value in write.item.items() if name != "pk"}
    clauses = [f'SET "{name}"=?' for name in assigned]
    clauses += [f'REMOVE "{name}"' for name in _optional(write) if name not in assigned]
    return {
        "Statement": (f'UPDATE "{table}" {" ".join(clauses)} WHERE "pk"=? AND "version"<?'),
        "Parameters": [*assigned.values(), write.item["pk"], write.item["version"]],
    }


def _optional(write: Write) -> list[str]:
    """Return the names of attributes that what is held may have and the write has not.

    A kind comes to its shapes one by one, and goes back by one. A write that knows of
    shape 1 alone is mostly of a kind that never had another: it names no other.
    """
    later = [shape for shape, _ in write.projection.later]
    last = max(later) + 1 if later else AS_SAVED
    return [name for shape in range(AS_SAVED, last + 1) for name in attributes_of(shape)]
