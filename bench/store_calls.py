"""How many calls of the stores each RPC makes, counted by the service's own metrics."""

from __future__ import annotations

import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc
from prometheus_client.parser import text_string_to_metric_families

from bench.deployment import CACHED, KIND, UNCACHED, document, seeded_key
from bench.reads import BATCH_KEYS
from duostore.v1 import data_access_pb2
from tests.support.service import CALL_SECONDS, Caller, struct

if TYPE_CHECKING:
    from bench.deployment import Deployment
    from tests.support.service import Service

# By store, operation and outcome.
Calls: TypeAlias = Counter[tuple[str, str, str]]

_METRIC: Final = "duostore_store_calls_total"
_TIMES: Final = 10
# Done beside the requests, for many of them at a time.
_BESIDE: Final = ("outbox_", "dirty_", "drafts_", "idempotency_purge", "limits_", "put_records")


def store_calls(deployment: Deployment) -> dict[str, dict[tuple[str, str, str], float]]:
    """Return the calls that each RPC makes of each store, by operation and outcome.

    They are the mean of ten RPCs, and whole numbers unless these were not all alike.
    """
    deployment.memcached.flush()
    with deployment.service.channel() as channel:
        caller = Caller(channel, kind=KIND)
        single = [[seeded_key(n).id] for n in range(_TIMES)]
        batches = [
            [seeded_key(n).id for n in range(first, first + BATCH_KEYS)]
            for first in range(_TIMES, _TIMES + _TIMES * BATCH_KEYS, BATCH_KEYS)
        ]
        absent = [[f"absent-{n}"] for n in range(_TIMES)]
        new = [[f"new-{n}"] for n in range(_TIMES)]
        pairs = [[f"one-{n}", f"two-{n}"] for n in range(_TIMES)]
        counted = {}
        for name, call, groups in (
            ("Get, in DynamoDB", _get, single),
            ("Get, cached", _get, single),
            ("Get, absent", _get, absent),
            ("Get, known to be absent", _get, absent),
            ("Save, new", _save, new),
            ("Save, again", _save, new),
            ("Save, with an idempotency key", _save_once, new),
            ("Save, repeated with its key", _save_once, new),
            ("Transact of 2", _transact, pairs),
            ("Snapshot", _snapshot, new),
            ("Snapshot, with an idempotency key", _snapshot_once, new),
            ("GetSnapshot, ListSnapshots", _read_snapshots, new),
            ("Save, of a snapshot", _publish, new),
            ("Query, not cached", _query, new),
            ("Query, cached", _query, new),
            ("Query, never cached", _query_uncached, new),
            (f"BatchGet of {BATCH_KEYS}, in DynamoDB", _batch_get, batches),
            (f"BatchGet of {BATCH_KEYS}, cached", _batch_get, batches),
        ):
            before = _counts(deployment.service)
            for ids in groups:
                call(caller, ids)
            made = _counts(deployment.service) - before
            counted[name] = {what: times / len(groups) for what, times in made.items()}
    return counted


def _get(caller: Caller, ids: list[str]) -> None:
    try:
        caller.get(ids[0])
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise


def _save(caller: Caller, ids: list[str]) -> None:
    caller.save(ids[0], document(0))


def _save_once(caller: Caller, ids: list[str]) -> None:
    caller.save(ids[0], document(0), idempotency_key=f"save-{ids[0]}")


def _transact(caller: Caller, ids: list[str]) -> None:
    data = struct(document(0))
    saves = [data_access_pb2.SaveMutation(key=caller.key(id_), data=data) for id_ in ids]
    caller.transact(*(data_access_pb2.Mutation(save=save) for save in saves))


def _snapshot(caller: Caller, ids: list[str]) -> None:
    caller.snapshot(ids[0], document(0))


def _snapshot_once(caller: Caller, ids: list[str]) -> None:
    caller.snapshot(ids[0], document(0), idempotency_key=f"snapshot-{ids[0]}")


def _read_snapshots(caller: Caller, ids: list[str]) -> None:
    caller.get_snapshot(ids[0])
    caller.list_snapshots(ids[0])


def _publish(caller: Caller, ids: list[str]) -> None:
    request = data_access_pb2.SaveRequest(key=caller.key(ids[0]), from_snapshot=0)
    caller.stub.Save(request, timeout=CALL_SECONDS)


def _query(caller: Caller, ids: list[str]) -> None:
    # Each tenant has results of its own.
    caller.query(CACHED, tenant=ids[0])


def _query_uncached(caller: Caller, _ids: list[str]) -> None:
    caller.query(UNCACHED)


def _batch_get(caller: Caller, ids: list[str]) -> None:
    caller.batch_get(ids)


def _counts(service: Service) -> Calls:
    url = f"http://127.0.0.1:{service.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=CALL_SECONDS) as answer:
        text = answer.read().decode()
    counts: Calls = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            of = sample.labels
            if sample.name == _METRIC and not of["op"].startswith(_BESIDE):
                counts[of["store"], of["op"], of["outcome"]] += int(sample.value)
    return counts
