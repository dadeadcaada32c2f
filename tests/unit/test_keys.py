"""What may name an entity."""

from __future__ import annotations

import pytest

from duostore_server.domain.keys import EntityKey, key_violations


def fields(key: EntityKey) -> list[str]:
    return [violation.field for violation in key_violations(key, "key")]


@pytest.mark.parametrize(
    "key",
    [
        EntityKey("", "proposal", "1"),
        EntityKey("t" * 64, "k" * 64, "i" * 512),
        EntityKey("acme corp", "proposal", "a#b c/d?e=ü 漢字 😀"),
        EntityKey("é" * 32, "k", "1"),
    ],
)
def test_acceptable_keys(key: EntityKey) -> None:
    assert fields(key) == []


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (EntityKey("", "", "1"), ["key.kind"]),
        (EntityKey("", "k", ""), ["key.id"]),
        (EntityKey("t" * 65, "k", "1"), ["key.tenant"]),
        (EntityKey("é" * 33, "k", "1"), ["key.tenant"]),
        (EntityKey("", "k" * 65, "1"), ["key.kind"]),
        (EntityKey("", "k", "i" * 513), ["key.id"]),
        (EntityKey("a#b", "c#d", "1"), ["key.tenant", "key.kind"]),
        (EntityKey("a\x00", "b\n", "c\x7f"), ["key.tenant", "key.kind", "key.id"]),
        (EntityKey("", "k", "a\x85"), ["key.id"]),
        (EntityKey("#" * 65, "", ""), ["key.tenant", "key.tenant", "key.kind", "key.id"]),
    ],
)
def test_every_unacceptable_part_is_named(key: EntityKey, named: list[str]) -> None:
    assert fields(key) == named


def test_limits_are_told() -> None:
    [violation] = key_violations(EntityKey("", "k", "i" * 600), "keys[3]")
    assert violation.field == "keys[3].id"
    assert "600" in violation.description
    assert "512" in violation.description


def test_the_text_of_a_key_is_unambiguous() -> None:
    assert str(EntityKey("t", "k", "a#b")) == "t#k#a#b"
