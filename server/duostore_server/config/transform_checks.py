"""What must hold between the projection version of a kind, its transforms and its home."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore_server.config.entries import dotted
from duostore_server.config.finding import Finding
from duostore_server.domain.entities import AS_SAVED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duostore_server.config.settings import Settings


def transform_findings(settings: Settings) -> Iterator[Finding]:
    """Yield what kinds say of projection versions that does not fit."""
    for name, kind in settings.kinds.items():
        at = ("kinds", name)
        version, transforms, home = (*at, "projection_version"), (*at, "transforms"), (*at, "home")
        newest = kind.projection_version
        if kind.home != "aurora":
            for key, said in ((version, newest != AS_SAVED), (transforms, bool(kind.transforms))):
                if said:
                    text = f'needs {dotted(home)} = "aurora": DynamoDB holds no projection of it'
                    yield Finding((key, home), text)
            continue
        read = [number for number in (newest - 1, newest) if number > AS_SAVED]
        if missing := [str(number) for number in read if number not in kind.transforms]:
            yield Finding(
                (transforms, version),
                f"needs one for {' and '.join(missing)}: {dotted(version)} is {newest}, and "
                f"readers get {newest - 1} or {newest}",
            )
        if later := [str(number) for number in kind.transforms if number > newest]:
            yield Finding(
                (transforms, version),
                f"has one for {' and '.join(later)}, and {dotted(version)} is {newest}",
            )
