"""Who may call a service that asks for permission."""

from __future__ import annotations

import hmac
from typing import Any

import pytest

from duostore_server.domain.errors import PermissionDeniedError, UnauthenticatedError
from duostore_server.rpc.permission import Permission

TOKEN = "correct-horse-battery-staple"
CERTIFIED = "ops"


def permission(**changed: Any) -> Permission:
    return Permission(**{"token": TOKEN, "callers": (CERTIFIED,), "open": False, **changed})


def shown(*values: str) -> tuple[tuple[str, str | bytes], ...]:
    return (("x-caller", CERTIFIED), *(("authorization", value) for value in values))


@pytest.mark.parametrize(
    "values",
    [
        (f"Bearer {TOKEN}",),
        (f"bearer  {TOKEN}",),
        ("Basic b3BzOm9wcw==", f"Bearer {TOKEN}"),
        (f"Bearer {TOKEN}x", f"Bearer {TOKEN}"),
    ],
)
def test_who_shows_the_token_may(values: tuple[str, ...]) -> None:
    permission().check(shown(*values), None)
    permission(callers=()).check(shown(*values), b"somebody")


@pytest.mark.parametrize(
    "value",
    [
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer ",
        "Bearer",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN.upper()}",
        "Bearer \ud83d",
        "Bearer ключ",
    ],
)
def test_who_shows_anything_else_is_denied(value: str) -> None:
    for of_one in (permission(), permission(token=None)):
        with pytest.raises(PermissionDeniedError) as denied:
            of_one.check(shown(value), None)
        assert TOKEN not in str(denied.value)
        assert value not in str(denied.value)


def test_who_shows_nothing_is_told_to() -> None:
    for of_one in (permission(), permission(token=None, callers=())):
        for metadata in ((), shown(), shown("")):
            with pytest.raises(UnauthenticatedError, match="authorization: Bearer"):
                of_one.check(metadata, None)


def test_a_certificate_of_a_caller_is_enough_and_no_other_is() -> None:
    permission().check((), b"ops")
    permission(token=None).check(shown("Bearer wrong-but-nobody-asks"), b"ops")
    for name in (b"", b"op", b"ops\x00", b"OPS", b"\xff"):
        with pytest.raises(PermissionDeniedError):
            permission().check(shown(), name)


def test_a_name_that_is_not_set_is_nobodys() -> None:
    with pytest.raises(PermissionDeniedError):
        permission(callers=("",)).check((), b"")


def test_what_a_caller_says_of_itself_is_no_permission() -> None:
    with pytest.raises(UnauthenticatedError):
        permission().check((("x-caller", CERTIFIED), ("authorization-bin", TOKEN.encode())), None)


def test_an_open_service_asks_for_nothing() -> None:
    of_all = permission(token=None, callers=(), open=True)
    of_all.check((), None)
    of_all.check(shown("Bearer wrong"), b"somebody")


def test_the_token_is_compared_in_constant_time_and_shown_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    of_one = permission()
    of_one.check(shown(f"Bearer {TOKEN}"), None)
    assert compared == [(TOKEN.encode(), TOKEN.encode())]
    assert TOKEN not in repr(of_one)
    assert TOKEN not in str(of_one)
