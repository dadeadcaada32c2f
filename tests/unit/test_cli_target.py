from __future__ import annotations

from pathlib import Path

import pytest

from duostore_server.cli.target import Target
from duostore_server.rpc import callers

PEM = Path("x.pem")


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [
        ("127.0.0.1:50051", True),
        ("127.1.2.3:1", True),
        ("localhost:65535", True),
        ("[::1]:50051", True),
        ("duostore.internal:50051", False),
        ("localhost.example.org:1", False),
        ("10.0.0.7:50051", False),
        ("[fe80::1%eth0]:50051", False),
    ],
)
def test_an_address_is_a_host_and_a_port(address: str, *, is_loopback: bool) -> None:
    target = Target(address)
    assert target.problem() is None
    assert target.metadata == ()
    assert target.is_loopback is is_loopback


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "localhost:", ":50051", "::1:50051", "h:0", "h:65536", "h:x", "a b:1"],
)
def test_anything_else_is_refused(address: str) -> None:
    assert "is not HOST:PORT" in (Target(address).problem() or "")


@pytest.mark.parametrize(
    "target",
    [
        Target(tls=True),
        Target(tls=True, ca_file=PEM, server_name="duostore"),
        Target(tls=True, cert_file=PEM, key_file=PEM),
    ],
)
def test_what_tls_may_be_told(target: Target) -> None:
    assert target.problem() is None


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (Target(ca_file=PEM), "--tls"),
        (Target(server_name="duostore"), "--tls"),
        (Target(tls=True, cert_file=PEM), "need each other"),
        (Target(tls=True, key_file=PEM), "need each other"),
        (Target(caller=""), "--caller"),
        (Target(caller="a" * 129), "--caller"),
        (Target(caller="billing job"), "--caller"),
        (Target(token=""), "printable ASCII"),
        (Target(token="two words"), "printable ASCII"),
        (Target("duostore.internal:1", token="t"), "--plaintext-token"),
        (Target("localhost.example.org:1", token="t"), "in plain text"),
    ],
)
def test_what_would_be_ignored_or_refused_is_refused(target: Target, problem: str) -> None:
    assert problem in (target.problem() or "")


def test_a_caller_is_what_the_service_takes() -> None:
    for character in map(chr, range(0x250)):
        is_taken = callers._ACCEPTABLE["x-caller"].fullmatch(character) is not None
        assert (Target(caller=character).problem() is None) is is_taken, character
    longest = "a" * 128
    assert callers._ACCEPTABLE["x-caller"].fullmatch(longest)
    assert Target(caller=longest).problem() is None
    assert Target(caller=longest).metadata == (("x-caller", longest),)


@pytest.mark.parametrize(
    "target",
    [
        Target(token="t"),
        Target("[::1]:1", token="t"),
        Target("duostore.internal:1", tls=True, token="t"),
        Target("duostore.internal:1", plaintext_token=True, token="t"),
    ],
)
def test_a_token_is_sent_where_nobody_reads_it(target: Target) -> None:
    assert target.problem() is None
    assert target.metadata == (("authorization", "Bearer t"),)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Target(token="secret"))
