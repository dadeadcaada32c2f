"""Why something failed, in words for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_CAUSE: Final = 500


def cause_of(error: BaseException) -> str:
    """Return why, in the words of the driver: for the log, never for a caller."""
    notes: list[str] = []
    told: list[str] = []
    for found in chain_of(error):
        notes += getattr(found, "__notes__", ())
        # What we say of a store ourselves is the same whatever the cause.
        if found is not error or error.__cause__ is None:
            told.append(f"{type(found).__name__}: {' '.join(str(found).split())}")
    return "; ".join([*notes, *told])[:_MAX_CAUSE]


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__
