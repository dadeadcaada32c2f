"""The examples of the README, run in their order against the demo deployment."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from duostore.v1 import data_access_pb2
from tests.support.in_process import in_process
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import MethodDescriptor
    from google.protobuf.message import Message

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

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


@pytest.fixture
def target(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path: Path,
) -> Iterator[str]:
    """The address of the demo deployment, with nothing saved yet."""
    name = f"t{secrets.token_hex(4)}"
    demo = tmp_path / "proposals"
    shutil.copytree(CONFIG.parent, demo)
    config = demo / CONFIG.name
    text = config.read_text(encoding="utf-8")
    # The one part of it that others on the same memcached share.
    assert text.count('namespace = "proposals"') == 1
    config.write_text(text.replace('namespace = "proposals"', f'namespace = "{name}"'), "utf-8")
    with in_process(
        config,
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"{name}_",
        node=memcached.address,
    ) as running:
        yield running.target


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
    assert (names["proposal"].version, names["proposal"].data["status"]) == (1, "draft")
    with names["duostore"].Client(target) as client:
        assert client.get("proposal", "p1").data["status"] == "published"
