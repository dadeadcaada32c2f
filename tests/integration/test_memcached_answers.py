"""What goes over the wire to memcached, and what comes back from servers that are not well.

The pipelined commands rest on two functions of pymemcache that it does not document; the
tests here pin what they do.
"""

from __future__ import annotations

import re
import secrets
import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.deadline import Deadline
from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.errors import StoreTimeoutError, StoreUnavailableError
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.entries import encode
from duostore_server.storage.cache.keys import Namespace
from duostore_server.storage.cache.memcached import MemcachedCache
from duostore_server.storage.cache.probes import MemcachedProbe
from duostore_server.storage.cache.wire import Connection, Connector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.servers import MemcachedServer

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEY = EntityKey("acme", "proposal", "p-1")
NAME = Namespace("duostore").key(KEY)
VALUE = Cached(1, b"payload", NOW)
LEASE = Lease(b"0123456789abcdef")


@pytest.fixture
def connection(memcached: MemcachedServer) -> Iterator[Connection]:
    connection = Connector()(memcached.address, connect_timeout=5, timeout=5)
    yield connection
    connection.close()


@pytest.fixture
def names() -> list[bytes]:
    prefix = secrets.token_hex(4)
    return [f"{prefix}-{n}".encode() for n in range(4)]


@contextmanager
def answering(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """Serve one connection after the other; yield the address.

    ``answer`` is given all that was received since it last answered; it returns b"" to
    wait for more, None to close the connection.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    received = b""
                    while part := connection.recv(65536):
                        received += part
                        reply = answer(received)
                        if reply is None:
                            break
                        if reply:
                            connection.sendall(reply)
                            received = b""

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_added_are_the_keys_that_had_no_value(connection: Connection, names: list[bytes]) -> None:
    assert connection.add_many({names[1]: b"first"}, 60) == [names[1]]
    values = {name: b"%d" % n for n, name in enumerate(names)}
    assert connection.add_many(values, 60) == [names[0], names[2], names[3]]
    assert connection.get_many(names) == {**values, names[1]: b"first"}


def test_a_cas_replaces_the_value_that_was_seen(connection: Connection, names: list[bytes]) -> None:
    assert connection.gets(names[0]) is None
    connection.add_many({names[0]: b"1"}, 60)
    seen = connection.gets(names[0])
    assert seen is not None
    assert seen[0] == b"1"
    assert connection.cas(names[0], b"2", seen[1], 60)
    assert not connection.cas(names[0], b"3", seen[1], 60)
    connection.delete_many([names[0]])
    assert not connection.cas(names[0], b"4", seen[1], 60)
    assert connection.get_many(names) == {}


def test_deleted_are_all_keys(connection: Connection, names: list[bytes]) -> None:
    connection.add_many(dict.fromkeys(names[:3], b""), 60)
    connection.delete_many(names[1:])
    assert connection.get_many(names) == {names[0]: b""}


def test_a_connection_has_timeouts_and_does_not_wait_to_fill_packets(
    connection: Connection,
) -> None:
    connection.version()
    connected = connection.sock  # type: ignore[attr-defined]  # pymemcache's own
    assert 0 < connected.gettimeout() <= 5
    assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        (lambda connection, keys: connection.add_many(dict.fromkeys(keys, b"n"), 10), b"STORED"),
        (lambda connection, keys: connection.delete_many(keys), b"NOT_FOUND"),
    ],
    ids=["add", "delete"],
)
def test_500_commands_are_one_round_trip(
    command: Callable[[Connection, list[bytes]], object], reply: bytes
) -> None:
    keys = [b"%0250d" % n for n in range(500)]

    def answer(received: bytes) -> bytes:
        # Whoever waits for the first answer before the last command waits for ever.
        complete = received.count(b"\r\n") == (1000 if received.startswith(b"add") else 500)
        return (reply + b"\r\n") * 500 if complete else b""

    with answering(answer) as address:
        connection = Connector()(address, connect_timeout=5, timeout=5)
        command(connection, keys)
        connection.close()


@pytest.fixture
def lifetime(memcached: MemcachedServer) -> Callable[[bytes], int]:
    """Return how many seconds the server keeps a key, by its own word: 0 if gone, -1 for ever."""

    def ask(name: bytes) -> int:
        host, port = memcached.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as bare:
            bare.sendall(b"mg " + name + b" t\r\n")
            found = re.fullmatch(rb"HD t(-?\d+)\r\n|EN\r\n", bare.recv(1024))
            assert found is not None
            return int(found[1] or 0)

    return ask


def test_a_lease_lapses_after_10_seconds(
    memcached: MemcachedServer, lifetime: Callable[[bytes], int]
) -> None:
    namespace = secrets.token_hex(4)
    with MemcachedCache([memcached.address], namespace=namespace, timeout=5) as cache:
        cache.lease([KEY])
        assert 5 <= lifetime(Namespace(namespace).key(KEY)) <= 10


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [(0.0, 1), (0.9, 1), (61.9, 61), (2_592_000.0, 2_592_000), (1e12, 2_592_000)],
)
def test_a_ttl_is_whole_seconds_from_1_to_30_days(
    memcached: MemcachedServer, lifetime: Callable[[bytes], int], ttl: float, seconds: int
) -> None:
    namespace = secrets.token_hex(4)
    with MemcachedCache([memcached.address], namespace=namespace, timeout=5) as cache:
        assert cache.fill(KEY, cache.lease([KEY])[KEY], VALUE, ttl)
        assert max(0, seconds - 5) <= lifetime(Namespace(namespace).key(KEY)) <= seconds


STORED_LEASE = encode(LEASE, compress_above=100)
FOUND_LEASE = b"VALUE %s 0 %d 1\r\n%s\r\nEND\r\n" % (NAME, len(STORED_LEASE), STORED_LEASE)

READ = ("read", lambda cache: cache.read([KEY]))
LEASE_IT = ("lease", lambda cache: cache.lease([KEY]))
FILL = ("fill", lambda cache: cache.fill(KEY, LEASE, VALUE, 60))
INVALIDATE = ("invalidate", lambda cache: cache.invalidate([KEY]))
ALL = [READ, LEASE_IT, FILL, INVALIDATE]

WRONG = [
    b"\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"ERROR\r\n",
    b"ERROR Too many open connections\r\n",
    b"CLIENT_ERROR bad command line format\r\n",
    b"SERVER_ERROR out of memory storing object\r\n",
    b"VALUE\r\n",
    b"VALUE other 0 5 1\r\nvalue\r\nEND\r\n",
    b"VALUE %s 0 x 1\r\n" % NAME,
    b"VALUE %s 0 5 1 7 9\r\nvalue\r\nEND\r\n" % NAME,
    b"\xff\xfe\x00\r\n",
]


@pytest.mark.parametrize("reply", [*WRONG, None], ids=repr)
@pytest.mark.parametrize("operation", ALL, ids=lambda operation: operation[0])
def test_a_wrong_answer_is_an_error(
    operation: tuple[str, Callable[[MemcachedCache], object]], reply: bytes | None
) -> None:
    with (
        answering(lambda _: reply) as address,
        MemcachedCache([address], timeout=5) as cache,
        pytest.raises(StoreUnavailableError),
    ):
        operation[1](cache)


@pytest.mark.parametrize(
    ("operation", "reply"),
    [
        (LEASE_IT, b"DELETED\r\n"),
        (LEASE_IT, b"EXISTS\r\n"),
        (INVALIDATE, b"STORED\r\n"),
        (INVALIDATE, b"END\r\n"),
        (READ, b"STORED\r\n"),
    ],
)
def test_the_answer_to_another_command_is_an_error(
    operation: tuple[str, Callable[[MemcachedCache], object]], reply: bytes
) -> None:
    with (
        answering(lambda _: reply) as address,
        MemcachedCache([address], timeout=5) as cache,
        pytest.raises(StoreUnavailableError),
    ):
        operation[1](cache)


def test_a_bare_ok_is_taken_for_nothing_found() -> None:
    with answering(lambda _: b"OK\r\n") as address, MemcachedCache([address], timeout=5) as cache:
        assert cache.read([KEY]) == {}
        assert not cache.fill(KEY, LEASE, VALUE, 60)


@pytest.mark.parametrize("reply", [*WRONG, b"DELETED\r\n", None], ids=repr)
def test_a_fill_is_done_only_if_its_cas_was(reply: bytes | None) -> None:
    def answer(received: bytes) -> bytes | None:
        return FOUND_LEASE if received.startswith(b"gets ") else reply

    with (
        answering(answer) as address,
        MemcachedCache([address], timeout=5) as cache,
        pytest.raises(StoreUnavailableError),
    ):
        cache.fill(KEY, LEASE, VALUE, 60)


@pytest.mark.parametrize("reply", [b"EXISTS\r\n", b"NOT_FOUND\r\n", b"NOT_STORED\r\n"])
def test_a_fill_that_came_too_late_is_false(reply: bytes) -> None:
    def answer(received: bytes) -> bytes:
        return FOUND_LEASE if received.startswith(b"gets ") else reply

    with answering(answer) as address, MemcachedCache([address], timeout=5) as cache:
        if reply == b"NOT_STORED\r\n":  # which is no answer to a cas
            with pytest.raises(StoreUnavailableError):
                cache.fill(KEY, LEASE, VALUE, 60)
        else:
            assert not cache.fill(KEY, LEASE, VALUE, 60)


@pytest.mark.parametrize(
    ("operation", "begun"),
    [
        *((operation, b"") for operation in ALL),
        *((operation, b"N") for operation in ALL),
        (READ, b"VALUE %s 0 100\r\nhalf of it" % NAME),
        (READ, b"VALUE %s 0 4\r\nbody\r\n" % NAME),
        (FILL, FOUND_LEASE[:-10]),
    ],
)
def test_an_answer_that_stops_half_way_is_a_timeout(
    operation: tuple[str, Callable[[MemcachedCache], object]], begun: bytes
) -> None:
    with (
        answering(lambda _: begun) as address,
        MemcachedCache([address], timeout=0.05) as cache,
        pytest.raises(StoreTimeoutError),
    ):
        operation[1](cache)


@contextmanager
def pouring(part: bytes, pause: float, most: int) -> Iterator[tuple[str, list[int]]]:
    """Answer with ``part`` after ``part``, then close; yield the address and the bytes sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()
    sent = [0]

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(65536)
                    while sent[0] < most and not stop.wait(pause):
                        sent[0] += connection.send(part)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", sent
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("operation", ALL, ids=lambda operation: operation[0])
def test_an_answer_that_drips_is_a_timeout(
    operation: tuple[str, Callable[[MemcachedCache], object]],
) -> None:
    with (
        pouring(b"x", 0.02, 150) as (address, _),
        MemcachedCache([address], connect_timeout=5, timeout=0.2) as cache,
    ):
        began = time.monotonic()
        with pytest.raises(StoreTimeoutError):
            operation[1](cache)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize("operation", ALL, ids=lambda operation: operation[0])
def test_a_line_that_does_not_end_is_given_up(
    operation: tuple[str, Callable[[MemcachedCache], object]],
) -> None:
    # Up to 64 KiB are read; the sockets' buffers take a few MB more.
    with (
        pouring(b"x" * 1024, 0, 64 * 1024 * 1024) as (address, sent),
        MemcachedCache([address], connect_timeout=5, timeout=30, item_max=65536) as cache,
    ):
        with pytest.raises(StoreUnavailableError) as raised:
            operation[1](cache)
        assert not isinstance(raised.value, StoreTimeoutError)
        assert sent[0] < 16 * 1024 * 1024


def test_500_large_values_are_no_answer_that_is_too_long(memcached: MemcachedServer) -> None:
    keys = [EntityKey("acme", "proposal", f"{n:03}-" + "x" * 200) for n in range(500)]
    entry = Cached(1, b"x" * 3_000, NOW)
    namespace = secrets.token_hex(4)
    with MemcachedCache(
        [memcached.address], namespace=namespace, timeout=30, item_max=4_096
    ) as cache:
        leases = cache.lease(keys)
        assert all(cache.fill(key, leases[key], entry, 60) for key in keys)
        assert cache.read(keys) == dict.fromkeys(keys, entry)
        cache.invalidate(keys)


def test_the_probe_does_not_take_another_server_for_memcached() -> None:
    with (
        answering(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as address,
        pytest.raises(StoreUnavailableError),
    ):
        MemcachedProbe([address], timeout=5).ping(Deadline.after(5))


def test_the_probe_finds_a_memcached(memcached: MemcachedServer) -> None:
    MemcachedProbe([memcached.address], timeout=5).ping(Deadline.after(10))
