"""The size of an item is what DynamoDB's documentation says of each type."""

from __future__ import annotations

from typing import Any

import pytest

from duostore_server.storage.dynamodb.attributes import stored_bytes


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": ""}, 0),
        ({"S": "é€"}, 5),
        ({"B": b"bytes"}, 5),
        ({"N": "7"}, 2),
        ({"N": "0"}, 1),
        ({"N": "1234500"}, 4),
        ({"N": "-0.0125"}, 3),
        ({"N": "1.5E+30"}, 2),
        ({"N": "9" * 38}, 20),
        ({"BOOL": False}, 1),
        ({"NULL": True}, 1),
        ({"SS": ["é", "ab"]}, 4),
        ({"NS": ["100", "123"]}, 5),
        ({"BS": [b"1", b"23"]}, 3),
        ({"L": []}, 3),
        ({"L": [{"S": "abc"}, {"N": "7"}]}, 3 + (1 + 3) + (1 + 2)),
        ({"M": {}}, 3),
        ({"M": {"key": {"B": b"12"}, "é": {"NULL": True}}}, 3 + (1 + 3 + 2) + (1 + 2 + 1)),
    ],
    ids=str,
)
def test_each_attribute_takes_its_name_and_its_value(value: dict[str, Any], size: int) -> None:
    assert stored_bytes({"name": value, "é": {"S": "more"}}) == len("name") + size + 2 + 4
