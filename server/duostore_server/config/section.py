"""What the tables of the configuration are made of."""

from __future__ import annotations

from typing import Any

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field

from duostore_server.config.values import parse_duration, parse_size


class Section(BaseModel):
    """A table of the configuration. Unknown keys are refused, and so is any later change."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,
    )


def setting(
    default: object,
    meaning: str,
    low: int | None = None,
    high: int | None = None,
    alias: str | None = None,
) -> Any:  # noqa: ANN401 - as pydantic.Field, whose place it takes
    """Return a key; ``default`` is ``...`` if it has none, bounds are inclusive."""
    return Field(default=default, description=meaning, ge=low, le=high, alias=alias)


def duration(default: object, meaning: str, low: str, high: str) -> Any:  # noqa: ANN401 - as setting
    """Return a key that is a duration."""
    return Field(
        default=default, description=meaning, ge=parse_duration(low), le=parse_duration(high)
    )


def between(low: str, high: str) -> tuple[Ge, Le]:
    """Return the bounds of a duration that need not be set, for its annotation."""
    return Ge(parse_duration(low)), Le(parse_duration(high))


def size(default: str | int, meaning: str, low: str | int, high: str | int) -> Any:  # noqa: ANN401 - as setting
    """Return a key that is a size."""
    return Field(default=default, description=meaning, ge=parse_size(low), le=parse_size(high))
