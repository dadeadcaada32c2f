"""The types of value that the configuration knows beside text, whole numbers and true or false.

Each is read from the form in which people write it and refuses anything else with a
sentence that says what is expected. ``Form`` tells the reference how to write it back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import core_schema

from duostore_server.config.addresses import Address
from duostore_server.domain.keys import EntityKey, key_violations, part_violations
from duostore_server.domain.queries import MAX_QUERY_BYTES
from duostore_server.domain.quotas import CounterKey, counter_key_violations

if TYPE_CHECKING:
    from collections.abc import Callable

_MILLISECONDS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}

_DURATION: Final = "[0-9]{1,12}(ms|s|m|h|d)"
_SIZE: Final = "[0-9]{1,12}(B|KiB|MiB|GiB)"
_ADDRESS: Final = r"(\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:]+):[0-9]{1,5}"

# A shorter history would be swept from under those who page through it.
_LEAST_HISTORY: Final = 60.0


@dataclass(frozen=True, slots=True)
class Form:
    """How the values of a type are called, and how one is written in the file."""

    label: str
    write: Callable[[Any], object]


class Opaque:
    """Marks a type that pydantic does not look into: the validator around it makes its values."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: object
    ) -> core_schema.CoreSchema:
        """Return the schema that takes whatever it is given."""
        del source, handler
        return core_schema.any_schema()


def parse_duration(value: object) -> float:
    """Return a duration such as ``"250ms"`` in seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError('is a number without a unit; write a duration, such as "60s"')  # noqa: TRY004 - pydantic collects ValueErrors
    if not isinstance(value, str) or not (found := re.fullmatch(_DURATION, value)):
        raise ValueError(
            'must be a duration: a whole number and one of ms, s, m, h, d, such as "60s"'
        )
    unit = found[1]
    return int(value.removesuffix(unit)) * _MILLISECONDS[unit] / 1_000


def duration_text(seconds: float) -> str:
    """Return the duration as people write it: ``60s``, ``1h`` and ``24h``, not ``1m`` or ``1d``."""
    milliseconds = round(seconds * 1_000)
    for unit, least in (("d", 2), ("h", 1), ("m", 2)):
        count, rest = divmod(milliseconds, _MILLISECONDS[unit])
        if count >= least and not rest:
            return f"{count}{unit}"
    count, rest = divmod(milliseconds, _MILLISECONDS["s"])
    return f"{milliseconds}ms" if rest else f"{count}s"


def parse_size(value: object) -> int:
    """Return a size such as ``"256KiB"``, or a plain number of bytes, in bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not (found := re.fullmatch(_SIZE, value)):
        raise ValueError(
            "must be a size: a whole number of bytes, or with one of B, KiB, MiB, GiB, "
            'such as "256KiB"'
        )
    unit = found[1]
    return int(value.removesuffix(unit)) * _BYTES[unit]


def size_text(size: int) -> str | int:
    """Return the size in its largest whole unit; a plain number if that is bytes."""
    for unit in ("GiB", "MiB", "KiB"):
        count, rest = divmod(size, _BYTES[unit])
        if count and not rest:
            return f"{count}{unit}"
    return size


def _optional_address(value: object) -> Address | None:
    return None if value is None or value == "" else Address.parse(value)


