"""The limits of single subjects, as a table of a quota has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from duostore_server.config.values import Form
from duostore_server.domain.limits import MAX_LIMIT, LimitKey, limit_key_violations

if TYPE_CHECKING:
    from collections.abc import Iterator

# A quota's name that is good: here only subjects are looked at.
_ANY_QUOTA: Final = "-"


def _limits(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
            "must be a table of subjects and their limits, such as "
            '{ alice = 500, "acme#bob" = 2000 }'
        )
    if wrong := list(_problems(value)):
        raise ValueError("; ".join(wrong))
    return dict(value)


def _problems(limits: Mapping[str, object]) -> Iterator[str]:
    for name, limit in limits.items():
        shown = json.dumps(name, ensure_ascii=False)
        for violation in limit_key_violations(_ANY_QUOTA, LimitKey.parse(name)):
            yield f"lists {shown}, whose {violation.field} {violation.description}"
        if type(limit) is not int or not 0 <= limit <= MAX_LIMIT:
            yield f"the limit of {shown} must be a whole number, 0 to {MAX_LIMIT}"


SubjectLimits: TypeAlias = Annotated[
    Mapping[str, int],
    PlainValidator(_limits),
    PlainSerializer(dict),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 0, "maximum": MAX_LIMIT},
            "propertyNames": {"minLength": 1},
        }
    ),
    Form(f"table of whole numbers, 0 to {MAX_LIMIT}", dict),
]
