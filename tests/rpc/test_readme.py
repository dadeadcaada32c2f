"""The examples of the README, run in their order against the demo deployment."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from duostore.v1 import data_access_pb2
from tests.support.grpcurl import method_of
from tests.support.in_process import in_process
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = ROOT / "examples" / "proposals" / "duostore.toml"
ADDRESS = "127.0.0.1:50051"


@dataclass(frozen=True)
class Example:
    """Commands of a shell with one call by grpcurl, and what they are said to print."""

    commands: str
    printed: str

    @property
    def method(self) -> str:
        (name,) = re.findall(rf"{re.escape(ADDRESS)}\s+([\w.]+/\w+)", self.commands)
        return str(name)


EXAMPLES = [
    Example(commands, printed)
    for commands, printed in re.findall(r"(?ms)^```sh\n([^`]*)^```\n+```json\n(.*?)^```", README)
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
    service = data_access_pb2.DESCRIPTOR.services_by_name["DataAccess"]
    shown = {example.method for example in EXAMPLES}
    assert {f"{service.full_name}/{method.name}" for method in service.methods} < shown
    assert len(EXAMPLES) == README.count("grpcurl -plaintext")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.method)
def test_what_is_printed_is_the_json_form_of_an_answer(example: Example) -> None:
    answer = GetMessageClass(method_of(example.method).output_type)()
    json_format.Parse(example.printed, answer)
    assert json_format.MessageToDict(answer) == json.loads(example.printed)


def test_the_commands_print_what_the_readme_says(target: str, tmp_path: Path) -> None:
    # The first look at the stores may be still to come.
    eventually(lambda: aurora_is_serving(target), within=10, what="health")
    printed = run_in_one_shell([example.commands for example in EXAMPLES], target, tmp_path)
    for example, text in zip(EXAMPLES, printed, strict=True):
        assert general(json.loads(text)) == general(json.loads(example.printed)), example.method


def aurora_is_serving(target: str) -> bool:
    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service="aurora"), timeout=10)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def run_in_one_shell(examples: list[str], target: str, folder: Path) -> list[str]:
    """Return what each of the examples printed, run as written by one shell."""
    grpcurl = folder / "grpcurl"
    stand_in = shlex.join([sys.executable, "-m", "tests.support.grpcurl", target])
    grpcurl.write_text(f'#!/bin/sh\nexec {stand_in} "$@"\n', "utf-8")
    grpcurl.chmod(0o755)
    done = subprocess.run(
        ["sh", "-eu", "-c", "printf '\\0'\n".join(examples)],
        cwd=ROOT,
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\0")


def general(value: Any) -> Any:
    """Return a JSON value with a word in place of what is another one each time."""
    if isinstance(value, dict):
        return {
            name: word if (word := word_for(name, item)) else general(item)
            for name, item in value.items()
        }
    return [general(item) for item in value] if isinstance(value, list) else value


def word_for(name: str, item: Any) -> str:
    if name.endswith("Time"):
        return "a time"
    return "a reservation" if name == "reservation" and re.fullmatch("[0-9a-f]{48}", item) else ""


def test_the_python_example_runs(target: str) -> None:
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```", README)
    assert code.count(ADDRESS) == 1
    names: dict[str, Any] = {}
    exec(code.replace(ADDRESS, target), names)
    assert names["saved"].projected
    assert (names["proposal"].version, names["proposal"].data["status"]) == (1, "draft")
    with names["duostore"].Client(target) as client:
        assert client.get("proposal", "p1").data["status"] == "published"
