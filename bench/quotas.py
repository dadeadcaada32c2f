"""Quota on one hot subject, against a conditional update of one item by boto3."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count, repeat
from typing import TYPE_CHECKING, Final

from botocore.exceptions import ClientError
from prometheus_client import CollectorRegistry

from bench.callers import call_for, of_this_process
from bench.contest import Contest, Side
from bench.deployment import EACH, HOT, QUOTAS, SPENT
from bench.drivers import best_driver
from bench.figures import BenchError
from bench.machine import cores, cpu_seconds
from duostore.v1 import data_access_pb2, data_access_pb2_grpc
from duostore_server import bootstrap
from duostore_server.access.limits import LimitsInForce
from duostore_server.config import load, quotas
from duostore_server.domain.deadline import Deadline
from duostore_server.domain.errors import Store
from duostore_server.domain.quotas import CounterKey, Mode
from duostore_server.storage.dynamodb.errors import CONDITION_FAILED, error_code
from duostore_server.storage.dynamodb.tables import counter_table
from duostore_server.telemetry.metrics import Metrics
from duostore_server.use_cases import Quoting
from tests.support.service import CALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from bench.deployment import Deployment
    from bench.drivers import Driver
    from bench.figures import Figures
    from tests.support.service import Service

# As many as the service has threads.
_CALLERS: Final = 16
_LIMIT: Final = 10**9
_METHOD: Final = "Quota"
_STORE_CALLS: Final = "duostore_store_calls_total"
# Of counters. Besides, a denial may have to read one.
_WRITES: Final = ("step_counter", "record_grant", "settle_grant")


@contextmanager
def quota(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of the RPC: units that one worker admits from leases."""
    service = deployment.service
    with _contest_of_rpc(deployment, service, "quota", HOT, "allowed") as contest:
        yield contest


@contextmanager
def quota_cores(deployment: Deployment) -> Iterator[Contest]:
    """Yield the same contest of as many workers as there are cores, as one deploys them."""
    with (
        deployment.another_service(workers=len(cores()), tables=QUOTAS) as service,
        _contest_of_rpc(deployment, service, "quota-cores", HOT, "allowed") as contest,
    ):
        yield contest


