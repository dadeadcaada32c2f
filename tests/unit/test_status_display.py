from __future__ import annotations

import pytest

from duostore_server.cli.status_display import nines


@pytest.mark.parametrize(
    ("verified", "inconsistent", "told"),
    [
        (1000, 1, "3.0"),
        (36_000, 2, "4.2"),
        (1000, 2, "2.6"),
        (1000, 1000, "0.0"),
        (1000, 0, "≥ 3.0"),
        (999, 0, "≥ 2.9"),
        (10, 0, "≥ 1.0"),
        (9, 0, "-"),
        (0, 0, "-"),
    ],
)
def test_nines_are_never_more_than_was_seen(verified: int, inconsistent: int, told: str) -> None:
    assert nines(verified, inconsistent) == told
