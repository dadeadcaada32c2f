"""The walk-through of docs/evolution.md, step by step, under traffic that believes nothing."""

from __future__ import annotations

import itertools
import random
import re
import secrets
import shlex
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import psutil
import pytest
from google.protobuf.json_format import MessageToDict

from duostore.v1 import entity_pb2
from duostore_server import codec
from duostore_server.access.shapes import Shapes
from duostore_server.config import load
from duostore_server.config import policies as policies_of
from duostore_server.domain.keys import EntityKey
from tests.support.crowd import failure_of
from tests.support.service import Caller, Service, kill
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

ROOT = Path(__file__).parents[2]
TRANSFORM = "language_2.jmespath"
WRITE, READ = "projection_write.language.2", "projection_read.language.2"
KIND = "language"
KEYS = [f"l{number}" for number in range(60)]
CALM = [f"calm{number}" for number in range(40)]
SAVERS = 2
READERS = 3
WORKERS = 2
IN_FORCE_SECONDS = 30.0
# A process that dies again and again is started with more and more time between.
REPLACED_SECONDS = 60.0
# Flags that the walk-through sets, forward and back.
STAGES = 8
T = TypeVar("T")
# Of readers in all, between two steps.
READS_A_STEP = 150
KINDS = f"""
[admin]
open = true
[kinds.language]
cache_ttl = "1h"
projection_version = 2
transforms = {{ 2 = "{TRANSFORM}" }}
"""


@pytest.fixture
def service(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path: Path,
) -> Iterator[Service]:
    """A service of a kind that moves from one projection version to the next."""
    with Service(
        tmp_path,
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
        workers=WORKERS,
        kinds=KINDS,
        sql={TRANSFORM: (ROOT / "examples/proposals/transforms" / TRANSFORM).read_text()},
    ) as running:
        yield running


def commands(heading: str) -> list[list[str]]:
    """Return the commands of a part of the walk-through, without the program's name."""
    text = (ROOT / "docs/evolution.md").read_text(encoding="utf-8")
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    (wanted,) = (each for each in part if each.startswith(f"{heading}\n"))
    blocks = re.findall(r"^```sh\n(.*?)^```$", wanted, re.MULTILINE | re.DOTALL)
    found = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert all(words[0] == "duostore" for words in found)
    return [words[1:] for words in found]


def document(version: int) -> dict[str, Any]:
    """Return what is saved as a version: the name says which one it is."""
    return {"alpha_3": "abc", "name": f"name {version}", "scope": "I", "type": "L"}


def shape_of(entity: entity_pb2.Entity) -> int:
    """Return the shape of an entity, every field of which has to be of its version."""
    data = MessageToDict(entity.data)
    first = document(entity.version)
    if data == first:
        return 1
    name = first["name"]
    second = {
        "codes": {"part_3": "abc"},
        "name": name,
        "names": [name],
        "scope": "I",
        "type": "L",
    }
    assert data == second, f"wrong read of version {entity.version}: {data}"
    return 2


