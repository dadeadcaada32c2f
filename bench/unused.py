"""What leases leave unused: the share of a limit that is not admitted though it is asked for."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.figures import BenchError, Spread
from bench.quotas import counter_writes
from duostore.v1 import data_access_pb2, data_access_pb2_grpc
from duostore_server.domain.quotas import AlgorithmName
from tests.support.service import CALL_SECONDS

if TYPE_CHECKING:
    from bench.deployment import Deployment
    from tests.support.service import Service

_LIMIT: Final = 900
# A sub-window of sixty is a tenth of a second then.
_WINDOW_SECONDS: Final = 6
# So much more is asked for than the limit, evenly over the window.
_DEMAND: Final = 1.2
_WORKERS: Final = 2
_CALLERS: Final = 32
# In the first window callers find their pace, and what slides is used for the first time.
_WARM_UP_WINDOWS: Final = 1
_WINDOWS: Final = 3

_TABLE: Final = """
[quotas.{name}]
limit = {limit}
window = "{window}s"
algorithm = "{name}"
"""


@dataclass(frozen=True, slots=True)
class Unused:
    """Of the windows of a quota with leases: the share of its limit that was not admitted.

    ``denied`` is the share of the calls that were, and ``writes`` are those to DynamoDB for
    each unit that was admitted.
    """

    algorithm: str
    share: Spread
    denied: float
    writes: float


def unused(deployment: Deployment) -> list[Unused]:
    """Return what two workers leave of the limit of each algorithm."""
    names = [algorithm.value for algorithm in AlgorithmName]
    tables = [_TABLE.format(name=name, limit=_LIMIT, window=_WINDOW_SECONDS) for name in names]
    with ExitStack() as stack:
        service = stack.enter_context(
            deployment.another_service(workers=_WORKERS, tables="".join(tables))
        )
        stubs = [
            data_access_pb2_grpc.DataAccessStub(stack.enter_context(service.channel()))
            for _ in range(_CALLERS)
        ]
        return [_of(service, stubs, name) for name in names]


def _of(service: Service, stubs: list[data_access_pb2_grpc.DataAccessStub], name: str) -> Unused:
    request = data_access_pb2.QuotaRequest(quota=name, subject="hot")
    pause = _CALLERS * _WINDOW_SECONDS / (_LIMIT * _DEMAND)
    begins = time.time() // _WINDOW_SECONDS * _WINDOW_SECONDS + _WINDOW_SECONDS
    ends = begins + (_WARM_UP_WINDOWS + _WINDOWS) * _WINDOW_SECONDS

    def call(number: int) -> tuple[Counter[int], Counter[int]]:
        """Call at an even pace; return how many units were allowed, and asked for, by window."""
        allowed: Counter[int] = Counter()
        asked: Counter[int] = Counter()
        due = begins + number * pause / _CALLERS
        while due < ends:
            time.sleep(max(0.0, due - time.time()))
            answer = stubs[number].Quota(request, timeout=CALL_SECONDS)
            window = int((time.time() - begins) // _WINDOW_SECONDS)
            allowed[window] += answer.allowed
            asked[window] += 1
            due += pause
        return allowed, asked

    if name == AlgorithmName.TOKEN_BUCKET.value:
        # It begins full, and would take long to be empty.
        time.sleep(max(0.0, begins - time.time()))
        full = data_access_pb2.QuotaRequest(quota=name, subject="hot", cost=_LIMIT)
        if not stubs[0].Quota(full, timeout=CALL_SECONDS).allowed:
            raise BenchError("a full bucket did not give all that it holds")
    before = counter_writes(service)
    with ThreadPoolExecutor(_CALLERS) as pool:
        counted = list(pool.map(call, range(_CALLERS)))
    writes = counter_writes(service) - before
    allowed = sum((one for one, _ in counted), Counter[int]())
    asked = sum((one for _, one in counted), Counter[int]())
    measured = range(_WARM_UP_WINDOWS, _WARM_UP_WINDOWS + _WINDOWS)
    if any(asked[window] < _LIMIT for window in measured):
        raise BenchError("the machine is too slow to ask for more than the limit")
    return Unused(
        algorithm=name,
        share=Spread.of([1 - allowed[window] / _LIMIT for window in measured]),
        denied=1 - allowed.total() / asked.total(),
        writes=writes / allowed.total(),
    )
