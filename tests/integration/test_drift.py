"""Drift of every kind, planted by hand in the real stores: found, named, mended and gone."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.access.examining import Examining
from duostore_server.access.judging import Judge
from duostore_server.domain.drift import Drift
from duostore_server.domain.entities import Form, Projection
from tests.support.drift_stack import Driven, driven, key, soon
from tests.support.tier_stack import READ, WRITE
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duostore_server.domain.deadline import Deadline
    from duostore_server.domain.drift import Difference, Finding
    from duostore_server.domain.entities import Entity
    from duostore_server.domain.keys import EntityKey
    from tests.support.servers import DynamoDBLocal, MemcachedServer


@pytest.fixture
def stores(
    postgres_dsn: str, dynamodb: DynamoDBLocal, memcached: MemcachedServer, table_prefix: str
) -> Iterator[Driven]:
    with driven(postgres_dsn, dynamodb, memcached, table_prefix) as stores:
        yield stores


def changed(entity: Entity, **data: Any) -> bytes:
    """Return the payload of a version with these fields instead; None takes one away."""
    fields = {**(entity.data or {}), **data}
    kept = {name: value for name, value in fields.items() if value is not None}
    return codec.encode(replace(entity, data=kept))


def value(version: int, payload: bytes) -> Projection:
    return Projection(version, Form.VALUE, payload)


def older(stores: Driven, at: EntityKey) -> None:
    stores.save(at)
    stores.save(at, done=False)
    stores.forget_outbox()


def newer(stores: Driven, at: EntityKey) -> None:
    entity = stores.save(at)
    stores.put_item(at, value(9, codec.encode(replace(entity, version=9))))


def missing(stores: Driven, at: EntityKey) -> None:
    stores.save(at)
    stores.delete_item(at)


def missing_tombstone(stores: Driven, at: EntityKey) -> None:
    stores.save(at)
    stores.save(at, deleted=True)
    stores.delete_item(at)


def missing_field(stores: Driven, at: EntityKey) -> None:
    stores.put_item(at, value(1, changed(stores.save(at), a=None)))


def extra_field(stores: Driven, at: EntityKey) -> None:
    stores.put_item(at, value(1, changed(stores.save(at), x=1)))


def other_type(stores: Driven, at: EntityKey) -> None:
    stores.put_item(at, value(1, changed(stores.save(at), b={"c": 7})))


def other_value(stores: Driven, at: EntityKey) -> None:
    stores.put_item(at, value(1, changed(stores.save(at), a=2)))


def torn_payload(stores: Driven, at: EntityKey) -> None:
    payload = codec.encode(stores.save(at))
    stores.put_item(at, value(1, payload[: len(payload) // 2]))


def corrupt_compression(stores: Driven, at: EntityKey) -> None:
    payload = codec.encode(stores.save(at))
    stores.put_item(at, value(1, payload), encoding={"S": "zstd"})


def unknown_form(stores: Driven, at: EntityKey) -> None:
    payload = codec.encode(stores.save(at))
    stores.put_item(at, value(7, payload), form={"S": "essay"})


def version_of_text(stores: Driven, at: EntityKey) -> None:
    payload = codec.encode(stores.save(at))
    stores.put_item(at, value(1, payload), version={"S": "one"})


def undeleted(stores: Driven, at: EntityKey) -> None:
    entity = stores.save(at)
    stores.save(at, deleted=True)
    stores.put_item(at, value(2, codec.encode(replace(entity, version=2))))


def orphan(stores: Driven, at: EntityKey) -> None:
    entity = stores.save(at)
    stores.sql("DELETE FROM duostore.entity WHERE id = %s", at.id)
    stores.put_item(at, value(3, codec.encode(replace(entity, version=3))))


def cached_content(stores: Driven, at: EntityKey) -> None:
    stores.set_entry(at, 1, changed(stores.save(at), x=1))


def cached_content_of_another(stores: Driven, at: EntityKey) -> None:
    entity = stores.save(at)
    stores.set_entry(at, 1, codec.encode(replace(entity, key=key("another"))))


def cached_absence(stores: Driven, at: EntityKey) -> None:
    stores.save(at)
    stores.set_entry(at, 1, None)


def cached_older(stores: Driven, at: EntityKey) -> None:
    entity = stores.save(at)
    stores.save(at)
    stores.set_entry(at, 1, codec.encode(entity))


def cached_absent(stores: Driven, at: EntityKey) -> None:
    stores.save(at)
    stores.set_entry(at, 0, None)


def cached_newer(stores: Driven, at: EntityKey) -> None:
    entity = stores.save(at)
    stores.set_entry(at, 9, codec.encode(replace(entity, version=9)))


def cached_garbage(stores: Driven, at: EntityKey) -> None:
    stores.save(at)
    stores.set_bytes(at, b"garbage")


def wrong_in_a_later_shape(stores: Driven, at: EntityKey) -> None:
    entity = stores.save(at)
    payload = codec.encode(entity)
    stores.put_item(at, Projection(1, Form.VALUE, payload, ((2, payload),)))


PLANTED: dict[Callable[[Driven, EntityKey], None], tuple[Drift, list[str]]] = {
    older: (Drift.PROJECTION_OLDER, []),
    newer: (Drift.PROJECTION_NEWER, []),
    missing: (Drift.PROJECTION_MISSING, []),
    missing_tombstone: (Drift.PROJECTION_MISSING, []),
    missing_field: (Drift.PROJECTION_CONTENT, ["a missing"]),
    extra_field: (Drift.PROJECTION_CONTENT, ["x extra"]),
    other_type: (Drift.PROJECTION_CONTENT, ["b.c type"]),
    other_value: (Drift.PROJECTION_CONTENT, ["a value"]),
    torn_payload: (Drift.PROJECTION_CONTENT, ["@document type"]),
    corrupt_compression: (Drift.PROJECTION_UNREADABLE, []),
    unknown_form: (Drift.PROJECTION_UNREADABLE, []),
    version_of_text: (Drift.PROJECTION_UNREADABLE, []),
    undeleted: (Drift.PROJECTION_CONTENT, ["@document extra"]),
    orphan: (Drift.PROJECTION_ORPHAN, []),
    cached_content: (Drift.CACHE_CONTENT, ["x extra"]),
    cached_content_of_another: (Drift.CACHE_CONTENT, ["@key value"]),
    cached_absence: (Drift.CACHE_CONTENT, ["@document missing"]),
    cached_older: (Drift.CACHE_OLDER, []),
    cached_absent: (Drift.CACHE_OLDER, []),
    cached_newer: (Drift.CACHE_NEWER, []),
    cached_garbage: (Drift.CACHE_UNREADABLE, []),
    wrong_in_a_later_shape: (
        Drift.PROJECTION_CONTENT,
        ["A missing", "B missing", "a extra", "b extra"],
    ),
}
# What only those find who look at content.
CONTENT = {Drift.PROJECTION_CONTENT, Drift.CACHE_CONTENT}


def plant_all(stores: Driven) -> dict[tuple[str, str], list[str]]:
    """Plant each drift in an entity of its own, among others; return what has to be found."""
    for number in range(20):
        entity = stores.save(key(f"right {number}"))
        if number % 2:
            stores.set_entry(entity.key, 1, codec.encode(entity))
    for plant in PLANTED:
        plant(stores, key(plant.__name__))
    return {(plant.__name__, drift.value): paths for plant, (drift, paths) in PLANTED.items()}


def paths_of(finding: Finding) -> list[str]:
    return [f"{each.path} {each.departure.value}" for each in finding.differences]


def test_every_kind_of_drift_is_planted() -> None:
    planted = {drift for drift, _ in PLANTED.values()}
    assert planted == {*Drift} - {Drift.PROJECTION_VERSION_MISSING}


def test_each_drift_is_found_and_named_mended_and_gone(stores: Driven) -> None:
    planted = plant_all(stores)
    found = stores.found()
    assert {name: paths_of(each.finding) for name, each in found.items()} == planted
    assert not any(each.repaired for each in found.values())
    # Looking has changed nothing.
    mended = stores.found(repair=True)
    assert mended.keys() == planted.keys()
    assert {each.repair_error for each in mended.values()} == {""}
    assert all(each.repaired for each in mended.values())
    progress = stores.check()
    assert (progress[-1].drift_count, progress[-1].undecided_count) == (0, 0)
    assert stores.waiting() == 0


def test_a_sample_of_all_finds_what_a_walk_finds(stores: Driven) -> None:
    planted = plant_all(stores)
    assert stores.found(sample=1000).keys() == planted.keys()


def test_what_is_mended_is_read_from_dynamodb_again(stores: Driven) -> None:
    plant_all(stores)
    stores.check(repair=True)
    keys = [key(plant.__name__) for plant in PLANTED if plant is not orphan]
    rows = stores.authority.read(keys, soon())
    held = stores.dynamodb.projections.read(keys, soon())
    assert {at: held[at] for at in keys} == {at: stores.shapes.project(rows[at]) for at in keys}
    assert stores.dynamodb.read(key("orphan")) is None


def test_a_projection_version_that_is_to_be_written_is_found_missing(stores: Driven) -> None:
    entity = stores.save(key("1"))
    stores.save(key("gone"))
    stores.save(key("gone"), deleted=True)
    stores.flags[WRITE] = "both"
    name = ("1", Drift.PROJECTION_VERSION_MISSING.value)
    assert stores.found().keys() == {name}
    assert stores.found(repair=True)[name].repaired
    assert stores.found() == {}
    held = stores.dynamodb.read(key("1"))
    assert held is not None
    assert held.in_shape(2) == stores.shapes.payload(entity, 2)


def test_a_shape_that_an_older_release_left_behind_is_missing(stores: Driven) -> None:
    stores.flags[WRITE] = "both"
    stores.save(key("1"))
    entity = stores.save(key("1"), done=False)
    stores.forget_outbox()
    stores.dynamodb.raise_version(2, codec.encode(entity), key("1"))
    name = ("1", Drift.PROJECTION_VERSION_MISSING.value)
    assert stores.found(repair=True)[name].repaired
    assert stores.found() == {}


def test_a_cached_entry_is_held_against_its_own_shape(stores: Driven) -> None:
    stores.flags |= {WRITE: "both", READ: 100}
    for id_, shape, of in (("right", 2, 2), ("old", 1, 1), ("wrong", 2, 1)):
        entity = stores.save(key(id_))
        stores.set_entry(key(id_), 1, stores.shapes.payload(entity, of), shape)
    assert stores.found().keys() == {("wrong", Drift.CACHE_CONTENT.value)}


def test_a_change_that_is_on_its_way_is_not_drift(stores: Driven) -> None:
    stores.save(key("1"))
    stores.save(key("1"), done=False)
    progress = stores.check()
    assert (progress[-1].drift_count, progress[-1].undecided_count) == (0, 1)
    # The projector does not come.
    stores.sql("UPDATE duostore.outbox SET create_time = create_time - interval '11 seconds'")
    assert stores.found().keys() == {("1", Drift.PROJECTION_OLDER.value)}


def test_a_key_that_is_saved_all_the_time_is_not_drift_while_its_row_changes(
    stores: Driven,
) -> None:
    stores.save(key("1"))
    stores.save(key("1"), done=False)
    stores.sql("UPDATE duostore.outbox SET create_time = create_time - interval '1 hour'")
    stores.pauses = (0.0, 0.0, 0.0)
    stores.items.between = lambda: stores.save(key("1"), done=False)
    progress = stores.check()
    assert (progress[-1].drift_count, progress[-1].undecided_count) == (0, 1)
    # It is saved no more, and the projector does not come.
    stores.items.between = lambda: None
    assert stores.found().keys() == {("1", Drift.PROJECTION_OLDER.value)}


def stub(stores: Driven, at: EntityKey) -> None:
    stores.put_item(at, Projection(stores.save(at).version, Form.STUB))


def noise(size: int) -> str:
    """Return text that no compression makes much smaller than half of it."""
    return random.Random(size).randbytes(size).hex()


def test_a_stub_of_what_fits_is_found_missing_and_mended(stores: Driven) -> None:
    stub(stores, key("1"))
    # Too large in two shapes, and in one.
    stores.flags[WRITE] = "both"
    fits_once = stores.save(key("2"), {"a": noise(250_000)})
    stores.save(key("3"), {"a": noise(450_000)})
    held = [stores.dynamodb.read(key(id_)) for id_ in "123"]
    assert held == [Projection(1, Form.STUB)] * 3
    stores.flags[WRITE] = "old"
    missing = Drift.PROJECTION_MISSING.value
    assert stores.found().keys() == {("1", missing), ("2", missing)}
    mended = stores.found(repair=True)
    assert [each.repaired for each in mended.values()] == [True, True]
    assert stores.found() == {}
    assert stores.dynamodb.read(key("2")) == stores.shapes.project(fits_once)
    assert stores.dynamodb.read(key("3")) == Projection(1, Form.STUB)
    # What cannot be brought is not missed.
    stores.flags[WRITE] = "both"
    assert stores.found().keys() == {("1", Drift.PROJECTION_VERSION_MISSING.value)}


class VersionsOnly(Judge):
    """Compares no content."""

    def _differences(self, *_: object) -> tuple[Difference, ...]:
        return ()


def test_a_comparison_of_versions_finds_no_content(stores: Driven) -> None:
    planted = {name for name in plant_all(stores) if Drift(name[1]) not in CONTENT}
    assert stores.found(judge=VersionsOnly).keys() == planted


class AuroraFirst(Examining):
    """Reads Aurora before DynamoDB and the cache."""

    def look(self, keys: Any, deadline: Deadline, *, seen: Any = None) -> Any:
        read = self._authority.read(keys, deadline) if seen is None else seen
        return super().look(keys, deadline, seen=read)


class Traffic:
    """Savers that go on until so many versions were committed."""

    def __init__(self, stores: Driven, keys: list[EntityKey], *, savers: int = 3) -> None:
        self._stores = stores
        self._keys = keys
        self._savers = savers
        self._ended = threading.Event()
        self.saves = 0

    def run(self, beside: Callable[[], object]) -> None:
        """Save while ``beside`` runs."""
        with ThreadPoolExecutor(self._savers) as pool:
            running = [pool.submit(self._save, number) for number in range(self._savers)]
            try:
                eventually(lambda: self.saves > 20, within=20, what="saves go on")
                beside()
            finally:
                self._ended.set()
            for each in running:
                each.result()

    def _save(self, number: int) -> None:
        turn = number
        while not self._ended.is_set():
            at = self._keys[turn % len(self._keys)]
            # A saver dies now and then; there is no projector.
            self._stores.save(at, {"turn": turn}, done=turn % 50 != 0)
            self.saves += 1
            turn += 1


def drifts_beside_traffic(stores: Driven, examining: type[Examining]) -> set[str]:
    """Return what a check finds of entities that are saved between each two of its looks."""
    keys = [key(f"{number:02}") for number in range(10)]
    for each in keys:
        stores.save(each)
    traffic = Traffic(stores, keys)
    found: set[str] = set()

    def linger() -> None:
        most = traffic.saves + 10
        eventually(lambda: traffic.saves > most, within=20, what="saves go on")

    def look() -> None:
        stores.items.between = linger
        for _ in range(3):
            found.update(drift for _, drift in stores.found(examining=examining))

    stores.pauses = (0.05, 0.1)
    traffic.run(look)
    return found


def test_nothing_that_is_saved_meanwhile_is_taken_for_drift(stores: Driven) -> None:
    assert drifts_beside_traffic(stores, Examining) == set()


def test_aurora_is_read_last_lest_what_is_saved_meanwhile_be_taken_for_drift(
    stores: Driven,
) -> None:
    assert "projection_newer" in drifts_beside_traffic(stores, AuroraFirst)


def test_drift_is_mended_beside_traffic_and_no_save_is_lost(stores: Driven) -> None:
    keys = [key(f"{number:02}") for number in range(10)]
    for each in keys:
        stores.save(each)

    def spoil_and_mend() -> None:
        for turn in range(4):
            for at in keys[turn::4]:
                stores.put_item(at, value(1_000_000, b"wrong"))
                stores.set_entry(at, 1, b"wrong")
            stores.check(repair=True)

    Traffic(stores, keys).run(spoil_and_mend)
    # What savers that died have left is for the projector, or for a repair.
    stores.sql("UPDATE duostore.outbox SET create_time = create_time - interval '1 minute'")
    stores.check(repair=True)
    assert stores.found() == {}
    rows = stores.authority.read(keys, soon())
    held = stores.dynamodb.projections.read(keys, soon())
    assert {at: held[at] for at in keys} == {at: stores.shapes.project(rows[at]) for at in keys}
