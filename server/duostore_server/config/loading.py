"""Loads the configuration: the environment before the file before the defaults."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from duostore_server.config.checks import findings, serve_findings
from duostore_server.config.entries import dotted, entry_at
from duostore_server.config.environment import named_tables, names_told, overrides
from duostore_server.config.problems import ConfigError, Problem, message_of
from duostore_server.config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from duostore_server.config.entries import Key

_Table: TypeAlias = dict[str, Any]


def load(path: Path | None, environ: Mapping[str, str], *, serving: bool = False) -> Settings:
    """Return the settings of a file, overridden by environment variables.

    Raises ``ConfigError`` with all problems at once, each under its key. ``serving``
    adds what ``serve`` requires: see ``check_for_serve``. Paths in the configuration,
    those in variables too, are seen from the file's folder; without a file from the
    current one. Without a file the variables name the kinds, queries and quotas as well.
    """
    document, problems = _read(path)
    if document is None:
        named = None
    elif path is None:
        named = names_told(environ)
    else:
        tables = {name: document.get(name) for name in named_tables()}
        named = {name: list(table) for name, table in tables.items() if isinstance(table, dict)}
    given = overrides(environ, named)
    data = _merged(document or {}, given.values)
    folder = path.parent.absolute() if path else Path.cwd()
    settings, faults = _validated(data, folder)
    found: list[tuple[Key, str]] = list(faults)
    # Without its file a configuration has faults enough.
    if document is not None:
        found += _misfits(settings, [key for key, _ in faults], serving=serving)
    problems += [_problem(key, message, given.names) for key, message in found]
    problems += given.problems
    if problems:
        raise ConfigError(problems)
    return settings


def _read(path: Path | None) -> tuple[_Table | None, list[Problem]]:
    if path is None:
        return {}, []
    try:
        return tomllib.loads(path.read_bytes().decode()), []
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 text, at byte {error.start}"
    except (ValueError, RecursionError) as error:
        message = f"is not valid TOML: {error}"
    return None, [Problem(str(path), message)]


def _merged(document: _Table, values: Mapping[Key, object]) -> _Table:
    for key, value in values.items():
        table = document
        for name in key[:-1]:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                break  # found to be no table when it is validated
            table = inner
        else:
            table[key[-1]] = value
    return document


def _validated(data: _Table, folder: Path) -> tuple[Settings, list[tuple[Key, str]]]:
    """Return the settings and what is wrong with them.

    Defaults stand in for what is and, where a key has none, its lowest value. Where there is
    none either, the whole table goes: what is said of it is told.
    """
    try:
        return Settings.model_validate(data, context={"folder": folder}), []
    except ValidationError as error:
        faults = list(_faults(error))
    for key, _ in faults:
        _drop(data, key)
    try:
        return Settings.model_validate(data, context={"folder": folder}), faults
    except ValidationError as error:
        for key, _ in _faults(error):
            entry = entry_at(key)
            if entry is None or entry.low is None:
                _drop(data, key[:2])
            else:
                _merged(data, {key: entry.form.write(entry.low)})
    return Settings.model_validate(data, context={"folder": folder}), faults


def _faults(error: ValidationError) -> Iterator[tuple[Key, str]]:
    for details in error.errors(include_url=False, include_input=False):
        # Only says that the default depends on a key which has a fault of its own.
        if details["type"] == "default_factory_not_called":
            continue
        # pydantic adds "[key]" if it is a name of a kind, query or quota that is wrong.
        key = tuple(str(part) for part in details["loc"] if part != "[key]")
        yield key, message_of(details, key)


def _drop(table: _Table, key: Key) -> None:
    for name in key[:-1]:
        inner = table.get(name)
        if not isinstance(inner, dict):
            return
        table = inner
    table.pop(key[-1], None)


def _misfits(
    settings: Settings, faulty: Iterable[Key], *, serving: bool
) -> Iterator[tuple[Key, str]]:
    """Yield what does not fit together among the keys that are good by themselves."""
    known_bad = list(faulty)
    for finding in (*findings(settings), *(serve_findings(settings) if serving else ())):
        if not any(_overlap(key, bad) for key in finding.paths for bad in known_bad):
            yield finding.paths[0], finding.message


def _overlap(one: Key, other: Key) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _problem(key: Key, message: str, names: Mapping[Key, str]) -> Problem:
    name = names.get(key)
    return Problem(dotted(key), f"{message} (set by {name})" if name else message)
