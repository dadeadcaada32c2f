"""What a pool of connections to Aurora says of itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from duostore_server.domain.deadline import Deadline
from duostore_server.storage.aurora.pool import AuroraPool, PoolUsage
from tests.support.wait import eventually

LONG = 20.0


def test_a_pool_tells_its_connections_and_who_waits_for_one(postgres_dsn: str) -> None:
    def soon() -> Deadline:
        return Deadline.after(LONG)

    with (
        ThreadPoolExecutor(1) as callers,
        AuroraPool(postgres_dsn, min_size=0, max_size=2, wait=LONG, name="bench") as pool,
    ):
        assert pool.usage() == PoolUsage("bench", idle=0, used=0, waiting=0)
        first, second = pool.take(soon()), pool.take(soon())
        assert pool.usage() == PoolUsage("bench", idle=0, used=2, waiting=0)
        third = callers.submit(pool.take, soon())
        eventually(lambda: pool.usage().waiting == 1, within=LONG, what="a call waits")
        pool.give_back(first)
        pool.give_back(third.result(LONG))
        assert pool.usage() == PoolUsage("bench", idle=1, used=1, waiting=0)
        pool.give_back(second)
        assert pool.usage() == PoolUsage("bench", idle=2, used=0, waiting=0)
