"""Writes the configuration out: its reference, its JSON Schema, and the settings in effect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from duostore_server.config.document_schema import DIALECT
from duostore_server.config.entries import NAME, dotted, entries, env_name, table_meaning
from duostore_server.config.problems import bounds_text
from duostore_server.config.quota_policies import notes
from duostore_server.config.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import core_schema

    from duostore_server.config.entries import Entry, Key

_MASK: Final = "********"

_PREFACE: Final = """\
<!-- Generated from server/duostore_server/config/settings.py: do not edit. -->
# Configuration

One TOML file, and environment variables that override it. `examples/proposals/duostore.toml` shows
it at work.

- A variable beats the file, the file beats the default. `DUOSTORE__AURORA__POOL_MAX=16` overrides
  `pool_max` in `[aurora]`; the items of a list are separated by commas, and so are those of a
  table, each of them `NAME=NUMBER`, `NAME=TYPE` or `NUMBER=PATH`. What has tables within is written
  as in TOML. In the name of a kind, query or quota, characters that a shell does not allow become
  underscores: `DUOSTORE__KINDS__BLOG_POST__CACHE_TTL` is for `[kinds.blog-post]`. A variable
  overrides kinds, queries and quotas of the file and adds none.
- Everything is checked before anything starts, and all problems are reported at once, each with its
  key. Unknown keys are problems, and so are variables that begin with `DUOSTORE__` and match none.
- A duration is a whole number and one of `ms`, `s`, `m`, `h`, `d`: `"250ms"`, `"10m"`. A size is a
  number of bytes, or a whole number and one of `B`, `KiB`, `MiB`, `GiB`: `"256KiB"`.
- Paths are seen from the folder of the file.
- An address is a host and a port; IPv6 needs brackets: `"[::1]:50051"`.

In a schema for documents (`kinds.NAME.schema`) `format` is checked, `1.0` is an integer, references
stay within the file, and patterns know neither look-around nor back-references, which can be made
to take unbounded time.

In SQL files `:name` is a parameter, whose value is sent beside the SQL; those of a query are in
lower case, those of a source are spelt as its `fields`. Not so in strings, quoted names and
comments. `::` is a cast. In a slice of an array a colon needs a space before a name: `a[1: n]`. A
file has one statement, but for `save_sql` and `delete_sql`. `duostore config check` has the
database prepare all of them and tells the file and line of what is wrong.
"""


def render_reference() -> str:
    """Return the reference of all keys, in Markdown."""
    lines = [_PREFACE]
    for table in _tables():
        lines += [f"## `[{dotted(table)}]`", "", table_meaning(table), ""]
        lines += ["| key | type | default | meaning | variable |", "|---|---|---|---|---|"]
        lines += [_row(entry) for entry in entries() if entry.path[:-1] == table]
        lines.append("")
    return "\n".join(lines)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the file, for editors and for checks before a deployment."""
    schema = Settings.model_json_schema(by_alias=True, schema_generator=_TomlSchema)
    for table in schema["$defs"].values():
        # The name of the class and its docstring, which say nothing to a reader of the file.
        table.pop("title")
        table.pop("description")
    return {"$schema": DIALECT, **schema, "title": "Duostore configuration"}


def describe(settings: Settings) -> str:
    """Return the settings in effect as TOML, what is not set as comments, secrets masked."""
    blocks, told = [], notes(settings)
    for table in _tables():
        names = _value(settings, table[:1]) if NAME in table else ("",)
        for name in names:
            path = tuple(name if part == NAME else part for part in table)
            section = _value(settings, path)
            if section is None:
                blocks.append(f"# [{dotted(path)}] is not set")
                continue
            lines = [
                _line(entry, _value(section, entry.path[-1:]), told.get((*path, entry.path[-1])))
                for entry in entries()
                if entry.path[:-1] == table
            ]
            blocks.append("\n".join([f"[{dotted(path)}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _tables() -> tuple[Key, ...]:
    return tuple(dict.fromkeys(entry.path[:-1] for entry in entries()))


def _row(entry: Entry) -> str:
    bounds = bounds_text(entry)
    cells = (
        f"`{entry.path[-1]}`",
        f"{entry.form.label}, {bounds}" if bounds else entry.form.label,
        "" if entry.default is None else f"`{json.dumps(entry.default)}`",
        entry.meaning,
        f"`{env_name(entry.path)}`",
    )
    return "| " + " | ".join(cells) + " |"


def _line(entry: Entry, value: Any, note: str | None) -> str:  # noqa: ANN401 - of the entry's type
    name = entry.path[-1]
    if value is None and entry.default is None:
        return f"# {name} is not set: {note}" if note else f"# {name} is not set"
    if entry.secret:
        return f'{name} = "{_MASK}"'
    line = f"{name} = {_toml(entry.form.write(value))}"
    return f"{line}  # in force: {note}" if note else line


def _toml(value: object) -> str:
    if isinstance(value, dict):
        items = ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


def _value(table: BaseModel, path: Key) -> Any:  # noqa: ANN401 - any value
    node: Any = table
    for name in path:
        node = node[name] if isinstance(node, dict) else getattr(node, _attribute(node, name))
    return node


def _attribute(table: BaseModel, key: str) -> str:
    fields = type(table).model_fields.items()
    return next(name for name, field in fields if (field.alias or name) == key)


class _TomlSchema(GenerateJsonSchema):
    """Leaves out null, which TOML does not have, and titles that only repeat the key."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        described = super().default_schema(schema)
        if described.get("default", ...) is None:
            del described["default"]
        return described

    def field_title_should_be_set(self, schema: object) -> bool:
        del schema
        return False
