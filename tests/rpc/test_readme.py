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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc

from duostore.v1 import data_access_pb2
from tests.support.grpcurl import method_of
from tests.support.in_process import in_process
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.in_process import InProcess
    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIG = ROOT / "examples" / "proposals" / "duostore.toml"
ADDRESS = "127.0.0.1:50051"
PROGRAM = ".venv/bin/duostore"
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
# Nothing is left to be done in the background.
AT_REST = """
SELECT NOT EXISTS (SELECT FROM duostore.source_change)
    AND NOT EXISTS (SELECT FROM duostore.stale)
    AND NOT EXISTS (SELECT FROM duostore.outbox)
"""


@dataclass(frozen=True)
class Example:
    """Commands of a shell with one call of the service, and what they are said to print."""

    commands: str
    form: str
    printed: str

    @property
    def method(self) -> str:
        """The RPC, if it is called by grpcurl, else the command."""
        (name,) = re.findall(
            rf"{re.escape(ADDRESS)}\s+([\w.]+/\w+)|^{re.escape(PROGRAM)} (\w+)",
            self.commands,
            re.MULTILINE,
        )
        return "".join(name)

    @property
    def is_refused(self) -> bool:
        return self.printed.startswith("ERROR:")


EXAMPLES = [
    Example(*found)
    for found in re.findall(r"(?ms)^```sh\n([^`]*)^```\n+```(json|text)\n(.*?)^```", README)
]
ANSWERS = [example for example in EXAMPLES if example.form == "json"]


@pytest.fixture
def demo(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path: Path,
) -> Iterator[InProcess]:
    """The demo deployment, with nothing saved yet."""
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
        yield running


def test_there_is_an_example_of_every_call_and_each_is_looked_at() -> None:
    service = data_access_pb2.DESCRIPTOR.services_by_name["DataAccess"]
    shown = {example.method for example in EXAMPLES}
    assert {f"{service.full_name}/{method.name}" for method in service.methods} < shown
    by_grpcurl = [example for example in EXAMPLES if "/" in example.method]
    assert len(by_grpcurl) == README.count("grpcurl -plaintext")


@pytest.mark.parametrize("example", ANSWERS, ids=lambda example: example.method)
def test_what_is_printed_is_the_json_form_of_an_answer(example: Example) -> None:
    answer = GetMessageClass(method_of(example.method).output_type)()
    json_format.Parse(example.printed, answer)
    assert json_format.MessageToDict(answer) == json.loads(example.printed)


def test_the_commands_print_what_the_readme_says(demo: InProcess, tmp_path: Path) -> None:
    # The first look at the stores may be still to come.
    eventually(lambda: aurora_is_serving(demo.target), within=10, what="health")
    with shell(demo.target, tmp_path) as run, psycopg.connect(demo.dsn, autocommit=True) as aurora:
        for example in EXAMPLES:
            printed = run(example)
            assert general(example, printed) == general(example, example.printed), example.method
            eventually(lambda: is_at_rest(aurora), within=20, what="rest")


def is_at_rest(aurora: psycopg.Connection) -> bool:
    (at_rest,) = aurora.execute(AT_REST).fetchone() or (False,)
    return bool(at_rest)


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


@contextmanager
def shell(target: str, folder: Path) -> Iterator[Callable[[Example], str]]:
    """Give what runs an example as it is written, all in one shell, and returns what it prints."""
    for name, module in (
        ("grpcurl", "tests.support.grpcurl"),
        ("duostore", "duostore_server.cli.main"),
    ):
        stand_in = folder / name
        arguments = [sys.executable, "-m", module, *([target] if name == "grpcurl" else [])]
        stand_in.write_text(f'#!/bin/sh\nexec {shlex.join(arguments)} "$@"\n', "utf-8")
        stand_in.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    errors = folder / "errors"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            ["sh", "-eu"],
            cwd=ROOT,
            env=os.environ | {"PATH": path, "DUOSTORE_TARGET": target},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as running,
    ):
        commands_to, answers_from = running.stdin, running.stdout
        assert commands_to is not None
        assert answers_from is not None

        def run(example: Example) -> str:
            commands = example.commands.replace(PROGRAM, "duostore")
            if example.is_refused:
                commands = f"if {{ {commands}}} 2>&1; then exit 1; fi\n"
            commands_to.write(f"{commands}printf '\\0'\n".encode())
            commands_to.flush()
            printed = b""
            while not printed.endswith(b"\0"):
                more = os.read(answers_from.fileno(), 65536)
                assert more, f"{example.commands}{errors.read_text('utf-8')}"
                printed += more
            return printed[:-1].decode()

        yield run


def general(example: Example, printed: str) -> Any:
    """Return what is printed with a word in place of what is another one each time."""
    if example.form == "json":
        return _general(json.loads(printed))
    # CSV has the ends of lines that its standard wants.
    return TIME.sub("a time", printed).splitlines()


def _general(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: word if (word := word_for(name, item)) else _general(item)
            for name, item in value.items()
        }
    if isinstance(value, str) and TIME.fullmatch(value):
        return "a time"
    return [_general(item) for item in value] if isinstance(value, list) else value


def word_for(name: str, item: Any) -> str:
    return "a reservation" if name == "reservation" and re.fullmatch("[0-9a-f]{48}", item) else ""


def test_the_python_example_runs(demo: InProcess) -> None:
    (code,) = re.findall(r"(?ms)^```python\n(.*?)^```", README)
    assert code.count(ADDRESS) == 1
    names: dict[str, Any] = {}
    exec(code.replace(ADDRESS, demo.target), names)
    assert names["saved"].projected
    assert (names["proposal"].version, names["proposal"].data["status"]) == (1, "draft")
    with names["duostore"].Client(demo.target) as client:
        assert client.get("proposal", "p1").data["status"] == "published"
    assert names["titles"] == ["A new roof"]
    assert names["ids"] == ["p1"]


def test_no_subdivision_is_loaded_before_the_one_that_it_is_a_part_of(tmp_path: Path) -> None:
    (code,) = re.findall(r"(?ms)-c '(import json[^']*subdivisions[^']*)'", README)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    lines = (tmp_path / "subdivisions.jsonl").read_text("utf-8").splitlines()
    subdivisions = {found["code"]: found for found in map(json.loads, lines)}
    places = {code: place for place, code in enumerate(subdivisions)}
    distances = [
        places[code] - places[found["parent"]]
        for code, found in subdivisions.items()
        if "parent" in found
    ]
    assert len(subdivisions) > 5_000
    # A load has a few lines under way at a time.
    assert min(distances) > 100
    assert len((tmp_path / "countries.jsonl").read_text("utf-8").splitlines()) > 200
