"""Environment variables that override keys of the file: ``DUOSTORE__AURORA__DSN``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_origin

from duostore_server.config.entries import ENV_PREFIX, NAME, dotted, entries, env_name
from duostore_server.config.problems import Problem, suggestion

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from duostore_server.config.entries import Entry, Key

_KINDS = f"{ENV_PREFIX}KINDS__"


@dataclass(slots=True)
class Overrides:
    """What the environment says: values as the file would have them, and who set them."""

    values: dict[Key, object] = field(default_factory=dict)
    names: dict[Key, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def overrides(environ: Mapping[str, str], kinds: Collection[str] | None) -> Overrides:
    """Return what the environment overrides of a file with these kinds.

    A variable that looks like one of ours and matches no key is a problem, since a
    typing error must not be silent. ``None`` says that the kinds are not known: then
    variables about them are passed over. Space around a value is not part of it.
    """
    known = _known(kinds or ())
    # Kubernetes sets DUOSTORE_PORT and the like for a Service of that name, so that one
    # underscore alone makes no variable ours; a key with one underscore too few does.
    near = {_collapsed(name): name for name in known}
    found = Overrides()
    for name, text in sorted(environ.items()):
        if kinds is None and name.upper().startswith(_KINDS):
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


def kinds_named(environ: Iterable[str]) -> list[str]:
    """Return the kinds that variables speak of, in lower case: for use without a file."""
    keys = "|".join(env_name(entry.path[2:])[len(ENV_PREFIX) :] for entry in _of_kinds())
    names = (re.fullmatch(f"{_KINDS}(.+?)__({keys})", name) for name in environ)
    return sorted({name[1].lower() for name in names if name})


def _known(kinds: Iterable[str]) -> dict[str, list[tuple[Key, Entry]]]:
    known: dict[str, list[tuple[Key, Entry]]] = {}
    for entry in entries():
        if NAME not in entry.path:
            known[env_name(entry.path)] = [(entry.path, entry)]
    for kind in kinds:
        for entry in _of_kinds():
            path = ("kinds", kind, *entry.path[2:])
            known.setdefault(env_name(path), []).append((path, entry))
    return known


def _of_kinds() -> list[Entry]:
    return [entry for entry in entries() if entry.path[:2] == ("kinds", NAME)]


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
    return text
