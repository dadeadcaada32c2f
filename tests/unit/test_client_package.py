"""The package of the client, as it is installed and imported."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import duostore
from duostore.channel import channel_options
from duostore.v1 import data_access_pb2_grpc
from duostore_server.rpc import callers

CLIENT = Path(__file__).parents[2] / "clients" / "python"


def test_every_name_of_the_package_is_there() -> None:
    assert duostore.__all__ == sorted(set(duostore.__all__))
    values = {name: getattr(duostore, name) for name in duostore.__all__}
    assert values.pop("Mutation") == duostore.Save | duostore.Publish | duostore.Delete | (
        duostore.Check
    )
    assert all(value.__name__ == name for name, value in values.items())
    assert set(duostore.__all__) <= set(dir(duostore))
    with pytest.raises(AttributeError, match="no attribute 'Clinet'"):
        _ = duostore.Clinet  # type: ignore[attr-defined]


def test_the_messages_load_neither_grpc_nor_the_client() -> None:
    program = "import sys; from duostore.v1 import data_access_pb2, errors_pb2; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.split()
    assert "duostore.v1.data_access_pb2" in loaded
    assert not {"grpc", "duostore.client", "duostore.errors", "duostore.values"} & set(loaded)


def test_the_requirements_are_those_of_the_generated_stubs() -> None:
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    assert f"grpcio>={data_access_pb2_grpc.GRPC_GENERATED_VERSION}" in project["dependencies"]
    source = (CLIENT / "duostore" / "v1" / "entity_pb2.py").read_text()
    found = re.search(r"# Protobuf Python Version: (\S+)", source)
    assert found is not None
    assert f"protobuf>={found[1]}" in project["dependencies"]


def test_the_caller_s_channel_options_count_before_the_client_s_own() -> None:
    ours = dict(channel_options([]))
    theirs = channel_options([("grpc.keepalive_time_ms", 60_000), ("a.b", 1)])
    assert ours["grpc.keepalive_time_ms"] == 30_000
    assert ours["grpc.max_receive_message_length"] == 128 * 2**20
    assert dict(theirs) == {**ours, "grpc.keepalive_time_ms": 60_000, "a.b": 1}
    assert len(theirs) == len(dict(theirs))
    assert "grpc.service_config" not in ours, "what is tried again is decided in one place"


def test_a_caller_is_what_the_server_takes() -> None:
    taken = {c for c in map(chr, range(0x250)) if callers._ACCEPTABLE["x-caller"].fullmatch(c)}
    assert {c for c in map(chr, range(0x250)) if can_call(caller=c)} == taken
    assert can_call(caller="a" * 128)
    assert not can_call(caller="a" * 129)
    assert not can_call(caller="")
    assert not can_call(caller="ann\n")
    with pytest.raises(ValueError, match=r"^caller is 'Zoë'; it may hold letters, .*, 1 to 128$"):
        duostore.Client("127.0.0.1:1", caller="Zoë")
    with pytest.raises(ValueError, match="caller is given twice"):
        duostore.Client("127.0.0.1:1", caller="ann", metadata=[("X-Caller", "bob")])


def can_call(**arguments: Any) -> bool:
    try:
        duostore.Client("127.0.0.1:1", **arguments)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("x-name", "Zoë", "holds other characters than printable ASCII; a name that ends in -bin"),
        ("x-name", "a\nb", "holds other characters"),
        ("x-name", "\x7f", "holds other characters"),
        ("x-name", b"secret", "must be a str, or have a name that ends in -bin"),
        ("x-name", 5, "must be a str"),
        ("x-bin", "secret", "ends in -bin, so that its value must be bytes"),
        ("x name", "secret", "has a name of other characters than a-z 0-9 _ - ."),
        ("", "secret", "has a name of other characters"),
        ("x-\ud800", "secret", "has a name of other characters"),
    ],
)
def test_metadata_that_cannot_be_sent_is_refused_before_anything_is(
    name: str, value: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"metadata {name!r} {problem}")) as raised:
        duostore.Client("127.0.0.1:1", metadata=[("x-good", "~ !"), (name, value)])
    assert "secret" not in str(raised.value)


NOW = datetime(2025, 1, 1, tzinfo=UTC)
ENTITY = duostore.Entity(
    "acme", "proposal", "p1", 3, {"a": [1]}, NOW, NOW, duostore.Store.AURORA, None
)


def test_entities_are_equal_wherever_they_were_read() -> None:
    again = replace(ENTITY, served_from=duostore.Store.CACHE, cached_time=NOW)
    assert again == ENTITY
    assert hash(again) == hash(ENTITY)
    assert replace(ENTITY, version=4) != ENTITY
    assert replace(ENTITY, data={"a": [2]}) != ENTITY


def test_values_survive_pickling() -> None:
    key = ENTITY.key
    for value in (
        ENTITY,
        key,
        duostore.Saved(1, NOW, projected=True),
        duostore.Save("proposal", "p1", {"a": [1]}, if_version=2),
        duostore.Publish("proposal", "p1", 7, if_absent=True),
        duostore.Delete("proposal", "p1", if_version=2),
        duostore.Check("proposal", "p1", 2),
        duostore.Transacted((duostore.Applied(key, 3, NOW),), projected=True),
        duostore.Appended(7, NOW),
        duostore.Snapshot("acme", "proposal", "p1", 7, {"a": [1]}, NOW),
        duostore.QuotaDecision(False, 9, 0, NOW, timedelta(seconds=1)),  # noqa: FBT003 - as named
        duostore.Settled(7, 3, covered=True),
    ):
        assert pickle.loads(pickle.dumps(value)) == value
    assert pickle.loads(pickle.dumps(ENTITY)).served_from is duostore.Store.AURORA


@pytest.mark.parametrize("parts", [(1, "a", ""), ("a", 1, ""), ("a", "b", None), ("a", b"b", "")])
def test_a_key_has_only_strings(parts: tuple[str, str, str]) -> None:
    with pytest.raises(TypeError, match=r"of type \w+; send a str"):
        duostore.Key(*parts)
