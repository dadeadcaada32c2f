"""Hands what one process evaluated to the others of its machine: a file beside their metrics."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from duostore_server.domain.errors import Store
from duostore_server.domain.status import Consistency, Figures, SloStanding, StoreCalls

_NAME: Final = "figures.json"


def write_figures(folder: str, figures: Figures) -> None:
    """Put the figures in the place of those before; whoever reads sees the one or the other."""
    file = Path(folder, _NAME)
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(figures), default=_plain), encoding="utf-8")
    fresh.replace(file)


def read_figures(folder: str) -> Figures:
    """Return what was written last, or no figures if nothing was yet."""
    try:
        text = Path(folder, _NAME).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Figures()
    found = json.loads(text)
    return Figures(
        stores=tuple(
            StoreCalls(**{**each, "store": Store(each["store"])}) for each in found["stores"]
        ),
        slos=tuple(SloStanding(**each) for each in found["slos"]),
        consistency=tuple(
            Consistency(**{**each, "age": timedelta(seconds=each["age"])})
            for each in found["consistency"]
        ),
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - what json cannot write
    return value.total_seconds() if isinstance(value, timedelta) else value.value