def _nodes(value: object) -> tuple[Address, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError('must be a list of at least one address, such as ["127.0.0.1:11211"]')
    nodes: list[Address] = []
    for position, item in enumerate(value):
        try:
            node = Address.parse(item)
        except ValueError as error:
            raise ValueError(f"entry {position + 1} {error}") from None
        if node in nodes:
            raise ValueError(f'lists "{node}" twice')
        nodes.append(node)
    return tuple(nodes)


def resolved(value: object, info: ValidationInfo) -> Path:
    """Return the path of a file that can be read, seen from the folder of the configuration."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be the path of a file, in quotes")
    path: Path = (info.context or {}).get("folder", Path()) / value
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ValueError(f'cannot be read: "{path}": {error.strerror}') from None


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in value:
        raise ValueError('must be http:// or https:// and a host, such as "http://127.0.0.1:8000"')
    return value


_URI: Final = r"postgres(ql)?://([^@/?#%]|%[0-9A-Fa-f]{2})*(@([^@%]|%[0-9A-Fa-f]{2})*|[^@]*)"
_PAIRS: Final = r"(\s*\w+\s*=\s*('([^'\\]|\\.)*'|([^\s'\\]|\\.)*)(?=\s|$))+\s*"


def _dsn(value: object) -> object:
    # Never quoted in a message: it holds a password, most likely just when it is malformed.
    if not isinstance(value, str):
        return value
    if re.match("postgres(ql)?://", value):
        # The driver would take a part of the password for the host, and name it in its errors.
        if not re.fullmatch(_URI, value):
            raise ValueError(
                "has a user or password that is not percent-encoded: write @ as %40, / as %2F, "
                "% as %25"
            )
    elif not re.fullmatch(_PAIRS, value):
        raise ValueError(
            'must be a connection string, such as "postgresql://user:password@host:5432/database" '
            'or "host=... dbname=... user=... password=..."'
        )
    return value


def _history(seconds: float) -> float:
    if 0 < seconds < _LEAST_HISTORY:
        raise ValueError(f"must be 0s, for none, or at least {duration_text(_LEAST_HISTORY)}")
    return seconds


def _kind_name(name: str) -> str:
    for violation in key_violations(EntityKey(tenant="", kind=name, id="-"), "key"):
        raise ValueError(f"the name of the kind {violation.description}")
    return name


def _quota_name(name: str) -> str:
    for violation in counter_key_violations(CounterKey(tenant="", quota=name, subject="-")):
        raise ValueError(f"the name of the quota {violation.description}")
    return name


def _query_name(name: str) -> str:
    for violation in part_violations(name, "query", MAX_QUERY_BYTES, empty_ok=False, hash_ok=False):
        raise ValueError(f"the name of the query {violation.description}")
    return name


def _kinds(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise ValueError('must be a list of names of kinds, such as ["proposal"]')
    for name in value:
        if value.count(name) > 1:
            raise ValueError(f'lists "{name}" twice')
    return tuple(value)


def _word(pattern: str, expected: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(expected)
        return value

    return AfterValidator(check)


Duration: TypeAlias = Annotated[
    float,
    BeforeValidator(parse_duration),
    WithJsonSchema({"type": "string", "pattern": f"^{_DURATION}$"}),
    Form("duration", duration_text),
]
History: TypeAlias = Annotated[Duration, AfterValidator(_history)]
Size: TypeAlias = Annotated[
    int,
    BeforeValidator(parse_size),
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": f"^{_SIZE}$"}]},
    ),
    Form("size", size_text),
]
HostPort: TypeAlias = Annotated[
    Address,
    PlainValidator(Address.parse),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "pattern": f"^{_ADDRESS}$"}),
    Form("host:port", str),
]
OptionalHostPort: TypeAlias = Annotated[
    Address | None,
    PlainValidator(_optional_address),
    PlainSerializer(lambda address: str(address or "")),
    WithJsonSchema({"type": "string", "pattern": f"^({_ADDRESS})?$"}),
    Form('host:port, or "" for none', lambda address: str(address or "")),
]
Nodes: TypeAlias = Annotated[
    tuple[Address, ...],
    PlainValidator(_nodes),
    PlainSerializer(lambda nodes: [str(node) for node in nodes]),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "pattern": f"^{_ADDRESS}$"},
            "minItems": 1,
            "uniqueItems": True,
        }
    ),
    Form("list of host:port", lambda nodes: [str(node) for node in nodes]),
]
Kinds: TypeAlias = Annotated[
    tuple[str, ...],
    PlainValidator(_kinds),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
    Form("list of kinds", list),
]
File: TypeAlias = Annotated[
    Path,
    PlainValidator(resolved),
    WithJsonSchema({"type": "string", "minLength": 1}),
    Form("path", str),
]
Url: TypeAlias = Annotated[
    str,
    AfterValidator(_url),
    WithJsonSchema({"type": "string", "pattern": "^https?://[^@]+$"}),
    Form("URL", str),
]
Dsn: TypeAlias = Annotated[SecretStr, BeforeValidator(_dsn), Form("connection string", str)]
Region: TypeAlias = Annotated[
    str, _word("[a-z0-9-]{1,32}", 'must be the name of a region, such as "eu-central-1"')
]
TablePrefix: TypeAlias = Annotated[
    str,
    _word(
        "[A-Za-z0-9_.-]{0,100}",
        "must be at most 100 of the characters that a table name may have: A-Z a-z 0-9 _ . -",
    ),
]
Namespace: TypeAlias = Annotated[
    str, _word("[A-Za-z0-9_.-]{1,32}", "must be 1 to 32 of the characters A-Z a-z 0-9 _ . -")
]
KindName: TypeAlias = Annotated[str, AfterValidator(_kind_name)]
QuotaName: TypeAlias = Annotated[str, AfterValidator(_quota_name)]
QueryName: TypeAlias = Annotated[str, AfterValidator(_query_name)]
