"""How the cache treats its nodes: connections, back-off, several of them. On simulated nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import (
    DeadlineExceededError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.backoff import Backoff
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.nodes import Node
from duostore_server.storage.cache.probes import MemcachedProbe, MemoryProbe
from tests.integration.test_memcached_faults import KEY, NAME, NOW, OLD, Setting
from tests.support.simulated_memcached import Delivery, Fault

if TYPE_CHECKING:
    from duostore_server.domain.ports import Probe
    from duostore_server.storage.cache.wire import Connection


def use_at_once(node: Node, count: int) -> None:
    """Have so many connections in use at the same time."""

    def use(connection: Connection) -> None:
        connection.version()
        if count > 1:
            use_at_once(node, count - 1)

    node.call(use)


def test_connections_are_kept_up_to_a_number() -> None:
    setting = Setting()
    backoff = Backoff(lambda: 0.5, lambda: setting.now)
    node = Node("cache:0", setting.node.connect, backoff, most_idle=3)
    for _ in range(2):
        use_at_once(node, 3)
    assert (setting.node.opened, setting.node.closed) == (3, 0)
    # The same one again and again, so that the others may grow old.
    assert node.call(lambda connection: connection) is node.call(lambda connection: connection)
    use_at_once(node, 5)
    assert (setting.node.opened, setting.node.closed) == (5, 2)
    node.close()
    assert (setting.node.opened, setting.node.closed) == (5, 5)


def test_a_connection_in_use_is_closed_when_its_call_ends() -> None:
    setting = Setting()
    setting.fill()
    setting.before_once("get", setting.cache.close)
    assert setting.cache.read([KEY]) == {KEY: OLD}
    assert (setting.node.opened, setting.node.closed) == (1, 1)


def test_one_dead_connection_tells_of_the_others() -> None:
    setting = Setting()
    use_at_once(setting.cache._nodes[0], 5)
    setting.node.restart()
    assert setting.cache.read([KEY]) == {}
    assert (setting.node.opened, setting.node.closed) == (6, 5)
    # A fill is not repeated; it would fail on another of them.
    setting.fill()


def keys_by_node(setting: Setting, count: int) -> list[list[EntityKey]]:
    keys = [EntityKey("acme", "proposal", f"p-{n}") for n in range(count)]
    shares: list[list[EntityKey]] = [[] for _ in setting.nodes]
    for key in keys:
        shares[
            setting.cache._nodes.index(setting.cache._node(Namespace("duostore").key(key)))
        ].append(key)
    return shares


def test_a_node_that_failed_is_left_alone_for_a_while() -> None:
    setting = Setting()
    setting.fill()
    setting.fault_once("get", Fault(TimeoutError()))
    with pytest.raises(StoreTimeoutError):
        setting.cache.read([KEY])
    setting.steps.clear()
    for ask in (
        lambda: setting.cache.read([KEY]),
        lambda: setting.cache.lease([KEY]),
        lambda: setting.cache.fill(KEY, Lease(b"n" * 16), OLD, 60),
    ):
        with pytest.raises(StoreUnavailableError):
            ask()
    assert setting.steps == []
    setting.now += 0.49
    with pytest.raises(StoreUnavailableError):
        setting.cache.read([KEY])
    setting.now += 0.01
    assert setting.cache.read([KEY]) == {KEY: OLD}


def test_a_node_that_refuses_connections_is_left_alone_too() -> None:
    setting = Setting()
    setting.node.reachable = False
    with pytest.raises(StoreUnavailableError):
        setting.cache.read([KEY])
    setting.node.reachable = True
    with pytest.raises(StoreUnavailableError):
        setting.cache.read([KEY])
    assert setting.node.opened == 0


def test_one_caller_finds_out_for_all_whether_a_node_is_back() -> None:
    setting = Setting()
    setting.cache.read([KEY])
    setting.fault_once("get", Fault(TimeoutError()))
    with pytest.raises(StoreTimeoutError):
        setting.cache.read([KEY])
    setting.now += 0.5
    others: list[type[Exception]] = []

    def ask_too() -> None:
        for _ in range(3):
            try:
                setting.cache.read([KEY])
            except StoreError as error:
                others.append(type(error))

    setting.before_once("get", ask_too)
    assert setting.cache.read([KEY]) == {}
    assert others == [StoreUnavailableError] * 3
    setting.before_once("get", ask_too)
    assert setting.cache.read([KEY]) == {}
    assert len(others) == 3


def test_an_invalidation_is_tried_however_recently_the_node_failed() -> None:
    setting = Setting()
    setting.fill()
    setting.fault_once("get", Fault(TimeoutError()))
    with pytest.raises(StoreTimeoutError):
        setting.cache.read([KEY])
    setting.cache.invalidate([KEY])
    # It was heard, so the node is up.
    assert setting.cache.read([KEY]) == {}


def test_a_value_that_the_node_refuses_is_raised_and_shuts_nothing_off() -> None:
    setting = Setting()
    setting.nodes[0]._item_max = 1000
    lease = setting.cache.lease([KEY])[KEY]
    with pytest.raises(StoreUnavailableError):
        setting.cache.fill(KEY, lease, Cached(1, bytes(range(256)) * 12, NOW), 60)
    assert setting.cache.read([KEY]) == {KEY: lease}


def test_the_keys_of_a_node_that_is_down_are_vacant_and_stay_its_own() -> None:
    setting = Setting(nodes=2)
    ours, theirs = keys_by_node(setting, 40)
    assert ours
    assert theirs
    for key in (*ours, *theirs):
        setting.fill(key)
    setting.nodes[1].reachable = False
    assert setting.cache.read([*theirs, *ours]) == dict.fromkeys(ours, OLD)
    assert [operation for operation, _ in setting.bypassed] == ["read"]
    assert setting.cache.lease([*theirs, *ours]) == {}
    assert [operation for operation, _ in setting.bypassed] == ["read", "lease"]
    with pytest.raises(StoreUnavailableError):
        setting.cache.read(theirs)
    with pytest.raises(StoreUnavailableError):
        setting.cache.lease(theirs)
    with pytest.raises(StoreUnavailableError):
        setting.cache.fill(theirs[0], Lease(b"n" * 16), OLD, 60)
    assert len(setting.bypassed) == 2
    name_of = Namespace("duostore").key
    assert all(setting.nodes[0].item(name_of(key)) is None for key in theirs)


def test_an_invalidation_tries_every_node_and_raises_if_one_is_down() -> None:
    setting = Setting(nodes=3)
    shares = keys_by_node(setting, 60)
    for key in (key for share in shares for key in share):
        setting.fill(key)
    setting.nodes[1].reachable = False
    with pytest.raises(StoreUnavailableError):
        setting.cache.invalidate([key for share in shares for key in share])
    assert setting.cache.read([*shares[0], *shares[2]]) == {}
    setting.nodes[1].reachable = True
    setting.now += 1
    assert setting.cache.read(shares[1]) == dict.fromkeys(shares[1], OLD)
    # What takes them away is that the projector tries again.
    setting.cache.invalidate(shares[1])
    assert setting.cache.read(shares[1]) == {}


def test_a_damaged_entry_that_cannot_be_removed_is_vacant_all_the_same() -> None:
    setting = Setting()
    setting.node.put(NAME, b"damaged", 60)
    setting.fault_once("delete", Fault(TimeoutError(), Delivery.LOST))
    assert setting.cache.read([KEY]) == {}
    assert [operation for operation, _ in setting.bypassed] == ["read"]


def test_an_error_names_its_node_to_the_log_alone() -> None:
    setting = Setting()
    setting.node.reachable = False
    for _ in range(2):
        with pytest.raises(StoreUnavailableError) as raised:
            setting.cache.read([KEY])
        assert raised.value.__notes__ == ["memcached node cache:0"]
        assert "cache:0" not in str(raised.value)


@pytest.mark.parametrize(
    "nodes", [[], ["cache:1", "cache:1"], ["cache"], ["cache:"], ["unix:/tmp/1:1"], ["a b:1"]]
)
def test_nodes_that_cannot_be_meant_are_refused(nodes: list[str]) -> None:
    with pytest.raises(ValueError, match="nodes"):
        MemcachedCache(nodes)


def test_the_probe_finds_the_cache_well_if_every_node_is() -> None:
    setting = Setting(nodes=2)
    probe: Probe = MemcachedProbe(["cache:0", "cache:1"], connect=setting.connect)
    probe.ping(Deadline.after(1))
    assert [node.opened for node in setting.nodes] == [1, 1]
    setting.nodes[1].reachable = False
    with pytest.raises(StoreUnavailableError):
        probe.ping(Deadline.after(1))
    with pytest.raises(DeadlineExceededError):
        probe.ping(Deadline.after(-1))


def test_the_probe_of_the_memory_answers_until_the_deadline() -> None:
    probe: Probe = MemoryProbe()
    probe.ping(Deadline.after(1))
    with pytest.raises(DeadlineExceededError):
        probe.ping(Deadline.after(-1))


def test_nodes_that_hang_do_not_add_up() -> None:
    setting = Setting(8)
    keys = [share[0] for share in keys_by_node(setting, 200)]
    asked: list[str] = []

    def hang(label: str) -> Fault:
        asked.append(label)
        setting.now += 0.2
        return Fault(TimeoutError(), Delivery.LOST)

    for node in setting.nodes:
        node.fault = hang
    # connect_timeout and timeout are 0.1 s each: 0.4 s in all, and the node begun then.
    for ask in (setting.cache.read, setting.cache.lease, setting.cache.invalidate):
        setting.now += 10
        asked.clear()
        with pytest.raises(StoreTimeoutError):
            ask(keys)
        assert len(asked) <= 3


def test_nodes_that_hang_do_not_keep_a_sound_one_from_being_asked() -> None:
    setting = Setting(8)
    keys = [share[0] for share in keys_by_node(setting, 200)]

    def hang(_: str) -> Fault:
        setting.now += 0.2
        return Fault(TimeoutError(), Delivery.LOST)

    for node in setting.nodes[:-1]:
        node.fault = hang
    # Each call finds some more of those that hang.
    for _ in range(4):
        with pytest.raises(StoreTimeoutError):
            setting.cache.invalidate(keys)
    setting.fill(keys[-1])
    with pytest.raises(StoreTimeoutError):
        setting.cache.invalidate(keys)
    assert setting.cache.read(keys[-1:]) == {}
    setting.fill(keys[-1])
    setting.now += 10
    assert setting.cache.read(keys) == {keys[-1]: OLD}
