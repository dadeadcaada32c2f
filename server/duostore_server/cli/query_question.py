"""What a named query is asked, as the command line tells it. Imports no grpc."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from duostore_server.domain.documents import MAX_WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duostore_server.domain.documents import JsonObject

_PARAM: Final = re.compile(r"(?P<name>[^=]+?)(?P<sign>:?=)(?P<value>.*)", re.DOTALL)


class BadParamError(Exception):
    """A parameter cannot be sent; the text says which, and why."""


@dataclass(frozen=True, slots=True)
class Question:
    """The query of a tenant with these parameters, JSON values by name."""

    tenant: str
    query: str
    params: JsonObject


def params_of(pairs: Iterable[str], whole: str | None) -> JsonObject:
    """Return the parameters that are given as ``name=value``, ``name:=json`` or one JSON object.

    A value is JSON if it is a number, true, false, null or a list, else it is a string as it
    stands. A number that a double would round comes as a string, which the service takes for
    what is no double there either. Raises ``BadParamError``.
    """
    params = {} if whole is None else _object_of(whole)
    for pair in pairs:
        found = _PARAM.fullmatch(pair)
        if found is None:
            raise BadParamError(f"{pair!r} is neither name=value nor name:=json")
        name, value = found["name"], found["value"]
        if name in params:
            raise BadParamError(f"{name!r} is given twice")
        params[name] = _json_of(name, value) if found["sign"] == ":=" else _guessed(name, value)
    for name, value in params.items():
        _check(name, value)
    return params


def _object_of(text: str) -> JsonObject:
    try:
        params = _parsed(text)
    except ValueError as error:
        raise BadParamError(f"--params-json is not JSON: {error}") from error
    if not isinstance(params, dict):
        raise BadParamError("--params-json is not a JSON object")
    return params


def _json_of(name: str, text: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return _parsed(text)
    except ValueError as error:
        raise BadParamError(f"{name!r} is not JSON: {error}; name=value sends a string") from error


def _guessed(name: str, text: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        value = _parsed(text)
    except BadParamError as error:
        raise BadParamError(f"{name!r}: {error}") from error
    except ValueError:
        return text
    return text if isinstance(value, str | dict) else value


def _parsed(text: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(
            text,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_no_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise BadParamError("nests too deep") from None


def _whole(text: str) -> int | str:
    # Python refuses to read thousands of digits at all.
    if len(text) <= len(str(-MAX_WHOLE)) and abs(value := int(text)) <= MAX_WHOLE:
        return value
    return text


def _real(text: str) -> float | str:
    value = float(text)
    if not math.isfinite(value):
        return text
    # As it is written at its shortest, or by those who know no shortest form ("%.17g").
    written = Decimal(text)
    return value if written in {Decimal(repr(value)), Decimal(f"{value:.16e}")} else text


def _no_constant(text: str) -> Any:  # noqa: ANN401 - never returns
    raise ValueError(f"{text} is no JSON value")


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadParamError("an object has a name twice")
    return found


def _check(name: str, value: object) -> None:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, list | dict):
            raise BadParamError(f"{name!r} holds {item!r:.40}; it may be a value or a list of them")
    try:
        json.dumps([name, value], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        problem = "holds one half of a surrogate pair, which is no character"
        raise BadParamError(f"{name!r} {problem}") from None
