from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from duostore.v1 import entity_pb2
from duostore_server.cli.wording import ago, counted, key_told, percent, printable, span, whose


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-1, "0 ms"),
        (0, "0 ms"),
        (0.0031, "3.1 ms"),
        (0.41239, "412 ms"),
        (1, "1 s"),
        (9.99, "9.9 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (93, "1 min 33 s"),
        (3600, "1 h"),
        (3659, "1 h"),
        (3660, "1 h 1 min"),
        (7325, "2 h 2 min"),
        (90_061, "1 d 1 h"),
        (86_460, "1 d"),
        (1_000 * 86_400, "1,000 d"),
    ],
)
def test_a_span_has_its_two_largest_units(seconds: float, told: str) -> None:
    assert span(seconds) == told


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (1, "100 %"),
        (0.99999999, "99.999 %"),
        (0.29, "29 %"),
        (0.57, "57 %"),
        (0.9995, "99.95 %"),
        (0, "0 %"),
        (0.0000001, "0 %"),
    ],
)
def test_a_share_is_never_told_to_be_more_than_it_is(share: float, told: str) -> None:
    assert percent(share) == told


def test_a_moment_is_told_by_its_age() -> None:
    moment = Timestamp(seconds=1000, nanos=500_000_000)
    assert ago(moment, 1093.5) == "1 min 33 s ago"
    assert ago(moment, 1001) == "just now"
    assert ago(moment, 900) == "just now", "a clock that is behind"


def test_a_key_can_be_pasted_behind_a_command() -> None:
    key = entity_pb2.EntityKey(kind="note", id="it's 1")
    assert key_told(key) == """note 'it'"'"'s 1'"""
    key.tenant = "a b"
    assert key_told(key).endswith(" --tenant 'a b'")


def test_a_text_of_others_does_a_terminal_no_harm() -> None:
    assert printable("a\x1b[2Jb\r\n\u202ec Zoë") == "a�[2Jb���c Zoë"


def test_what_is_counted_and_whose_it_is() -> None:
    assert counted(1, "drift", "drifts") == "1 drift"
    assert counted(0, "drift", "drifts") == "0 drifts"
    assert counted(1234, "drift", "drifts") == "1,234 drifts"
    assert (whose(""), whose("note")) == ("the whole service", "note")
