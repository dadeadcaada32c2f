from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from duostore_server.cli.load_checkpoint import (
    Checkpoint,
    Counts,
    Fingerprint,
    Job,
    fingerprint_of,
)

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024

JOB = Job(Fingerprint(7, "ab"), "127.0.0.1:1", "t", "proposal", "meta.id")
CHECKPOINT = Checkpoint(
    JOB,
    "1f",
    line=3,
    offset=30,
    beyond={9: 90, 5: 50},
    counts=Counts(saved=3, pending=1, existed=1, rejected=1, blank=0),
    rejected_bytes=77,
)


def test_a_checkpoint_comes_back() -> None:
    assert Checkpoint.decode(CHECKPOINT.encode()) == CHECKPOINT


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        CHECKPOINT.encode().replace(b'"format": 2', b'"format": 1'),
        CHECKPOINT.encode().replace(b'"load_id"', b'"name"'),
        CHECKPOINT.encode().replace(b'"line": 3', b'"line": "x"'),
        CHECKPOINT.encode().replace(b'"offset"', b'"place"'),
        CHECKPOINT.encode().replace(b'"digest"', b'"hash"'),
    ],
)
def test_anything_else_is_no_checkpoint(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Checkpoint.decode(text)


def test_lines_are_counted_once_each() -> None:
    assert Counts(saved=4, pending=2, existed=8, rejected=16, blank=32).lines == 60


def test_a_job_tells_how_another_differs() -> None:
    other = replace(JOB, kind="draft", target="127.0.0.1:2", if_absent=True)
    assert list(JOB.differences(JOB)) == []
    assert list(JOB.differences(other)) == [
        "--target was '127.0.0.1:1' and is '127.0.0.1:2' now",
        "--kind was 'proposal' and is 'draft' now",
        "--if-absent was False and is True now",
    ]


def _fingerprint(path: Path, content: bytes) -> Fingerprint:
    path.write_bytes(content)
    with path.open("rb") as file:
        return fingerprint_of(file)


def test_a_fingerprint_follows_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = bytes(3 * MIB)
    same = _fingerprint(path, content)
    assert same.size == 3 * MIB
    assert _fingerprint(tmp_path / "b.jsonl", content) == same
    for at in (0, MIB - 1, 2 * MIB, 3 * MIB - 1):
        assert _fingerprint(path, content[:at] + b"x" + content[at + 1 :]) != same
    assert _fingerprint(path, content + b"\0") != same
    assert _fingerprint(path, content[1:]) != same


def test_an_empty_file_has_a_fingerprint(tmp_path: Path) -> None:
    assert _fingerprint(tmp_path / "a.jsonl", b"").size == 0