@contextmanager
def quota_denied(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of the RPC for a subject that has used up its limit."""
    service = deployment.service
    with _contest_of_rpc(deployment, service, "quota-denied", SPENT, "denied") as contest:
        yield contest


@contextmanager
def quota_leased(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of the use case, with leases and no service around it."""
    with _contest_of_use_case(deployment, "quota-leased", HOT, "with leases") as contest:
        yield contest


@contextmanager
def quota_each(deployment: Deployment) -> Iterator[Contest]:
    """Yield the contest of the use case that debits for each call."""
    with _contest_of_use_case(deployment, "quota-each", EACH, "lease = 0") as contest:
        yield contest


def decided(service: Service, name: str, outcome: str) -> float:
    """Return how many calls of a quota had an outcome."""
    return service.metric("duostore_quota_decisions_total", quota=name, outcome=outcome)


def counter_writes(service: Service) -> float:
    """Return how many writes of counters the service has asked of DynamoDB."""
    return sum(service.metric(_STORE_CALLS, store=Store.DYNAMODB.value, op=op) for op in _WRITES)


@contextmanager
def _contest_of_rpc(
    deployment: Deployment, service: Service, name: str, quota: str, outcome: str
) -> Iterator[Contest]:
    subject = secrets.token_hex(4)
    request = data_access_pb2.QuotaRequest(quota=quota, subject=subject)
    with (
        best_driver() as driver,
        service.channel() as channel,
        deployment.plain_client(_CALLERS) as client,
    ):
        # The first call of one that is spent is allowed.
        data_access_pb2_grpc.DataAccessStub(channel).Quota(request, timeout=CALL_SECONDS)
        message = request.SerializeToString()
        yield Contest(
            name,
            f"one subject, {outcome}; workers: {len(service.workers())}; {_CALLERS} calls at a"
            f" time, by {driver.name}, against as many threads of one process; requests are writes"
            " to DynamoDB for a call",
            Side(
                "Quota",
                partial(_of_service, service, driver, message, quota=quota, outcome=outcome),
            ),
            [_updates(client, deployment.prefix, allowed=outcome == "allowed")],
        )


def _of_service(
    service: Service, driver: Driver, message: bytes, seconds: float, *, quota: str, outcome: str
) -> Figures:
    """Call the service; make sure that all calls had this outcome."""
    workers = service.workers()
    before, wrote = decided(service, quota, outcome), counter_writes(service)
    spent = sum(map(cpu_seconds, workers))
    figures = driver.drive(
        service.target, message, None, at_a_time=_CALLERS, seconds=seconds, method=_METHOD
    )
    calls = figures.per_second * seconds
    made = decided(service, quota, outcome) - before
    # When the time is over, what is under way is answered and not counted.
    if not calls - 1 <= made <= calls + _CALLERS:
        raise BenchError(f"of {calls:.0f} calls of quota {quota} {made:.0f} were {outcome}")
    return replace(
        figures,
        cpu=(sum(map(cpu_seconds, workers)) - spent) / made,
        sent=(counter_writes(service) - wrote) / made,
    )


@contextmanager
def _contest_of_use_case(
    deployment: Deployment, name: str, quota: str, condition: str
) -> Iterator[Contest]:
    settings = load(deployment.service.config, {}, serving=True)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    key = CounterKey("", quota, secrets.token_hex(4))
    with ExitStack() as stack:
        stores = stack.enter_context(bootstrap.open_stores(settings, metrics))
        client = stack.enter_context(deployment.plain_client(_CALLERS))
        limits = LimitsInForce(quotas(settings), stores.limits)
        quoting = Quoting(settings, stores, metrics, limits)
        stack.callback(quoting.return_leases)

        def ask(_: int) -> None:
            if not quoting.quotas.ask(key, 1, Mode.CONSUME, Deadline.after(CALL_SECONDS)).allowed:
                raise BenchError(f"{key} was denied")

        def asked() -> float:
            return sum(
                sample.value
                for family in registry.collect()
                for sample in family.samples
                if sample.name == _STORE_CALLS and sample.labels["op"] in _WRITES
            )

        def asks(seconds: float) -> Figures:
            before = asked()
            figures = call_for(seconds, _CALLERS, ask, repeat(0))
            return replace(figures, sent=(asked() - before) / (figures.per_second * seconds))

        yield Contest(
            name,
            f"one subject, {condition}; {_CALLERS} threads of one process; requests are"
            " writes to DynamoDB for a call",
            Side("Quotas.ask", asks),
            [_updates(client, deployment.prefix, allowed=True)],
        )


def _updates(client: DynamoDBClient, prefix: str, *, allowed: bool) -> Side:
    """Return what counts on one item, by one conditional update for each call."""
    update = _update(client, prefix, _LIMIT if allowed else 1)
    if not allowed:
        update(0)

    def call(number: int) -> None:
        if update(number) is not allowed:
            raise BenchError(f"an update_item was {'denied' if allowed else 'allowed'}")

    return Side(
        "boto3 update_item",
        lambda seconds: of_this_process(client, _CALLERS, call, count(), seconds),
    )


def _update(client: DynamoDBClient, prefix: str, limit: int) -> Callable[[int], bool]:
    table, pk = counter_table(prefix), f"bench-{secrets.token_hex(4)}"

    def call(_: int) -> bool:
        try:
            client.update_item(
                TableName=table,
                Key={"pk": {"S": pk}},
                UpdateExpression="ADD used :one",
                ConditionExpression="attribute_not_exists(used) OR used < :limit",
                ExpressionAttributeValues={":one": {"N": "1"}, ":limit": {"N": str(limit)}},
                ReturnValues="UPDATED_NEW",
            )
        except ClientError as error:
            if error_code(error) != CONDITION_FAILED:
                raise
            return False
        return True

    return call
