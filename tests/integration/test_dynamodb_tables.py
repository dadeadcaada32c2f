"""How the tables come to be, on a new deployment and on one that has some of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.embedded.dynamodb import EmbeddedDynamoDB
from duostore_server.storage.dynamodb.tables import (
    counter_table,
    create_tables,
    idempotency_table,
    missing_tables,
    projection_table,
    snapshot_table,
)
from tests.support.dynamodb_traffic import Traffic, operation, refused
from tests.support.snapshot_engines import client_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal


@pytest.fixture(scope="module")
def embedded_client() -> Iterator[DynamoDBClient]:
    with EmbeddedDynamoDB() as server, closing(client_of(server.endpoint_url)) as client:
        yield client


@pytest.fixture(params=["dynamodb_local", "embedded"])
def client(request: pytest.FixtureRequest, dynamodb: DynamoDBLocal) -> Iterator[DynamoDBClient]:
    if request.param == "embedded":
        yield request.getfixturevalue("embedded_client")
        return
    with closing(client_of(dynamodb.endpoint_url)) as client:
        yield client


def never(_seconds: float) -> None:
    raise AssertionError("nothing is to be waited for")


def names(prefix: str) -> list[str]:
    return [
        projection_table(prefix),
        snapshot_table(prefix),
        idempotency_table(prefix),
        counter_table(prefix),
    ]


def test_all_tables_are_created_once(client: DynamoDBClient, table_prefix: str) -> None:
    assert names("x_") == ["x_projection", "x_snapshot", "x_idempotency", "x_counter"]
    assert missing_tables(client, prefix=table_prefix) == names(table_prefix)
    seen: list[tuple[str, str]] = []
    created = create_tables(
        client,
        prefix=table_prefix,
        pause=never,
        progress=lambda table, status: seen.append((table, status)),
    )
    assert created == names(table_prefix)
    assert seen == [(name, "ACTIVE") for name in created]
    assert missing_tables(client, prefix=table_prefix) == []
    assert create_tables(client, prefix=table_prefix, pause=never) == []


def test_what_is_no_longer_used_is_swept(client: DynamoDBClient, table_prefix: str) -> None:
    create_tables(client, prefix=table_prefix, pause=never)
    swept = {}
    for name in names(table_prefix):
        held = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
        swept[name] = (held["TimeToLiveStatus"], held.get("AttributeName"))
    assert swept == {
        projection_table(table_prefix): ("DISABLED", None),
        snapshot_table(table_prefix): ("ENABLED", "sweep_time"),
        idempotency_table(table_prefix): ("ENABLED", "sweep_time"),
        counter_table(table_prefix): ("ENABLED", "sweep_time"),
    }


def test_a_deployment_of_the_first_release_is_completed(
    client: DynamoDBClient, table_prefix: str
) -> None:
    projection = projection_table(table_prefix)
    client.create_table(
        TableName=projection,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
    )
    item = {"pk": {"S": "acme#proposal#p-1"}, "version": {"N": "1"}}
    client.put_item(TableName=projection, Item=item)
    assert missing_tables(client, prefix=table_prefix) == names(table_prefix)[1:]
    assert create_tables(client, prefix=table_prefix, pause=never) == names(table_prefix)[1:]
    held = client.get_item(TableName=projection, Key={"pk": item["pk"]}, ConsistentRead=True)
    assert held["Item"] == item


def test_a_creation_that_broke_off_is_completed(client: DynamoDBClient, table_prefix: str) -> None:
    def refuse(request: AWSPreparedRequest) -> AWSResponse | None:
        if operation(request) == "UpdateTimeToLive":
            return refused(request, "AccessDeniedException")
        return None

    with Traffic(client).watched() as traffic:
        traffic.tamper = refuse
        with pytest.raises(StoreUnavailableError):
            create_tables(client, prefix=table_prefix, pause=never)
    assert create_tables(client, prefix=table_prefix, pause=never) == []
    for name in names(table_prefix)[1:]:
        held = client.describe_time_to_live(TableName=name)["TimeToLiveDescription"]
        assert held["TimeToLiveStatus"] == "ENABLED"


def test_a_table_that_is_swept_by_another_attribute_is_an_error(
    dynamodb: DynamoDBLocal, table_prefix: str
) -> None:
    with closing(client_of(dynamodb.endpoint_url)) as client:
        name = idempotency_table(table_prefix)
        client.create_table(
            TableName=name,
            BillingMode="PAY_PER_REQUEST",
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        )
        client.update_time_to_live(
            TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": "other"}
        )
        with pytest.raises(StoreUnavailableError):
            create_tables(client, prefix=table_prefix, pause=never)


def test_two_may_create_them_at_once(dynamodb: DynamoDBLocal, table_prefix: str) -> None:
    with closing(client_of(dynamodb.endpoint_url)) as client, ThreadPoolExecutor(4) as pool:
        creating = [
            pool.submit(create_tables, client, prefix=table_prefix, pause=never) for _ in range(4)
        ]
        created = [name for future in creating for name in future.result()]
    assert sorted(created) == sorted(names(table_prefix))


def test_heads_are_indexed_by_when_they_are_due(client: DynamoDBClient, table_prefix: str) -> None:
    create_tables(client, prefix=table_prefix, pause=never)
    table = client.describe_table(TableName=snapshot_table(table_prefix))["Table"]
    (index,) = table["GlobalSecondaryIndexes"]
    assert index["IndexName"] == "dirty"
    assert index["Projection"] == {"ProjectionType": "KEYS_ONLY"}
    assert [part["AttributeName"] for part in index["KeySchema"]] == ["dirty_shard", "due_time"]
    assert [part["AttributeName"] for part in table["KeySchema"]] == ["pk", "sk"]
