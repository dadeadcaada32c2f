"""The examples of the README, run against the demo deployment on stores of this process."""

from __future__ import annotations

import json
import re
import shlex
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from duostore.v1 import data_access_pb2
from duostore_server.bootstrap import Stores, serving
from duostore_server.config import load
from duostore_server.domain.errors import Store
from duostore_server.storage.cache.memory import MemoryCache
from duostore_server.storage.dynamodb.projections import direct_projections
from duostore_server.storage.dynamodb.tables import create_tables
from duostore_server.telemetry.metrics import Metrics
from tests.support.fake_authority import FakeAuthority
from tests.support.ports import free_port
from tests.support.simulated_dynamodb import SimulatedDynamoDB
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from duostore_server.domain.deadline import Deadline

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = ROOT / "examples" / "proposals" / "duostore.toml"
ADDRESS = "127.0.0.1:50051"

# Two implementations of descriptors share no type that mypy knows.
SERVICES: dict[str, Any] = {
    service.full_name: service
    for service in (
        data_access_pb2.DESCRIPTOR.services_by_name["DataAccess"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
    )
}


@dataclass(frozen=True)
class Example:
    """A grpcurl command and what it is said to print."""

    service: str
    method: MethodDescriptor
    request: Message
    printed: Any

    def ask(self, channel: grpc.Channel) -> Any:
        """Send the request; return the answer as grpcurl prints it."""
        response_class = GetMessageClass(self.method.output_type)
        call = channel.unary_unary(
            f"/{self.service}/{self.method.name}",
            type(self.request).SerializeToString,
            response_class.FromString,
        )
        return json_format.MessageToDict(call(self.request, timeout=10))


def read(command: str, printed: str) -> Example:
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["grpcurl", "-plaintext", "-d"]
    body, address, name = words[3:]
    assert address == ADDRESS
    service, _, method_name = name.partition("/")
    method = SERVICES[service].methods_by_name[method_name]
    request = json_format.Parse(body, GetMessageClass(method.input_type)())
    response = json_format.Parse(printed, GetMessageClass(method.output_type)())
    assert json_format.MessageToDict(response) == json.loads(printed)
    return Example(service, method, request, json.loads(printed))


EXAMPLES = [
    read(command, printed)
    for command, printed in re.findall(
        r"(?ms)^```sh\n(grpcurl .*?)^```\n+```json\n(.*?)^```", README
    )
]


class Answering:
    """A probe of a store that answers."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def ping(self, deadline: Deadline) -> None:
        deadline.bound(1.0)


@pytest.fixture
def target() -> Iterator[str]:
    """The address of the demo deployment, with nothing saved yet."""
    address = f"127.0.0.1:{free_port()}"
    settings = load(CONFIG, {"DUOSTORE__SERVER__ADDRESS": address})
    database = SimulatedDynamoDB()
    create_tables(database.client, prefix="", pause=never)
    authority = FakeAuthority()
    stores = Stores(
        authority=authority,
        outbox=authority,
        projections=direct_projections(
            database.client, prefix="", unreadable=never, pause=never, clock=time.monotonic
        ),
        cache=MemoryCache(),
        probes=tuple(Answering(store) for store in Store),
    )
    with serving(settings, stores, Metrics(CollectorRegistry())):
        yield address


def never(*_: object) -> None:
    raise AssertionError("there is nothing to wait for, and nothing that cannot be read")


def test_there_is_an_example_of_every_call_and_each_is_looked_at() -> None:
    shown = {(example.service, example.method.name) for example in EXAMPLES}
    (service, *_) = SERVICES.values()
    assert {(service.full_name, method.name) for method in service.methods} < shown
    assert len(EXAMPLES) == README.count("grpcurl -plaintext")


def test_grpcurl_prints_what_the_readme_says(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        for example in EXAMPLES:
            if example.service == "grpc.health.v1.Health":
                # The first look at the stores may be still to come.
                eventually(partial(is_printed, channel, example), within=10, what="health")
            else:
                answer = timeless(example.ask(channel))
                assert answer == timeless(example.printed), example.method.name


def is_printed(channel: grpc.Channel, example: Example) -> bool:
    try:
        return bool(example.ask(channel) == example.printed)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return False


def timeless(value: Any) -> Any:
    """Return a JSON value with a word in place of each time."""
    if isinstance(value, dict):
        return {
            name: "a time" if name.endswith("Time") else timeless(item)
            for name, item in value.items()
        }
    return [timeless(item) for item in value] if isinstance(value, list) else value


def test_the_python_example_runs(target: str) -> None:
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```", README)
    assert code.count(ADDRESS) == 1
    names: dict[str, Any] = {}
    exec(code.replace(ADDRESS, target), names)
    assert names["saved"].projected
    assert names["proposal"].version == 1
