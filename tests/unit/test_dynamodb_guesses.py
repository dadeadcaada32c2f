from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from duostore_server.domain.keys import EntityKey
from duostore_server.storage.dynamodb.guesses import Guesses


def key(number: int) -> EntityKey:
    return EntityKey("", "proposal", str(number))


def test_what_was_seen_last_is_remembered() -> None:
    guesses = Guesses(10)
    assert guesses.of(key(1)) is None
    guesses.saw(key(1), 7)
    guesses.saw(key(2), 3)
    guesses.saw(key(1), 5)
    assert (guesses.of(key(1)), guesses.of(key(2))) == (5, 3)


def test_the_key_that_was_not_seen_for_longest_is_forgotten() -> None:
    guesses = Guesses(3)
    for number in (1, 2, 3, 1, 4):
        guesses.saw(key(number), number)
    assert [guesses.of(key(number)) for number in (1, 2, 3, 4)] == [1, None, 3, 4]


def test_threads_do_not_grow_it_past_its_bound() -> None:
    guesses = Guesses(50)

    def see(thread: int) -> None:
        for number in range(2_000):
            guesses.saw(key(thread * 10_000 + number), number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(see, range(8)))
    held = [n for t in range(8) for n in range(2_000) if guesses.of(key(t * 10_000 + n)) == n]
    assert len(held) == 50
