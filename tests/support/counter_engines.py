"""The engines of the counters, and words for the suites that run over them."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from duostore_server.domain.counters import Begin, Counter, Grant, HoldName, Lease, Raise, Step
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.quotas import CounterKey
from duostore_server.storage.dynamodb.counter_items import counter_pk, grant_pk
from duostore_server.storage.dynamodb.counters import direct_counters, open_counters
from duostore_server.storage.dynamodb.tables import counter_table, create_tables
from tests.support.dynamodb_engines import never

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore_server.domain.counters import GrantStepped, Settlement, Stepped
    from duostore_server.domain.ports import Counters

KEY = CounterKey("acme", "api_calls", "user#7")
# DynamoDB Local sweeps what is past its time within seconds.
NOW = datetime.now(UTC)
NOW_NS = int(NOW.timestamp()) * 1_000_000_000
HOUR = 3600 * 1_000_000_000
SLOT = 28_000_000
WORKER = "worker_1"
LEASE = Lease(10, NOW_NS, "nonce_1")
HOLD = HoldName(SLOT, NOW_NS + HOUR)


def soon() -> Deadline:
    return Deadline.after(60)


def begun(level: int = 5, slot: int = SLOT, **parts: Any) -> Step:
    """Return the step that begins a counter."""
    return Step(Begin(slot, level), **parts)


def raised(amount: int = 1, most: int = 100, slot: int = SLOT, **parts: Any) -> Step:
    """Return a step that raises a level."""
    return Step(Raise(slot, amount, most), **parts)


def grant(id_: str = "g-1", **parts: Any) -> Grant:
    """Return a reservation of 2 units, of an amount of 2, that was not settled."""
    reserved = Grant(
        counter=KEY,
        id=id_,
        nonce=f"nonce of {id_}",
        request_hash=b"\0hash",
        cost=2,
        slot=SLOT,
        amount=2,
        forget_time=NOW_NS + 24 * HOUR,
        hold=HOLD,
        expire_time=HOLD.until,
    )
    return replace(reserved, **parts)


@dataclass
class Engine:
    """Counters, and what is below them."""

    client: DynamoDBClient
    prefix: str
    unreadable: list[str] = field(default_factory=list)
    counters: Counters = field(init=False)

    @property
    def table(self) -> str:
        return counter_table(self.prefix)

    def apply(self, step: Step, key: CounterKey = KEY) -> Stepped:
        return self.counters.apply(key, step, soon())

    def done(self, step: Step, key: CounterKey = KEY) -> Counter:
        stepped = self.apply(step, key)
        assert stepped.done
        assert stepped.counter is not None
        return stepped.counter

    def record(
        self, grant: Grant, step: Step, now: int = NOW_NS, instead: Grant | None = None
    ) -> GrantStepped:
        return self.counters.record(grant, step, now, soon(), instead)

    def settle(self, grant: Grant, settlement: Settlement, step: Step | None) -> GrantStepped:
        return self.counters.settle(grant, settlement, step, soon())

    def find(self, id_: str = "g-1", tenant: str = KEY.tenant) -> Grant | None:
        return self.counters.find(tenant, id_, soon())

    def read(self, key: CounterKey = KEY) -> Counter | None:
        return self.counters.read((key,), soon()).get(key)

    def item(self, pk: str = counter_pk(KEY)) -> dict[str, Any]:
        return dict(
            self.client.get_item(TableName=self.table, Key={"pk": {"S": pk}}, ConsistentRead=True)[
                "Item"
            ]
        )

    def grant_item(self, id_: str = "g-1") -> dict[str, Any]:
        return self.item(grant_pk(KEY.tenant, id_))

    def damage(self, item: dict[str, Any], **attributes: Any) -> None:
        """Put an item with other attributes, and without those that are None."""
        damaged = {name: it for name, it in {**item, **attributes}.items() if it is not None}
        self.client.put_item(TableName=self.table, Item=damaged)


@contextmanager
def threaded(client: DynamoDBClient, prefix: str, *, timeout: float = 30) -> Iterator[Engine]:
    """Run counters with threads of their own."""
    create_tables(client, prefix=prefix, pause=time.sleep)
    engine = Engine(client, prefix)
    with open_counters(
        client,
        prefix=prefix,
        unreadable=engine.unreadable.append,
        timeout=timeout,
    ) as engine.counters:
        yield engine


def direct(
    client: DynamoDBClient, prefix: str = "", *, pause: Callable[[float], object] = never
) -> Engine:
    """Return counters that call from their caller's thread."""
    create_tables(client, prefix=prefix, pause=never)
    engine = Engine(client, prefix)
    engine.counters = direct_counters(
        client,
        prefix=prefix,
        unreadable=engine.unreadable.append,
        pause=pause,
        clock=time.monotonic,
        timeout=30,
    )
    return engine
