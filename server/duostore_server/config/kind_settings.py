"""The definition of a kind."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from duostore_server.config.document_schema import SchemaFile
from duostore_server.config.section import Section, between, duration, setting, size
from duostore_server.config.source_settings import Sources
from duostore_server.config.sql_files import Select, Writes
from duostore_server.config.transform_files import MAX_PROJECTION_VERSION, Transforms
from duostore_server.config.values import Duration, History, Size
from duostore_server.domain.entities import AS_SAVED


def _cache_ttl(kind: dict[str, Any]) -> Any:  # noqa: ANN401 - read as if it stood in the file
    return "5s" if kind.get("home") == "dynamodb" else "60s"


class Snapshots(Section):
    """``[kinds.NAME.snapshots]``."""

    consolidate_every: Duration = duration(
        "30s", "How long the newest snapshot may wait to be brought to Aurora.", "1s", "24h"
    )
    keep: History = duration(
        "7d",
        "How long a snapshot that is not the newest is kept, from when Aurora has it or a newer "
        "one: `0s`, which keeps none, or `1m` and more.",
        "0s",
        "3650d",
    )


class Kind(Section):
    """``[kinds.NAME]``."""

    home: Literal["aurora", "dynamodb"] = setting(
        "aurora",
        "The store that is right about this kind. `dynamodb` is for temporary, simple data in "
        "large numbers: Aurora is not asked, Transact takes no such kinds, and a document may not "
        "pass 400 KB as it is stored, compressed.",
    )
    cache_ttl: Annotated[Duration, *between("1s", "24h")] = Field(
        default_factory=_cache_ttl,
        description="How long an entity is cached: the last bound on what a reader sees. If not "
        'set, `60s`, and `5s` with home = "dynamodb", where readers may see the old value for so '
        "long if a server dies while it saves.",
    )
    absent_ttl: Duration = duration(
        "10s", "How long it is remembered that an entity does not exist.", "5s", "30s"
    )
    ttl: Annotated[Duration, *between("1s", "3650d")] | None = setting(
        None,
        'How long an entity exists after its last Save, to the second. Needs home = "dynamodb"; '
        "if not set, until it is deleted.",
    )
    consolidate_every: Annotated[Duration, *between("1s", "24h")] | None = setting(
        None,
        "How long a change may wait to be brought to Aurora, as a draft. Needs "
        'home = "dynamodb"; if not set, none is.',
    )
    projection: Literal["inline", "async"] = setting(
        "inline",
        "Who brings a change to DynamoDB: the call that made it (`inline`), or the projector "
        "after the call was answered (`async`).",
    )
    projection_version: int = setting(
        AS_SAVED,
        "The newest shape in which readers may get the documents; `1` is as they are saved. From "
        "`2` on it needs `transforms`. Readers get the one before until the flags "
        "`projection_write.NAME.N` and `projection_read.NAME.N` say otherwise.",
        AS_SAVED,
        MAX_PROJECTION_VERSION,
    )
    transforms: Transforms = setting(
        {},
        "For each projection version from 2 on, at least the newest and the one before it, the "
        "file with the JMESPath that makes it of the document as it is saved: an object, which "
        "may not pass `max_bytes` either. A document of which it makes none is refused when it "
        "is saved. What a projection version is must not change once it is written: take the next "
        'number. `{ 2 = "transforms/proposal_2.jmespath" }`.',
    )
    document_schema: SchemaFile | None = setting(
        None, "A JSON Schema, draft 2020-12, that every document must match.", alias="schema"
    )
    max_bytes: Size = size("256KiB", "The largest document, as compact JSON in UTF-8.", 16, "4MiB")
    read_model: Select | None = setting(
        None,
        "The file with the SELECT that builds the document from `:tenant` and `:id`: one row, "
        "whose columns are the fields, or none if there is no document. A *derived* kind has this "
        "and `depends_on`, and cannot be saved; a *relational* one has `save_sql` and `delete_sql` "
        "beside it.",
    )
    save_sql: Writes | None = setting(
        None,
        "The file with the statements of a Save, run in its transaction and told `:tenant`, `:id`, "
        "`:version` and `:data`, the document as jsonb. Needs `read_model` and `delete_sql`.",
    )
    delete_sql: Writes | None = setting(
        None,
        "The file with the statements of a Delete, told `:tenant`, `:id` and `:version`. Needs "
        "`save_sql`.",
    )
    depends_on: Sources = setting(
        [],
        "What the documents of `read_model` are built of: kinds, and tables with their schema. "
        "`fields`, of the document or columns of the table, and `ids`, a file with a SELECT that "
        "is told them as text by their names, tell which documents a change touches: it answers "
        "their `id` and, unless it is the one of the change, their `tenant`. For a kind it is "
        "told `:tenant` and `:id` too. "
        '`[{ kind = "proposal", fields = ["author"], ids = "sql/author.sql" }, '
        '{ table = "public.invoice", fields = ["payer"], ids = "sql/payer.sql" }]`.',
    )
    snapshots: Snapshots | None = setting(
        None,
        "Snapshots of the kind, which it keeps if this table is there, be it empty. Needs "
        'home = "aurora".',
    )

    @property
    def is_derived(self) -> bool:
        """Return whether SQL builds its documents and nobody saves them."""
        return self.read_model is not None and self.save_sql is None and self.delete_sql is None

    @property
    def is_relational(self) -> bool:
        """Return whether SQL stores what is saved, and answers the document."""
        return self.read_model is not None and not self.is_derived
