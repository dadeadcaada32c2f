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
        "How many units a subject may use in a window; of a token bucket, at once, and at most "
        "10^9 for each second of `window`. `0` blocks every subject that has no limit of its own. "
        "Required.",
        0,
        MAX_LIMIT,
    )
    window: Duration = duration(
        ...,
        "How long a window is; a sliding window has at least 10ms for each of its `sub_windows`. A "
        "token bucket that is empty is full again after as long. Required.",
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
        "The parts in which a sliding window moves, none shorter than 10ms; with more of them "
        "units are available again sooner, and the counter is larger. Needs algorithm = "
        f'"sliding_window"; if not set, `{_SUB_WINDOWS}`.',
    )
    lease: Annotated[int, Ge(0), Le(MAX_LIMIT)] | None = setting(
        None,
        "The most units that a process debits ahead, to admit from them by itself: those that "
        "are in its hands when it dies stay used. At most `limit`, unless that is `0`. `0`: a "
        "write to DynamoDB for each call that is allowed. If not set, a twentieth of the "
        "subject's limit, rounded down.",
    )
    lease_time: Duration = duration(
        "1s",
        "How long a process may keep such a slice: never beyond the window, and if this is longer "
        "than a twentieth of it, for a twentieth. What is left is given back.",
        "50ms",
        "10s",
    )
    reservation_ttl: Duration = duration(
        "1m",
        "How long after MODE_RESERVE a reservation can be settled. It may be longer than the "
        "window, but what is given back once the window is over that it was made in changes "
        "nothing; of a token bucket all that is given back counts.",
        "1s",
        "30d",
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
        "`#` begins with the tenant, be it empty. `0` blocks the subject; with a token bucket "
        "each is bounded as `limit` is. What `duostore limit set` says goes before all of them.",
    )

    @property
    def parts(self) -> int:
        """Return the sub-windows of the sliding window."""
        return self.sub_windows or _SUB_WINDOWS
