"""Real data on real stores: the languages of ISO 639-3, loaded and read back from each tier."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pycountry
import pytest

from duostore.v1 import data_access_pb2
from duostore.v1.entity_pb2 import STORE_AURORA, STORE_CACHE, STORE_DYNAMODB
from duostore_server import codec
from duostore_server.domain.documents import normalized
from duostore_server.storage.dynamodb.tables import create_tables, projection_table
from tests.support.service import CALL_SECONDS, Caller, Service
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from duostore.v1 import entity_pb2
    from tests.support.servers import DynamoDBLocal, MemcachedServer

SOURCE = Path(pycountry.DATABASE_DIR, "iso639-3.json")
TABLES = "languages_"


@pytest.fixture(scope="module")
def languages() -> dict[str, dict[str, Any]]:
    """The input, by code."""
    entries = json.loads(SOURCE.read_text())["639-3"]
    return {entry["alpha_3"]: entry for entry in entries}


# This is about what each tier holds, and not about stores that are late on a busy machine.
CALM = """
[projector]
claim = "9s"
[kinds.language]
cache_ttl = "1h"
"""


@pytest.fixture(scope="module")
def language_service(
    postgres: Any,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    with Service(
        tmp_path_factory.mktemp("languages"),
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=TABLES,
        node=memcached.address,
        kinds=CALM,
        # One fill that is late would shut the node off, and hundreds after it would be passed over.
        cache_timeout="3s",
        dynamodb_timeout="5s",
    ) as service:
        yield service


def read_all(
    service: Service, languages: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], set[int]]:
    """Return every language as it is read, and the stores that served them.

    Every tenth is read by Get, whose receipt is its own; the others in batches, whose
    receipt names the slowest store.
    """
    codes = list(languages)
    with service.channel() as one, service.channel() as two, ThreadPoolExecutor(4) as pool:
        callers = [Caller(one, kind="language"), Caller(two, kind="language")]

        def get(code: str) -> tuple[list[entity_pb2.Entity], int]:
            answer = callers[hash(code) % 2].get(code)
            return [answer.entity], answer.receipt.served_from

        def batch_get(batch: list[str]) -> tuple[list[entity_pb2.Entity], int]:
            keys = [callers[0].key(code) for code in batch]
            request = data_access_pb2.BatchGetRequest(keys=keys)
            answer = callers[hash(batch[0]) % 2].stub.BatchGet(request, timeout=CALL_SECONDS)
            assert not answer.missing
            return list(answer.entities), answer.receipt.served_from

        rest = [code for number, code in enumerate(codes) if number % 10]
        answers = [
            *pool.map(get, codes[::10]),
            *pool.map(batch_get, [rest[n : n + 200] for n in range(0, len(rest), 200)]),
        ]
    read = {
        entity.key.id: normalized(codec.plain(entity.data))
        for entities, _ in answers
        for entity in entities
    }
    return read, {store for _, store in answers}


@pytest.mark.timeout(600)
def test_every_language_is_read_back_from_each_tier(
    language_service: Service,
    languages: dict[str, dict[str, Any]],
    memcached: MemcachedServer,
    dynamodb_client: DynamoDBClient,
    tmp_path: Path,
) -> None:
    assert len(languages) > 7_900
    lines = tmp_path / "languages.jsonl"
    lines.write_text("".join(f"{json.dumps(entry)}\n" for entry in languages.values()))
    loaded = language_service.run(
        "load", str(lines), "--kind", "language", "--id", "alpha_3", "--json"
    )
    assert json.loads(loaded.stdout)["saved"] == len(languages)

    # The projector busts what it brings, also of rows that are done meanwhile; the first pass
    # after it fills the cache.
    eventually(language_service.is_drained, within=60, what="the outbox is empty")
    rounds = partial(language_service.metric, "duostore_background_rounds_total", work="projector")
    before = rounds()
    eventually(lambda: rounds() > before, within=60, what="what the projector was at is done")
    read_all(language_service, languages)
    assert read_all(language_service, languages) == (languages, {STORE_CACHE})

    memcached.flush()
    assert read_all(language_service, languages) == (languages, {STORE_DYNAMODB})

    memcached.flush()
    dynamodb_client.delete_table(TableName=projection_table(TABLES))
    create_tables(dynamodb_client, prefix=TABLES, pause=lambda _: None)
    assert read_all(language_service, languages) == (languages, {STORE_AURORA})

    # That pass has projected every one of them again.
    memcached.flush()
    assert read_all(language_service, languages) == (languages, {STORE_DYNAMODB})
