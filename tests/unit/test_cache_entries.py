from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duostore_server.domain.entities import Cached, Lease
from duostore_server.domain.keys import EntityKey
from duostore_server.storage.cache.entries import HEADER_BYTES, decode, encode
from duostore_server.storage.cache.keys import MAX_BYTES, Namespace

NOW = datetime(2026, 3, 1, 12, 30, 15, 123_000, tzinfo=UTC)
LONG = Cached(7, b"proposal " * 1000, NOW)

times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)).map(  # noqa: DTZ001 - hypothesis adds the zone
    lambda time: time - timedelta(microseconds=time.microsecond % 1000)
)
expiries = st.none() | st.datetimes(
    datetime(1970, 1, 2),  # noqa: DTZ001 - as above
    datetime(9999, 12, 31),  # noqa: DTZ001 - as above
    timezones=st.just(UTC),
)
shapes = st.integers(1, 100)
values = st.builds(
    Cached,
    st.integers(1, 2**63 - 1),
    st.binary(max_size=200) | st.binary(min_size=1, max_size=9).map(lambda part: part * 300),
    times,
    expiries,
    shapes,
)
absents = st.builds(Cached, st.integers(0, 2**63 - 1), st.none(), times, expiries, shapes)
leases = st.builds(Lease, st.binary(min_size=16, max_size=16))
entries = values | absents | leases

parts = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="#"), max_size=64)
keys = st.builds(
    EntityKey,
    parts,
    parts.filter(bool),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=300),
)
# Few enough that two of them are often the same, or nearly.
short_keys = st.builds(
    EntityKey, st.text("a", max_size=1), st.text("a", min_size=1, max_size=2), st.text("#a é~=")
)


@settings(deadline=None)
@given(entry=entries, above=st.sampled_from([0, 100, 10_000]))
def test_an_entry_comes_back_as_it_was(entry: Cached | Lease, above: int) -> None:
    assert decode(encode(entry, compress_above=above)) == entry


def test_the_cached_time_is_cut_to_milliseconds() -> None:
    entry = Cached(1, b"payload", NOW + timedelta(microseconds=999))
    assert decode(encode(entry, compress_above=100)) == Cached(1, b"payload", NOW)


def test_the_expire_time_is_kept_to_the_microsecond() -> None:
    expire_time = NOW + timedelta(microseconds=1)
    entry = Cached(1, b"payload", NOW, expire_time)
    found = decode(encode(entry, compress_above=100))
    assert isinstance(found, Cached)
    assert found.expire_time == expire_time


def test_what_expired_before_1970_does_not_come_back_to_life() -> None:
    entry = Cached(1, b"payload", NOW, datetime(1960, 1, 1, tzinfo=UTC))
    found = decode(encode(entry, compress_above=100))
    assert isinstance(found, Cached)
    assert found.expire_time == datetime(1970, 1, 1, microsecond=1, tzinfo=UTC)


@pytest.mark.parametrize("expire_micros", [-1, -(2**63), 2**63 - 1])
def test_an_expire_time_that_is_none_is_no_entry(expire_micros: int) -> None:
    raw = encode(Cached(1, b"payload", NOW), compress_above=100)
    damaged = raw[: HEADER_BYTES - 8] + struct.pack(">q", expire_micros) + raw[HEADER_BYTES:]
    assert decode(damaged) is None


# Magic, format, kind, flags, size, version, cached time, no expire time.
OLD = bytes.fromhex("d502 0100 00000007 0000000000000003 0000019ca960bc53 0000000000000000")


def test_the_first_shape_is_written_as_when_there_was_no_other() -> None:
    old = Cached(3, b"payload", NOW)
    assert encode(old, compress_above=100) == OLD + b"payload"
    assert decode(OLD + b"payload") == old
    assert encode(LONG, compress_above=100)[3] == 1
    assert encode(Cached(0, None, NOW), compress_above=100)[2:4] == b"\x02\x00"


@settings(deadline=None)
@given(entry=values | absents, above=st.sampled_from([0, 10_000]))
def test_another_shape_is_nothing_that_an_older_release_knows(entry: Cached, above: int) -> None:
    flags = encode(entry, compress_above=above)[3]
    assert (flags in {0, 1}) == (entry.shape == 1)


@pytest.mark.parametrize("flags", range(256))
def test_every_flag_of_a_lease_is_damage(flags: int) -> None:
    raw = bytearray(encode(Lease(b"n" * 16), compress_above=100))
    raw[3] = flags
    assert (decode(bytes(raw)) is None) == (flags != 0)


