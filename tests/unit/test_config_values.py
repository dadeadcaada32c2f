from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duostore_server.config.addresses import Address
from duostore_server.config.values import duration_text, parse_duration, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("250ms", 0.25), ("60s", 60), ("5m", 300), ("2h", 7200), ("7d", 604_800)],
)
def test_a_duration_is_a_whole_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "60",
        "60 s",
        " 60s",
        "60s\n",
        "1.5s",
        "-1s",
        "1m30s",
        "60S",
        "s",
        "",
        "\u0666\u0660s",
        "9" * 13 + "s",
        True,
        None,
        ["60s"],
    ],
)
def test_anything_else_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(value)


@pytest.mark.parametrize("value", [60, 0.5, 10**400, float("nan")])
def test_a_number_without_a_unit_is_answered_with_a_hint(value: object) -> None:
    with pytest.raises(ValueError, match='without a unit; write a duration, such as "60s"'):
        parse_duration(value)


@pytest.mark.parametrize(
    "text", ["0s", "1ms", "1500ms", "60s", "90s", "10m", "59m", "1h", "90m", "24h", "7d"]
)
def test_a_duration_is_written_as_people_write_it(text: str) -> None:
    assert duration_text(parse_duration(text)) == text


@given(st.integers(0, 10**12), st.sampled_from(["ms", "s", "m", "h"]))
def test_a_written_duration_reads_back_as_itself(count: int, unit: str) -> None:
    seconds = parse_duration(f"{count // 1000}{unit}")
    assert parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize(
    ("value", "size"),
    [(1024, 1024), ("0B", 0), ("256KiB", 262_144), ("8MiB", 8_388_608), ("1GiB", 1 << 30)],
)
def test_a_size_is_bytes_or_a_whole_number_and_a_unit(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", ["256", "256KB", "256K", "256 KiB", "1.5MiB", "-1B", "KiB", "", 1.0, True, None]
)
def test_anything_else_is_no_size(value: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(value)


@given(st.integers(0, 1 << 40))
def test_a_written_size_reads_back_as_itself(size: int) -> None:
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("localhost:1", "localhost", 1),
        ("cache-1.example.com:65535", "cache-1.example.com", 65535),
        ("[::1]:50051", "::1", 50051),
        ("[::]:50051", "::", 50051),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    address = Address.parse(text)

    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("127.0.0.1", "must be host:port"),
        (":50051", "must be host:port"),
        ("", "must be host:port"),
        (50051, "in quotes"),
        ("::1:50051", "needs brackets"),
        ("[::g]:1", "no IPv6 address"),
        ("[127.0.0.1]:1", "no IPv6 address"),
        ("256.0.0.1:1", "no IPv4 address"),
        ("1.2.3:1", "no IPv4 address"),
        ("a b:1", "no valid host"),
        ("http//x:1", "no valid host"),
        ("-x:1", "no valid host"),
        ("localhost:0", "no valid port"),
        ("localhost:65536", "no valid port"),
        ("localhost:", "no valid port"),
        ("localhost:+1", "no valid port"),
        ("localhost:1\n", "no valid port"),
        ("localhost:\u0661", "no valid port"),
    ],
)
def test_anything_else_is_no_address(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Address.parse(value)