class Traffic:
    """Those who save and read, and hold every answer against what was acknowledged."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.acknowledged: dict[str, int] = {}
        self.reads: Counter[str] = Counter()
        # Which shape a key must have, by what all processes have in force; None in between.
        self.expected: Callable[[str], int] | None = None
        self._over = threading.Event()

    def prepare(self) -> None:
        """Save every key once."""
        with self.service.channel() as channel:
            caller = Caller(channel, kind=KIND)
            for id_ in (*KEYS, *CALM):
                self._save(caller, id_)

    def save(self, mine: list[str]) -> None:
        """Save one's own keys again and again."""
        order = random.Random(mine[0])
        while not self._over.is_set():
            with self.service.channel() as channel:
                caller = Caller(channel, kind=KIND)
                for _ in range(50):
                    self._save(caller, order.choice(mine))

    def _save(self, caller: Caller, id_: str) -> None:
        version = self.acknowledged.get(id_, 0) + 1
        # Of a process that dies nobody knows whether it has saved, unless it is asked again.
        token = secrets.token_hex(8)
        answer = eventually(
            lambda: answered(lambda: caller.save(id_, document(version), idempotency_key=token)),
            within=REPLACED_SECONDS,
            what="a Save is answered",
        )
        assert answer is not None
        assert answer.version == version
        # What is pending may be seen late; it is projected by the time of the next one, or not.
        if answer.projection == entity_pb2.PROJECTION_DONE:
            self.acknowledged[id_] = version
        else:
            self._wait_for(caller, id_, version)

    def _wait_for(self, caller: Caller, id_: str, version: int) -> None:
        def is_seen() -> bool:
            found = answered(lambda: caller.get(id_))
            return found is not None and found.entity.version == version

        eventually(is_seen, within=IN_FORCE_SECONDS, what="what was pending is seen")
        self.acknowledged[id_] = version

    def read(self, seed: int) -> None:
        """Read in every way there is."""
        order = random.Random(seed)
        while not self._over.is_set():
            with self.service.channel() as channel:
                caller = Caller(channel, kind=KIND)
                for _ in range(50):
                    self._read(caller, order)

    def _read(self, caller: Caller, order: random.Random) -> None:
        way = order.choice(["get", "get", "strong", "min_version", "batch"])
        ids = order.sample([*KEYS, *CALM], 10 if way == "batch" else 1)
        expected = self.expected
        floors = {id_: self.acknowledged[id_] for id_ in ids}
        options: dict[str, Any] = {"strong": True} if way == "strong" else {}
        if way == "min_version":
            options = {"min_version": floors[ids[0]]}
        entities = answered(
            lambda: (
                list(caller.batch_get(ids).entities)
                if way == "batch"
                else [caller.get(ids[0], **options).entity]
            )
        )
        if entities is None:
            return
        assert len(entities) == len(ids)
        for entity in entities:
            id_ = entity.key.id
            assert entity.version >= floors[id_], f"stale by {way}: {id_}"
            shape = shape_of(entity)
            # Unless a step was taken meanwhile.
            if expected is not None and expected is self.expected:
                assert shape == expected(id_), f"{way} of {id_} in shape {shape}"
        self.reads[way] += 1

    def step(self, shapes: Shapes, act: Callable[[], object]) -> None:
        """Take a step, wait until it is in force everywhere, and have it read for a while."""
        self.expected = None
        act()
        expected = {id_: shapes.to_read(EntityKey("", KIND, id_)) for id_ in (*KEYS, *CALM)}
        eventually(
            lambda: self._all_read(expected),
            within=IN_FORCE_SECONDS,
            what="all processes read the shapes that the flags say",
        )
        self.expected = expected.__getitem__
        self._read_enough()

    def replace(self, die: Callable[[psutil.Process], None]) -> None:
        """Have the serving process die that has served longest, and another read in its place.

        That one answers as all others do, from its first answer on.
        """
        before = {process.pid for process in self.service.serving()}
        assert len(before) == WORKERS
        die(min(self.service.serving(), key=psutil.Process.create_time))
        eventually(
            lambda: len({each.pid for each in self.service.serving()} - before) == 1,
            within=REPLACED_SECONDS,
            what="the process is replaced",
        )
        eventually(
            lambda: len(self.service.serving()) == WORKERS,
            within=REPLACED_SECONDS,
            what="the process is gone",
        )
        self._read_enough()

    def _read_enough(self) -> None:
        enough = self.reads.total() + READS_A_STEP
        eventually(
            lambda: self.reads.total() >= enough, within=IN_FORCE_SECONDS, what="enough was read"
        )

    def _all_read(self, expected: dict[str, int]) -> bool:
        # Of several connections, so that each worker is asked.
        return all(self._shapes(expected) == expected for _ in range(6))

    def _shapes(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the shapes of what a process answers."""
        with self.service.channel() as channel:
            found = answered(lambda: Caller(channel, kind=KIND).batch_get(ids))
        return {} if found is None else {each.key.id: shape_of(each) for each in found.entities}

    def going_on(self, meanwhile: Callable[[], None]) -> None:
        """Save and read while something is done; raise what anybody met."""
        with ThreadPoolExecutor(SAVERS + READERS) as pool:
            working = [pool.submit(self.save, KEYS[n::SAVERS]) for n in range(SAVERS)]
            working += [pool.submit(self.read, n) for n in range(READERS)]
            try:
                meanwhile()
            finally:
                self._over.set()
            for each in working:
                each.result()


def answered(call: Callable[[], T]) -> T | None:
    """Return the answer to a call; None if it failed in a way that passes."""
    try:
        return call()
    except grpc.RpcError as error:
        if not failure_of(error).is_passing:
            raise
        return None


@pytest.mark.timeout(600)
def test_the_walk_through_answers_no_reader_wrongly_forward_and_back(service: Service) -> None:
    settings = load(service.config, {}, serving=True)
    flags: dict[str, str | int] = {WRITE: "old", READ: 0}
    shapes = Shapes(policies_of(settings), codec.encode, flags.__getitem__)
    traffic = Traffic(service)
    traffic.prepare()
    taken: list[list[str]] = []
    # In turn they end in order, and are killed.
    deaths = itertools.cycle((kill, psutil.Process.terminate))
    replaced = 0

    def take(command: list[str]) -> None:
        if command[:2] == ["flag", "set"]:
            name, value = command[2:]
            assert name in flags
            flags[name] = int(value) if value.isdigit() else value
        traffic.step(shapes, lambda: service.run(*command))
        taken.append(command)

    def take_and_replace(command: list[str]) -> None:
        nonlocal replaced
        take(command)
        if command[:2] == ["flag", "set"]:
            traffic.replace(next(deaths))
            replaced += 1

    def walk() -> None:
        traffic.step(shapes, lambda: service.run("flag", "list"))
        for command in (*commands("Forward"), *commands("Back")):
            take_and_replace(command)
        # In a hurry, with no step between: wrong in order, and right in what is answered.
        take(["flag", "set", READ, "100"])
        take(["flag", "set", WRITE, "new"])
        take(["flag", "set", READ, "0"])
        take(["flag", "set", WRITE, "old"])

    traffic.going_on(walk)
    assert len(taken) == len(commands("Forward")) + len(commands("Back")) + 4
    assert min(traffic.reads.values()) > READS_A_STEP
    assert replaced == STAGES
    shares = {shapes.to_read(EntityKey("", KIND, id_)) for id_ in KEYS}
    assert shares == {1}
    service.run("check", "--kind", KIND, "--all", "--repair")
    service.run("check", "--kind", KIND, "--all")
