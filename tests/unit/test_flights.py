"""One fill per key and process, and nobody pinned."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from duostore_server.access.flights import Flights
from duostore_server.domain.keys import EntityKey

KEY = EntityKey("", "proposal", "1")
OTHER = EntityKey("", "proposal", "2")


def test_one_flies_and_the_others_wait_until_it_has_landed() -> None:
    flights = Flights()
    everybody_asked = threading.Barrier(8)
    landed = threading.Event()

    def join() -> bool:
        everybody_asked.wait(5)
        with flights.join(KEY, 5) as first:
            if first:
                landed.set()
            else:
                assert landed.is_set()
            return first

    with ThreadPoolExecutor(8) as pool:
        firsts = [future.result() for future in [pool.submit(join) for _ in range(8)]]
    assert any(firsts)


def test_keys_do_not_wait_for_each_other() -> None:
    flights = Flights()
    with flights.join(KEY, 5) as one, flights.join(OTHER, 5) as two:
        assert (one, two) == (True, True)


def test_a_stuck_flight_pins_nobody() -> None:
    flights = Flights()
    with flights.join(KEY, 5), flights.join(KEY, 0.01) as first:
        assert first is False


def test_a_flight_that_fails_has_landed_too() -> None:
    flights = Flights()
    with pytest.raises(RuntimeError), flights.join(KEY, 5):
        raise RuntimeError
    with flights.join(KEY, 5) as first:
        assert first is True
