"""The service as a whole: one fill for many readers, its processes, and its end."""

from __future__ import annotations

import json
import secrets
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import psutil
import psycopg
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from duostore.v1 import data_access_pb2
from duostore.v1.entity_pb2 import (
    PROJECTION_DONE,
    PROJECTION_PENDING,
    STORE_AURORA,
    STORE_CACHE,
    STORE_DYNAMODB,
)
from duostore_server.storage.dynamodb.tables import create_tables, projection_table
from tests.support.service import CALL_SECONDS, Caller, Service, kill
from tests.support.wait import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

READERS = 500
CHANNELS = 20


def aurora_reads(service: Service) -> float:
    return service.metric("duostore_store_calls_total", store="aurora", op="read")


def test_500_readers_of_one_cold_key_read_aurora_once(
    service: Service, memcached: MemcachedServer, dynamodb_client: DynamoDBClient, caller: Caller
) -> None:
    """C11: over two workers, with the cache empty and nothing projected."""
    entity = secrets.token_hex(8)
    caller.save(entity, {"title": "cold"})
    eventually(service.is_drained, within=20, what="the service is at rest")
    table = projection_table(service.prefix)
    dynamodb_client.delete_item(TableName=table, Key={"pk": {"S": f"#proposal#{entity}"}})
    memcached.flush()
    before = aurora_reads(service)
    with ExitStack() as stack:
        channels = [stack.enter_context(service.channel()) for _ in range(CHANNELS)]
        for channel in channels:
            grpc.channel_ready_future(channel).result(CALL_SECONDS)
        assert service.workers_in_use(CHANNELS) == 2
        stubs = [Caller(channel).stub for channel in channels]
        request = data_access_pb2.GetRequest(key=caller.key(entity))
        calls = [
            stubs[number % CHANNELS].Get.future(request, timeout=CALL_SECONDS)
            for number in range(READERS)
        ]
        answers = [call.result() for call in calls]
    assert {answer.entity.version for answer in answers} == {1}
    assert aurora_reads(service) - before == 1
    # The others waited for the cache; who waited in vain, on a busy machine, read DynamoDB.
    assert sum(answer.receipt.served_from == STORE_AURORA for answer in answers) == 1


def test_an_async_kind_is_projected_in_the_background(service: Service) -> None:
    entity = secrets.token_hex(8)
    with service.channel() as channel:
        caller = Caller(channel, kind="template")
        saved = caller.save(entity, {"n": 1})
        assert saved.projection == PROJECTION_PENDING
        assert caller.get(entity, min_version=saved.version).entity.version == 1
        eventually(service.is_drained, within=20, what="the outbox is empty")
        assert caller.get(entity).receipt.served_from in {STORE_DYNAMODB, STORE_CACHE}


def test_a_saved_version_is_seen_by_every_worker_at_once(service: Service) -> None:
    entity = secrets.token_hex(8)
    with ExitStack() as stack:
        callers = [Caller(stack.enter_context(service.channel())) for _ in range(8)]
        for n in range(1, 41):
            saved = callers[n % 8].save(entity, {"n": n})
            assert saved.projection == PROJECTION_DONE
            assert {caller.get(entity).entity.version for caller in callers} == {n}


def test_processes_that_die_are_replaced(service: Service, caller: Caller) -> None:
    entity = secrets.token_hex(8)
    caller.save(entity, {"n": 1})
    [before] = service.background()
    kill(before)
    eventually(
        lambda: [process.pid for process in service.background() if process.pid != before.pid],
        within=30,
        what="the background process is replaced",
    )
    assert caller.get(entity).entity.version == 1


@pytest.fixture
def own_service(
    postgres: PostgresServer, dynamodb: DynamoDBLocal, memcached: MemcachedServer, tmp_path: Path
) -> Service:
    """A service that the test starts and ends itself."""
    return Service(
        tmp_path,
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
    )


def test_sigterm_lets_calls_finish_and_leaves_nothing_behind(own_service: Service) -> None:
    with own_service as service, ThreadPoolExecutor(4) as pool:
        family = service.family()
        with service.channel() as channel:
            caller = Caller(channel)
            versions: list[int] = []

            def save_until_refused() -> None:
                while True:
                    try:
                        versions.append(caller.save("one", {"n": len(versions)}).version)
                    except grpc.RpcError as error:
                        refused = error
                        break
                codes.append(refused)

            codes: list[grpc.RpcError] = []
            saving = [pool.submit(save_until_refused) for _ in range(4)]
            eventually(lambda: len(versions) > 20, within=20, what="saves are under way")
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 0
            for future in saving:
                future.result()
    assert not any(process.is_running() for process in family)
    assert "Fatal" not in own_service.log.read_text()
    assert "Traceback" not in own_service.log.read_text()
    # Each call was answered, or refused before it did anything.
    assert sorted(versions) == list(range(1, len(versions) + 1))