def test_an_absent_entity_is_never_compressed() -> None:
    raw = bytearray(encode(Cached(1, None, NOW, shape=3), compress_above=100))
    raw[3] |= 1
    assert decode(bytes(raw)) is None


def test_a_long_payload_is_compressed_and_a_short_one_is_left_as_it_is() -> None:
    assert len(encode(LONG, compress_above=4096)) < 200
    assert encode(LONG, compress_above=100_000)[HEADER_BYTES:] == LONG.payload


@settings(deadline=None)
@given(entry=entries, data=st.data())
def test_no_part_of_an_entry_is_an_entry(entry: Cached | Lease, data: st.DataObject) -> None:
    raw = encode(entry, compress_above=100)
    assert decode(raw[: data.draw(st.integers(0, len(raw) - 1))]) is None
    assert decode(raw + b"\0") is None


@settings(deadline=None)
@given(entry=entries, bit=st.integers(0, 8 * HEADER_BYTES - 1))
def test_a_damaged_header_raises_nothing(entry: Cached | Lease, bit: int) -> None:
    raw = bytearray(encode(entry, compress_above=100))
    raw[bit // 8] ^= 1 << bit % 8
    decoded = decode(bytes(raw))
    # The magic byte, the format, and the size are checked against what must be there.
    if bit < 16 or 32 <= bit < 64:
        assert decoded is None


@settings(deadline=None)
@given(raw=st.binary(max_size=100))
def test_other_bytes_are_no_entry(raw: bytes) -> None:
    assert decode(raw) is None


@pytest.mark.parametrize("at", range(HEADER_BYTES, len(encode(LONG, compress_above=100))))
def test_a_damaged_compressed_payload_is_no_entry(at: int) -> None:
    raw = bytearray(encode(LONG, compress_above=100))
    raw[at] ^= 0xFF
    # zstd does not look at a few bits of its own header.
    assert decode(bytes(raw)) in {None, LONG}


def test_a_damaged_checksum_is_no_entry() -> None:
    raw = bytearray(encode(LONG, compress_above=100))
    raw[-1] ^= 1
    assert decode(bytes(raw)) is None


@pytest.mark.parametrize(
    "entry",
    [
        Cached(0, b"payload", NOW),  # versions of values start at 1
        Cached(-1, None, NOW),
        Lease(b"short"),
        Lease(b"longer than sixteen bytes"),
    ],
)
def test_what_cannot_be_meant_is_no_entry(entry: Cached | Lease) -> None:
    assert decode(encode(entry, compress_above=100)) is None


@settings(deadline=None)
@given(key=keys)
def test_every_key_fits_memcached(key: EntityKey) -> None:
    name = Namespace("shop").key(key)
    assert len(name) <= MAX_BYTES
    assert all(0x21 <= byte <= 0x7E for byte in name)


@settings(deadline=None)
@given(one=short_keys | keys, other=short_keys | keys)
def test_different_keys_have_different_names(one: EntityKey, other: EntityKey) -> None:
    namespace = Namespace("shop")
    assert (one == other) == (namespace.key(one) == namespace.key(other))


def test_a_plain_key_stays_readable() -> None:
    key = EntityKey("acme", "proposal", "p-1#draft")
    assert Namespace("shop").key(key) == b"shop.2=acme#proposal#p-1#draft"


@pytest.mark.parametrize(
    "entity_id", ["a b", "é", "x" * 240, "\u2028", "emoji \N{CAT}", "a\n", "\x7f"]
)
def test_any_other_key_is_a_digest(entity_id: str) -> None:
    name = Namespace("shop").key(EntityKey("acme", "proposal", entity_id))
    assert name.startswith(b"shop.2~")
    assert len(name) == len(b"shop.2~") + 64


def test_no_entity_can_name_itself_like_anothers_digest() -> None:
    hashed = Namespace("shop").key(EntityKey("", "k", "a b")).decode()
    for prefix in ("", "shop.2", "shop.2~"):
        forged = EntityKey("", "k", prefix + hashed)
        assert Namespace("shop").key(forged) != hashed.encode()


def test_the_longest_plain_key_has_250_bytes() -> None:
    namespace = Namespace("shop")
    lengths = {len(namespace.key(EntityKey("", "k", "x" * n))) for n in range(200, 260)}
    assert max(lengths) == MAX_BYTES


def test_namespaces_share_no_key() -> None:
    key = EntityKey("", "k", "1")
    assert Namespace("shop").key(key) != Namespace("shop-2").key(key)


@pytest.mark.parametrize("name", ["", "a b", "a.1=", "é", "x" * 33, "a\n"])
def test_a_namespace_that_could_reach_into_another_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        Namespace(name)
