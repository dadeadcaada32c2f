"""The definition of a quota."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from annotated_types import Ge, Le
from pydantic import Field

from duostore_server.config.section import Section, duration, setting
from duostore_server.config.subject_limits import SubjectLimits
from duostore_server.config.values import Duration
from duostore_server.domain.limits import MAX_LIMIT

_SUB_WINDOWS: Final = 60


class Quota(Section):
    """``[quotas.NAME]``."""

    limit: int = setting(
        ...,
        "How many units a subject may use in a window; of a token bucket, at once. Required.",
        1,
        MAX_LIMIT,
    )
    window: Duration = duration(
        ...,
        "How long a window is. A token bucket that is empty is full again after as long. Required.",
        "1s",
        "31d",
    )
    algorithm: Literal["fixed_window", "sliding_window", "token_bucket"] = setting(
        "fixed_window",
        "How units are counted. `fixed_window`: in windows that begin at multiples of their "
        "length since 1970, so that up to twice the limit can be used around the turn of one. "
        "`sliding_window`: no window, wherever it begins, has more than the limit. "
        "`token_bucket`: the limit at once, and as many again in each window, evenly.",
    )
    sub_windows: Annotated[int, Ge(2), Le(1000)] | None = setting(
        None,
        "The parts in which a sliding window moves; with more of them units are available again "
        'sooner, and the counter is larger. Needs algorithm = "sliding_window"; if not set, '
        f"`{_SUB_WINDOWS}`.",
    )
    lease: Annotated[int, Ge(0), Le(MAX_LIMIT)] | None = setting(
        None,
        "The most units that a process debits ahead, to admit from them by itself: those that "
        "are in its hands when it dies stay used. `0`: a write to DynamoDB for each call that is "
        "allowed. If not set, a twentieth of the subject's limit.",
    )
    lease_time: Duration = duration(
        "1s",
        "How long a process may keep such a slice, within a window and for a twentieth of it at "
        "most. What is left is given back.",
        "50ms",
        "10s",
    )
    reservation_ttl: Duration = duration(
        "1m", "How long after MODE_RESERVE a reservation can be settled.", "1s", "30d"
    )
    expired_reservations: Literal["used", "released"] = setting(
        "used",
        "What becomes of the units of a reservation that was not settled in time: they were "
        "used, or they are available again.",
    )
    on_outage: Literal["deny", "allow"] = setting(
        "deny",
        "What to answer while DynamoDB cannot be reached: UNAVAILABLE (`deny`), or that all is "
        "allowed and nothing was checked (`allow`).",
    )
    overrides: SubjectLimits = Field(
        default_factory=dict,
        description="Other limits for single subjects, by `subject`, in every tenant, or by "
        '`tenant#subject`, which goes first: `{ alice = 500, "acme#bob" = 2000 }`. A name with a '
        "`#` begins with the tenant, be it empty. What `duostore limit set` says goes before "
        "all of them.",
    )

    @property
    def parts(self) -> int:
        """Return the sub-windows of the sliding window."""
        return self.sub_windows or _SUB_WINDOWS