def test_nothing_outlives_a_supervisor_that_is_killed(own_service: Service) -> None:
    with own_service as service:
        family = service.family()
        kill(family[0])
        eventually(
            lambda: not any(_runs(process) for process in family[1:]),
            within=60,
            what="all of its processes have ended",
        )
        service.process.wait(10)


def test_a_second_signal_ends_all_of_it_at_once(
    own_service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with own_service as service:
        family = service.family()
        assert list(tmp_path.glob("duostore-metrics-*"))
        # Suspended, they do not hear of the first.
        for process in family[1:]:
            process.suspend()
        family[0].terminate()
        eventually(lambda: _logged(service, "stopping"), within=20, what="it is stopping")
        family[0].terminate()
        assert service.process.wait(10) == 128 + signal.SIGTERM
        assert not any(_runs(process) for process in family)
    assert not list(tmp_path.glob("duostore-metrics-*"))


def test_a_file_that_was_spoilt_meanwhile_is_of_no_matter_to_what_runs(
    own_service: Service,
) -> None:
    with own_service as service:
        service.config.write_text("[cache]\nnodes = [not TOML")
        for victim in [*service.workers(), *service.background()]:
            kill(victim)
        eventually(
            lambda: len(service.workers()) == 2 and service.background() and _all_serve(service),
            within=60,
            what="all are replaced",
        )
        with service.channel() as channel:
            assert Caller(channel).save("one", {"n": 1}).projection == PROJECTION_DONE
        assert service.process.poll() is None


def _all_serve(service: Service) -> bool:
    names = ("", "aurora", "dynamodb", "cache")
    try:
        return all(service.health(name) == HealthCheckResponse.SERVING for name in names * 3)
    except grpc.RpcError:
        return False


def test_a_database_that_comes_later_is_used_once_it_is_migrated(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    dynamodb_client: DynamoDBClient,
    memcached: MemcachedServer,
    tmp_path: Path,
) -> None:
    """The log says why Aurora is of no use, and never how it is reached."""
    name, password = f"late_{secrets.token_hex(4)}", secrets.token_hex(16)
    given = conninfo_to_dict(postgres.dsn())
    service = Service(
        tmp_path,
        dsn=make_conninfo("", **{**given, "dbname": name, "password": password}),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
    )
    create_tables(dynamodb_client, prefix=service.prefix, pause=threading.Event().wait)
    service.start()
    try:
        assert service.health("aurora") == HealthCheckResponse.NOT_SERVING
        missing = f'database "{name}" does not exist'
        eventually(lambda: _logged(service, missing), within=20, what="the log says why")
        with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        eventually(lambda: _logged(service, "duostore migrate"), within=20, what="as above")
        assert service.health("aurora") == HealthCheckResponse.NOT_SERVING
        service.run("migrate")
        eventually(
            lambda: service.health("aurora") == HealthCheckResponse.SERVING,
            within=60,
            what="Aurora is used",
        )
    finally:
        service.stop()
    assert password not in service.log.read_text()


def _logged(service: Service, text: str) -> bool:
    return any(
        text in json.dumps(line, ensure_ascii=False).replace('\\"', '"')
        for line in map(json.loads, service.log.read_text().splitlines())
    )


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_service_without_its_schema_says_what_to_do(own_service: Service) -> None:
    refused = own_service.run("serve", check=False)
    assert refused.returncode == 2
    assert "duostore migrate" in refused.stderr


def test_a_second_service_on_the_same_port_is_refused(service: Service) -> None:
    refused = service.run("serve", check=False)
    assert refused.returncode == 2
    assert f"cannot listen on {service.target}" in refused.stderr


def test_a_bad_configuration_is_told_in_full(tmp_path: Path, service: Service) -> None:
    config = tmp_path / "duostore.toml"
    config.write_text('[server]\nworkers = 0\nport = 1\n[kinds."a#b"]\ncache_ttl = 60\n')
    refused = service.run("serve", "--config", str(config), check=False)
    assert refused.returncode == 2
    for key in ("server.workers", "server.port", "aurora.dsn", "dynamodb.region", "cache_ttl"):
        assert key in refused.stderr
    assert "Traceback" not in refused.stderr
