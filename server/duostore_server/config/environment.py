"""Environment variables that override keys of the file: ``DUOSTORE__AURORA__DSN``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_origin

from duostore_server.config.entries import ENV_PREFIX, NAME, dotted, entries, env_name
from duostore_server.config.problems import Problem, suggestion

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from duostore_server.config.entries import Entry, Key


@dataclass(slots=True)
class Overrides:
    """What the environment says: values as the file would have them, and who set them."""

    values: dict[Key, object] = field(default_factory=dict)
    names: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def overrides(environ: Mapping[str, str], named: Mapping[str, Collection[str]] | None) -> Overrides:
    """Return what the environment overrides of a file with these kinds, queries and quotas.

    ``named`` has their names, by table, such as ``kinds``. A variable that looks like one of
    ours and matches no key is a problem, since a typing error must not be silent. ``None``
    says that the names are not known: then variables about them are passed over. Space
    around a value is not part of it.
    """
    known = _known(named or {})
    of_names = tuple(env_name((table, "")) for table in named_tables())
    # Kubernetes sets DUOSTORE_PORT and the like for a Service of that name, so that one
    # underscore alone makes no variable ours; a key with one underscore too few does.
    near = {_collapsed(name): name for name in known}
    found = Overrides()
    for name, text in sorted(environ.items()):
        if named is None and name.upper().startswith(of_names):
            continue
        keys = known.get(name, [])
        if len(keys) == 1:
            path, entry = keys[0]
            found.values[path] = _value(entry, text.strip())
            found.names[path] = name
        elif keys:
            both = " and ".join(dotted(path) for path, _ in keys)
            found.problems.append(Problem(name, f"could mean {both}; set them in the file"))
        elif name.upper().startswith(ENV_PREFIX) or _collapsed(name) in near:
            meant = near.get(_collapsed(name))
            hint = f'did you mean "{meant}"?' if meant else suggestion(name, known)
            found.problems.append(Problem(name, f"matches no key; {hint}".removesuffix("; ")))
    return found


def named_tables() -> tuple[str, ...]:
    """Return the tables in which names are free."""
    return tuple(dict.fromkeys(entry.path[0] for entry in entries() if NAME in entry.path))


def names_told(environ: Iterable[str]) -> dict[str, list[str]]:
    """Return what variables speak of, by table, in lower case: for use without a file."""
    return {table: _names_told(table, environ) for table in named_tables()}


def _names_told(table: str, environ: Iterable[str]) -> list[str]:
    keys = "|".join(env_name(entry.path[2:])[len(ENV_PREFIX) :] for entry in _within(table))
    names = (re.fullmatch(f"{env_name((table, ''))}(.+?)__({keys})", name) for name in environ)
    return sorted({name[1].lower() for name in names if name})


def _known(named: Mapping[str, Collection[str]]) -> dict[str, list[tuple[Key, Entry]]]:
    known: dict[str, list[tuple[Key, Entry]]] = {}
    for entry in entries():
        if NAME not in entry.path:
            known[env_name(entry.path)] = [(entry.path, entry)]
    for table, names in named.items():
        for name in names:
            for entry in _within(table):
                path = (table, name, *entry.path[2:])
                known.setdefault(env_name(path), []).append((path, entry))
    return known


def _within(table: str) -> list[Entry]:
    return [entry for entry in entries() if entry.path[:2] == (table, NAME)]


def _collapsed(name: str) -> str:
    return re.sub("_+", "_", name.upper())


def _value(entry: Entry, text: str) -> object:
    """Return the text as the file would hold it; as it is if it cannot be that."""
    if entry.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if entry.type is int and re.fullmatch("-?[0-9]{1,18}", text):
        return int(text)
    if get_origin(entry.type) is tuple:
        return [part.strip() for part in text.split(",")]
    if get_origin(entry.type) is Mapping:
        return _inline(text) if text.startswith("{") else _table(text)
    if get_origin(entry.type) is Sequence:
        return _inline(text)
    return text


def _inline(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _table(text: str) -> object:
    parts = [part.strip().rpartition("=") for part in text.split(",") if part.strip()]
    if not all(parted for _, parted, _ in parts):
        return text
    return {name: int(n) if re.fullmatch("[0-9]{1,18}", n) else n for name, _, n in parts}
