"""Relational kinds: the user's own rows, written in the transaction of their entity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import psycopg

from duostore_server.domain.documents import compact_json
from duostore_server.domain.errors import (
    ConstraintViolatedError,
    FieldViolation,
    InvalidRequestError,
)
from duostore_server.domain.queries import TENANT
from duostore_server.domain.read_models import DATA, ID, VERSION
from duostore_server.domain.transactions import Change
from duostore_server.storage.aurora.built import UnfitDocumentError, building, built, same
from duostore_server.storage.aurora.sql_splice import spliced
from duostore_server.storage.aurora.stale_rows import touching
from duostore_server.storage.aurora.trips import Statement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from duostore_server.domain.documents import JsonObject
    from duostore_server.domain.errors import DuostoreError
    from duostore_server.domain.read_models import ReadModel
    from duostore_server.domain.transactions import Mutation
    from duostore_server.storage.aurora.trips import Rows, StatementFailedError

# A version is known to nobody but the server when the user's statements are sent: they come in
# the trip of the statement that makes it.
_EXPRESSIONS: Final = {
    TENANT: "%(tenant)s::text",
    ID: "%(id)s::text",
    DATA: "%(data)s::jsonb",
    VERSION: """
        SELECT duostore_entity.version
        FROM duostore.entity AS duostore_entity
        WHERE duostore_entity.tenant = %(tenant)s
            AND duostore_entity.kind = %(kind)s
            AND duostore_entity.id = %(id)s
    """,
}

_COMPLETE: Final = """
UPDATE duostore.entity SET data = %(data)s::jsonb
WHERE tenant = %(tenant)s AND kind = %(kind)s AND id = %(id)s
"""

# What the user's own RAISE EXCEPTION has, where it says nothing else.
_RAISED: Final = "P0001"
_INTEGRITY_CLASS: Final = "23"
_CHECK_OPTION: Final = "44000"
_DATA_CLASS: Final = "22"
_OURS: Final = "duostore"


@dataclass(frozen=True, slots=True)
class _Step:
    """A statement, and the mutation that it is done for, by its place in the transaction."""

    place: int
    statement: Statement


class RowWrites:
    """What a transaction does for those of its mutations whose kinds are relational.

    The statements of all of them, in the order of the request, so that a row may refer to one
    of a mutation before it; then their read models, which see all of that.
    """

    def __init__(self, models: Mapping[str, ReadModel], mutations: Sequence[Mutation]) -> None:
        self._mutations = mutations
        self._models = {
            place: model
            for place, mutation in enumerate(mutations)
            if isinstance(mutation, Change)
            and (model := models.get(mutation.key.kind))
            and not model.is_derived
        }
        self._writes = [step for place in self._models for step in self._written(place)]
        self._reads = [
            _Step(place, building(model, mutations[place].key))
            for place, model in self._models.items()
            if _data_of(mutations[place]) is not None
        ]

    @property
    def statements(self) -> list[Statement]:
        """Return what follows the statements of the entities, in the same trip."""
        return [step.statement for step in (*self._writes, *self._reads)]

    def completed(self, rows: Sequence[Rows]) -> Sequence[Mutation]:
        """Return the mutations with the documents that were built, of the rows of ``statements``.

        Raises ``InvalidRequestError`` if one of them is none.
        """
        mutations = list(self._mutations)
        for step, found in zip(self._reads, rows[len(self._writes) :], strict=True):
            change = mutations[step.place]
            if isinstance(change, Change):
                mutations[step.place] = replace(change, data=self._document(step.place, found))
        return mutations

    def completing(self, mutations: Sequence[Mutation]) -> list[Statement]:
        """Return what goes with the COMMIT: the documents that were built.

        A document that depends on anything is stale at once. A change of that which was not
        committed when this document was built may look for the documents that it touches
        before this one is committed, and not find it.
        """
        statements = [
            Statement(
                _COMPLETE,
                {
                    "tenant": change.key.tenant,
                    "kind": change.key.kind,
                    "id": change.key.id,
                    "data": compact_json(data),
                },
            )
            for step in self._reads
            if (data := _data_of(change := mutations[step.place])) is not None
            and not same(data, _data_of(self._mutations[step.place]))
        ]
        depending = [
            self._mutations[place].key for place in self._models if self._models[place].sources
        ]
        return [*statements, touching(depending)] if depending else statements

    def meaning(self, failure: StatementFailedError, before: int) -> DuostoreError | None:
        """Return what it means that a statement failed; None if it is none of the user's.

        ``before`` statements were sent in front of these.
        """
        place = len(failure.rows) - before
        error = failure.__cause__
        if place < 0 or not isinstance(error, psycopg.Error):
            return None
        step = (*self._writes, *self._reads)[place]
        if violation := violation_of(error):
            return violation.at(step.place) if len(self._mutations) > 1 else violation
        if (error.sqlstate or "").startswith(_DATA_CLASS):
            return self._invalid(
                step.place,
                f"has a value that the database does not take: {_refused(error)}",
            )
        return None

    def _written(self, place: int) -> Iterator[_Step]:
        change, model = self._mutations[place], self._models[place]
        data = _data_of(change)
        file = model.delete if data is None else model.save
        params = {
            "tenant": change.key.tenant,
            "kind": change.key.kind,
            "id": change.key.id,
            "data": None if data is None else compact_json(data),
        }
        for statement in file.statements if file else ():
            yield _Step(place, Statement(spliced(statement, _EXPRESSIONS), params))

    def _document(self, place: int, rows: Rows) -> JsonObject:
        model = self._models[place]
        try:
            document = built(model, rows)
        except UnfitDocumentError as error:
            raise self._invalid(place, f"cannot be saved: {error}") from error
        if document is None:
            raise self._invalid(
                place,
                f"cannot be saved: the read model of {model.kind!r} answers no document for it",
            )
        return document

    def _invalid(self, place: int, description: str) -> InvalidRequestError:
        saves = _data_of(self._mutations[place]) is not None
        field = "data" if saves else "key"
        if len(self._mutations) > 1:
            field = f"mutations[{place}].{'save' if saves else 'delete'}.{field}"
        return InvalidRequestError([FieldViolation(field, description)])


def _refused(error: psycopg.Error) -> str:
    """Return what PostgreSQL calls a state, and the state: not its words, which quote values."""
    name = "".join(f" {c.lower()}" if c.isupper() else c for c in type(error).__name__).strip()
    return f"{name} (SQLSTATE {error.sqlstate})"


def violation_of(error: psycopg.Error) -> ConstraintViolatedError | None:
    """Return what an error says of a constraint of the user's; None if it says nothing of any."""
    state, said = error.sqlstate or "", error.diag
    is_one = state.startswith(_INTEGRITY_CLASS) or state in (_RAISED, _CHECK_OPTION)
    if said.schema_name == _OURS or not is_one:
        return None
    if column := said.column_name if not said.constraint_name else None:
        return ConstraintViolatedError(column, column=True)
    return ConstraintViolatedError(said.constraint_name or "")


def _data_of(mutation: Mutation) -> JsonObject | None:
    return mutation.data if isinstance(mutation, Change) else None
