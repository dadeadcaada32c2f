"""The keys of the configuration, read off its definition."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    TypeAlias,
    Union,
    get_args,
    get_origin,
)

from annotated_types import Ge, Le
from pydantic import BaseModel, SecretStr

from duostore_server.config.settings import Settings
from duostore_server.config.values import Form

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

# The names of tables and of the key in them. Names of kinds, queries and quotas are free.
Key: TypeAlias = tuple[str, ...]

ENV_PREFIX: Final = "DUOSTORE__"
# Stands for the name of a kind, query or quota.
NAME: Final = "NAME"

_FORMS: Final = {
    bool: Form("true or false", lambda value: value),
    int: Form("whole number", lambda value: value),
    str: Form("text", str),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One key. ``type`` is the bare Python type of its values; bounds are inclusive.

    ``default`` is None if there is none, if it depends on other keys, or is nothing at all.
    """

    path: Key
    type: Any
    form: Form
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    low: Any = None
    high: Any = None

    @property
    def secret(self) -> bool:
        """Whether the value must never be shown."""
        return self.type is SecretStr

    def matches(self, path: Key) -> bool:
        """Whether the path names this key, whatever the kind, query or quota is called."""
        return len(path) == len(self.path) and all(
            own in (name, NAME) for own, name in zip(self.path, path, strict=True)
        )


@cache
def entries() -> tuple[Entry, ...]:
    """Return all keys in the order of their definition; free names as ``NAME``."""
    return tuple(_walk(Settings, ()))


def entry_at(path: Key) -> Entry | None:
    """Return the key that the path names or leads into."""
    return next((entry for entry in entries() if entry.matches(path[: len(entry.path)])), None)


def known_names(table: Key) -> tuple[str, ...]:
    """Return what may stand in a table."""
    depth = len(table)
    names = (
        entry.path[depth]
        for entry in entries()
        if len(entry.path) > depth
        and all(own in (name, NAME) for own, name in zip(entry.path, table, strict=False))
    )
    return tuple(dict.fromkeys(names))


def table_meaning(table: Key) -> str:
    """Return what a table is for."""
    model: Any = Settings
    meaning = ""
    for name in table:
        if name == NAME:
            model = get_args(model)[1]
        else:
            field = model.model_fields[name]
            meaning = field.description
            model, _ = _unwrapped(field.annotation, [])
    return meaning


def dotted(path: Key) -> str:
    """Return the path as TOML writes it, names that are not bare in quotes."""
    return ".".join(name if re.fullmatch("[A-Za-z0-9_-]+", name) else f'"{name}"' for name in path)


def env_name(path: Key) -> str:
    """Return the name of the environment variable that overrides the key.

    Characters of a free name that shells do not allow become underscores.
    """
    return ENV_PREFIX + "__".join(re.sub("[^A-Z0-9_]", "_", name.upper()) for name in path)


def _walk(model: type[BaseModel], prefix: Key) -> Iterator[Entry]:
    for name, field in model.model_fields.items():
        path = (*prefix, field.alias or name)
        bare, metadata = _unwrapped(field.annotation, field.metadata)
        if get_origin(bare) is dict:
            path = (*path, NAME)
            bare = get_args(bare)[1]
        if isinstance(bare, type) and issubclass(bare, BaseModel):
            yield from _walk(bare, path)
        else:
            yield _entry(path, field, bare, metadata)


def _entry(path: Key, field: FieldInfo, bare: Any, metadata: list[Any]) -> Entry:  # noqa: ANN401 - a type
    choices = get_args(bare) if get_origin(bare) is Literal else ()
    form = next((item for item in metadata if isinstance(item, Form)), None)
    if form is None:
        label = " or ".join(f'"{choice}"' for choice in choices)
        form = Form(label, str) if choices else _FORMS[bare]
    return Entry(
        path=path,
        type=bare,
        form=form,
        default=None if field.default_factory or field.is_required() else field.default,
        meaning=field.description or "",
        choices=choices,
        low=next((item.ge for item in metadata if isinstance(item, Ge)), None),
        high=next((item.le for item in metadata if isinstance(item, Le)), None),
    )


def _unwrapped(annotation: Any, metadata: list[Any]) -> tuple[Any, list[Any]]:  # noqa: ANN401 - a type
    """Return a type without ``Annotated`` and ``None``, and the metadata found on the way."""
    if get_origin(annotation) is Annotated:
        inner, *found = get_args(annotation)
        return _unwrapped(inner, metadata + found)
    if get_origin(annotation) in (Union, UnionType):
        inner = next(item for item in get_args(annotation) if item is not NoneType)
        return _unwrapped(inner, metadata)
    return annotation, metadata
