from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from duostore_server.domain.admin_ports import HeldItem, ItemPage
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Form, Peeked, Projection
from duostore_server.domain.errors import Store, StoreTimeoutError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.memory import MemoryCache
from duostore_server.telemetry.metrics import Metrics
from duostore_server.telemetry.observed_cache import ObservedCache
from duostore_server.telemetry.observed_items import ObservedProjectionItems

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

KEY = EntityKey("", "proposal", "1")
SOON = Deadline.after(3600)
GONE = Projection(1, Form.TOMBSTONE)
HELD = HeldItem(KEY, GONE, "", 40, {"pk": {"S": str(KEY)}})
ENTRY = Cached(1, b"payload", datetime(2026, 1, 1, tzinfo=UTC))


class Items:
    """Holds one item, or none, or is out of reach."""

    def __init__(self) -> None:
        self.held: Sequence[HeldItem] = (HELD,)
        self.error: Exception | None = None
        self.asked: list[tuple[object, ...]] = []

    def inspect(
        self, keys: Collection[EntityKey], deadline: Deadline
    ) -> Mapping[EntityKey, HeldItem]:
        self.asked.append((keys, deadline))
        if self.error is not None:
            raise self.error
        return {item.key: item for item in self.held}

    def replace(self, found: HeldItem, by: Projection | None, deadline: Deadline) -> bool:
        self.asked.append((found, by, deadline))
        return found in self.held

    def fits(self, key: EntityKey, projection: Projection) -> bool:
        return (key, projection) == (KEY, GONE)

    def page(self, start: str | None, limit: int, deadline: Deadline) -> ItemPage:
        self.asked.append((start, limit, deadline))
        return ItemPage(self.held, None)

    def sample(self, limit: int, deadline: Deadline) -> Sequence[HeldItem]:
        self.asked.append((limit, deadline))
        return self.held


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def calls(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    """Return how many calls of each store ended how."""
    return {
        (labels["store"], labels["op"], labels["outcome"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "duostore_store_calls_total" and sample.value
        for labels in [sample.labels]
    }


def test_items_are_passed_on_and_counted(registry: CollectorRegistry) -> None:
    items = Items()
    observed = ObservedProjectionItems(items, Metrics(registry))
    assert observed.inspect([KEY], SOON) == {KEY: HELD}
    assert observed.replace(HELD, GONE, SOON)
    assert observed.fits(KEY, GONE)
    assert observed.page("start", 10, SOON) == ItemPage((HELD,), None)
    assert observed.sample(5, SOON) == (HELD,)
    assert items.asked == [([KEY], SOON), (HELD, GONE, SOON), ("start", 10, SOON), (5, SOON)]
    items.held = ()
    assert observed.inspect([KEY], SOON) == {}
    assert not observed.replace(HELD, None, SOON)
    assert observed.sample(5, SOON) == ()
    items.error = StoreTimeoutError(Store.DYNAMODB)
    with pytest.raises(StoreTimeoutError):
        observed.inspect([KEY], SOON)
    assert calls(registry) == {
        ("dynamodb", "inspect", "ok"): 1,
        ("dynamodb", "inspect", "miss"): 1,
        ("dynamodb", "inspect", "timeout"): 1,
        ("dynamodb", "replace", "ok"): 1,
        ("dynamodb", "replace", "conflict"): 1,
        ("dynamodb", "page_items", "ok"): 1,
        ("dynamodb", "sample_items", "ok"): 1,
        ("dynamodb", "sample_items", "miss"): 1,
    }


def test_a_look_into_the_cache_is_no_read(registry: CollectorRegistry) -> None:
    cache = MemoryCache()
    cache.fill(KEY, cache.lease([KEY])[KEY], ENTRY, 60)
    observed = ObservedCache(cache, Metrics(registry))
    found = observed.peek([KEY])
    assert found == {KEY: Peeked(ENTRY, found[KEY].stored_bytes)}
    cache.invalidate([KEY])
    assert observed.peek([KEY]) == {}
    assert calls(registry) == {("cache", "peek", "ok"): 1, ("cache", "peek", "miss"): 1}
