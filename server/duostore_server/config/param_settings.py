"""The parameters of a query, as a table of the configuration has them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from duostore_server.config.values import Form, Opaque
from duostore_server.domain.queries import TENANT, Param, ParamType
from duostore_server.domain.query_params import ItemError, parse_value

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME: Final = "[A-Za-z_][A-Za-z0-9_]*"
_TYPES: Final = {each.value: each for each in ParamType}
_LIST: Final = "[]"
_KEYS: Final = ("type", "default", "optional")


def _params(value: object) -> dict[str, Param]:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
            'must be a table of parameters and their types, such as { status = "string" }'
        )
    wrong = list(_misnamed(value))
    found = {}
    for name, said in value.items():
        try:
            found[name.lower()] = _param(name.lower(), said)
        except ValueError as error:
            wrong.append(f"{_shown(name)} {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def _misnamed(names: Mapping[str, object]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name in names:
        if not re.fullmatch(_NAME, name):
            yield f"{_shown(name)} is no name: it must be of A-Z a-z 0-9 _, and begin with no digit"
        elif (earlier := seen.setdefault(name.lower(), name)) != name:
            yield f"{_shown(earlier)} and {_shown(name)} differ in case alone, which does not count"
        elif name.lower() == TENANT:
            yield f"{_shown(name)} is not declared: every SQL is told the tenant of its call"


def _param(name: str, said: object) -> Param:
    if isinstance(said, str):
        said = {"type": said}
    if not isinstance(said, dict) or "type" not in said:
        raise ValueError('must be a type, or a table such as { type = "string", optional = true }')
    if unknown := [_shown(key) for key in said if key not in _KEYS]:
        raise ValueError(f"has no {', '.join(unknown)}; known here: {', '.join(_KEYS)}")
    type_, is_list = _type(said["type"])
    optional = said.get("optional", False)
    if not isinstance(optional, bool):
        raise ValueError("has an optional that is neither true nor false")  # noqa: TRY004 - as above
    if "default" not in said:
        return Param(name, type_, is_list, required=not optional)
    if "optional" in said:
        raise ValueError("has both default and optional; one that has a default is optional")
    try:
        default = parse_value(type_, _as_json(said["default"]), is_list=is_list)
    except ItemError as error:
        # As everywhere in a configuration, the first is 1.
        raise ValueError(
            f"has a default that does not fit: its item {error.index + 1} {error.reason}"
        ) from None
    except ValueError as error:
        raise ValueError(f"has a default that does not fit: it {error}") from None
    return Param(name, type_, is_list, required=False, default=default)


def _type(said: object) -> tuple[ParamType, bool]:
    text = said if isinstance(said, str) else ""
    if (type_ := _TYPES.get(text.removesuffix(_LIST))) is None:
        known = ", ".join(_TYPES)
        raise ValueError(f'must be one of {known}, or a list of them, such as "string{_LIST}"')
    return type_, text.endswith(_LIST)


def _as_json(value: object) -> object:
    """Return a value of TOML, which has dates and times, as a caller would send it."""
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value


def _written(params: Mapping[str, Param]) -> dict[str, object]:
    """Return the parameters as the file has them."""
    return {name: _said(param) for name, param in params.items()}


def _said(param: Param) -> object:
    type_ = param.type.value + (_LIST if param.is_list else "")
    if param.required:
        return type_
    if param.default is None:
        return {"type": type_, "optional": True}
    return {"type": type_, "default": _plain(param.default)}


def _plain(value: Any) -> object:  # noqa: ANN401 - any value of a parameter
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value if isinstance(value, (str, int, float)) else str(value)


def _shown(name: object) -> str:
    return json.dumps(name, ensure_ascii=False)


_TYPE_SCHEMA: Final = {
    "type": "string",
    "pattern": f"^({'|'.join(_TYPES)})({re.escape(_LIST)})?$",
}

Params: TypeAlias = Annotated[
    Mapping[str, Annotated[Param, Opaque()]],
    PlainValidator(_params),
    PlainSerializer(_written),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^{_NAME}$"},
            "additionalProperties": {
                "anyOf": [
                    _TYPE_SCHEMA,
                    {
                        "type": "object",
                        "required": ["type"],
                        "properties": {
                            "type": _TYPE_SCHEMA,
                            "default": {},
                            "optional": {"type": "boolean"},
                        },
                        "not": {"required": ["default", "optional"]},
                        "additionalProperties": False,
                    },
                ]
            },
        }
    ),
    Form("table of parameters", _written),
]
