"""The repairs of docs/operations.md, run as they stand there."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import psycopg
import pytest

import duostore
from tests.support.in_process import in_process
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from types_boto3_dynamodb import DynamoDBClient

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DEMO = ROOT / "examples" / "proposals"
DOCUMENT = {"title": "A new roof", "status": "published"}
PK = "#proposal#p1"


def blocks(title: str, language: str) -> list[str]:
    """Return the code of a section, with no indent."""
    found = re.search(rf"(?ms)^### {re.escape(title)}$(.*?)(?=^##+ |\Z)", OPERATIONS)
    assert found, title
    return [
        re.sub(rf"(?m)^{indent}", "", code)
        for indent, code in re.findall(rf"(?ms)^( *)```{language}\n(.*?)^ *```", found[1])
    ]


@dataclass(frozen=True)
class Deployment:
    """The demo deployment on tables of the test's own, which outlive its servers."""

    config: Path
    dsn: str
    prefix: str
    dynamodb: DynamoDBLocal
    memcached: MemcachedServer

    @contextmanager
    def running(self) -> Iterator[duostore.Client]:
        with (
            in_process(
                self.config,
                dsn=self.dsn,
                endpoint_url=self.dynamodb.endpoint_url,
                prefix=self.prefix,
                node=self.memcached.address,
            ) as service,
            duostore.Client(service.target) as client,
        ):
            yield client

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "local",
            "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb.endpoint_url,
        }

    def run(self, code: str) -> str:
        """Run a script on our tables; return what it says."""
        assert code.count('"duostore_') == 1
        done = subprocess.run(
            [sys.executable, "-c", code.replace('"duostore_', f'"{self.prefix}')],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def drafts(self) -> list[tuple[Any, ...]]:
        return self.sql("SELECT kind, id, sequence, deleted, data FROM duostore.draft ORDER BY id")

    @contextmanager
    def tables(self) -> Iterator[DynamoDBClient]:
        client = boto3.client(
            "dynamodb",
            endpoint_url=self.dynamodb.endpoint_url,
            region_name="local",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        try:
            yield client
        finally:
            client.close()

    def items(self, table: str) -> list[dict[str, Any]]:
        with self.tables() as client:
            found = client.scan(TableName=self.prefix + table, ConsistentRead=True)["Items"]
            return [dict(item) for item in found]

    def records(self) -> set[str]:
        return {item["pk"]["S"] for item in self.items("idempotency")}

    def delete_table(self, table: str) -> None:
        with self.tables() as client:
            client.delete_table(TableName=self.prefix + table)


@pytest.fixture
def deployment(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path: Path,
) -> Deployment:
    name = f"t{secrets.token_hex(4)}"
    shutil.copytree(DEMO, tmp_path / "demo")
    config = tmp_path / "demo" / "duostore.toml"
    text = config.read_text(encoding="utf-8")
    for old, new in (
        # What others on the same memcached share.
        ('namespace = "proposals"', f'namespace = "{name}"'),
        ('consolidate_every = "30s"', 'consolidate_every = "1s"'),
        # One that does not end during a test.
        ('window = "1m"', 'window = "30d"'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    config.write_text(text, "utf-8")
    return Deployment(config, postgres.create_database(), f"{name}_", dynamodb, memcached)


def test_a_change_by_hand_is_seen_and_audited(deployment: Deployment) -> None:
    (statement,) = blocks("A change by hand", "sql")
    with deployment.running() as client:
        client.save("proposal", "p1", DOCUMENT)
        assert client.get("proposal", "p1").version == 1
        deployment.sql(statement)
        eventually(lambda: client.get("proposal", "p1").version == 2, within=10, what="version 2")
        changed = client.get("proposal", "p1")
        assert changed.data == {**DOCUMENT, "status": "draft"}
        client.save("proposal", "p1", DOCUMENT, if_version=2)
    rows = deployment.sql(
        "SELECT version, operation, caller, request_id, time FROM duostore.audit ORDER BY version"
    )
    assert [row[0] for row in rows] == [1, 2, 3]
    assert rows[1] == (2, "save", "manual:NAME", "TICKET", changed.update_time)


def test_after_a_restore_of_aurora_lost_writes_are_applied_and_drafts_come_back(
    deployment: Deployment,
) -> None:
    forget, mark = blocks("When Aurora was restored", "python")
    with deployment.running() as client:
        client.save("proposal", "p1", DOCUMENT, idempotency_key="save-1")
        client.snapshot("proposal", "p1", DOCUMENT, idempotency_key="snapshot-1")
        client.save("editor_state", "u1", {"proposal": "p1"}, idempotency_key="")
        copy, record = "aurora##save-1", "dynamodb##snapshot-1"
        eventually(lambda: deployment.records() == {copy, record}, within=10, what="both records")
        eventually(lambda: has_no_dirty_head(deployment), within=20, what="a head at rest")
        assert deployment.drafts() == [("proposal", "p1", 1, False, DOCUMENT)]
    for table in ("entity", "outbox", "idempotency", "draft"):
        deployment.sql(f"DELETE FROM duostore.{table}")
    deployment.sql("ALTER TABLE duostore.audit DISABLE TRIGGER audit_is_append_only")
    deployment.sql("DELETE FROM duostore.audit")
    deployment.sql("ALTER TABLE duostore.audit ENABLE ALWAYS TRIGGER audit_is_append_only")
    deployment.delete_table("projection")
    assert deployment.run(forget) == "1 removed"
    assert deployment.records() == {record}
    assert [deployment.run(mark), deployment.run(mark)] == ["1 marked", "1 marked"]
    with deployment.running() as client:
        again = client.save("proposal", "p1", DOCUMENT, idempotency_key="save-1")
        assert (again.version, again.replayed) == (1, False)
        kept = client.snapshot("proposal", "p1", DOCUMENT, idempotency_key="snapshot-1")
        assert (kept.sequence, kept.replayed) == (1, True)
        drafts = [("proposal", "p1", 1, False, DOCUMENT)]
        eventually(lambda: deployment.drafts() == drafts, within=10, what="the draft")


def has_no_dirty_head(deployment: Deployment) -> bool:
    heads = [item for item in deployment.items("snapshot") if item["sk"]["S"] == "HEAD"]
    return bool(heads) and not any("due_time" in head for head in heads)


def test_after_a_restore_of_the_snapshots_lost_ones_are_appended_when_repeated(
    deployment: Deployment,
) -> None:
    forget, _ = blocks("When Aurora was restored", "python")
    assert forget.count('HOME = "aurora"') == 1
    with deployment.running() as client:
        client.save("proposal", "p1", DOCUMENT, idempotency_key="save-1")
        client.snapshot("proposal", "p1", {**DOCUMENT, "title": "A"})
        client.snapshot("proposal", "p1", DOCUMENT, idempotency_key="snapshot-2")
        eventually(lambda: len(deployment.records()) == 2, within=10, what="both records")
    deployment.delete_table("snapshot")
    said = deployment.run(forget.replace('HOME = "aurora"', 'HOME = "dynamodb"'))
    assert said == "1 removed"
    assert deployment.records() == {"aurora##save-1"}
    with deployment.running() as client:
        kept = client.snapshot("proposal", "p1", DOCUMENT, idempotency_key="snapshot-2")
        assert (kept.sequence, kept.replayed) == (1, False)


def test_what_is_erased_is_in_no_store_and_sequences_go_on(deployment: Deployment) -> None:
    (erase,) = blocks("Erasing what is known of somebody", "python")
    with deployment.running() as client:
        for title in ("A", "B"):
            client.snapshot("proposal", "p1", {**DOCUMENT, "title": title})
        other = client.snapshot("proposal", "p2", DOCUMENT)
        both = [("p1", 2), ("p2", 1)]
        eventually(
            lambda: [(id_, n) for _, id_, n, *_ in deployment.drafts()] == both,
            within=10,
            what="the drafts",
        )
        assert deployment.run(erase) == "the head is empty, 2 removed from the history"
        with pytest.raises(duostore.SnapshotNotFoundError):
            client.get_snapshot("proposal", "p1")
        assert list(client.list_snapshots("proposal", "p1")) == []
        left = [item for item in deployment.items("snapshot") if item["pk"]["S"] == PK]
        assert [item["sk"]["S"] for item in left] == ["HEAD"]
        assert "payload" not in left[0]
        erased = ("proposal", "p1", 3, True, None)
        eventually(lambda: deployment.drafts()[0] == erased, within=10, what="an empty draft")
        assert client.get_snapshot("proposal", "p2").sequence == other.sequence
        assert client.snapshot("proposal", "p1", DOCUMENT).sequence == 4
        assert [one.sequence for one in client.list_snapshots("proposal", "p1")] == [4]


def test_a_counter_that_was_removed_begins_anew_for_those_who_look(deployment: Deployment) -> None:
    (reset,) = blocks("Resetting a counter", "python")
    with deployment.running() as client:
        assert client.quota("api_calls", "alice", 1000)
        assert client.quota("api_calls", "bob", 400)
        assert not client.quota("api_calls", "alice")
        assert deployment.run(reset) == "removed"
        assert not client.quota("api_calls", "alice")
        assert client.peek_quota("api_calls", "alice").remaining == 1000
        assert client.quota("api_calls", "alice", 1000)
        assert client.peek_quota("api_calls", "bob").remaining == 600
        assert deployment.run(reset) == "removed"
    assert deployment.run(reset) == "there was none"


def test_a_subject_that_is_erased_is_in_no_counter_and_no_grant(deployment: Deployment) -> None:
    (erase,) = blocks("Erasing a subject of quotas", "python")
    with deployment.running() as client:
        for subject in ("alice", "bob", "bob#alice"):
            client.quota("api_calls", subject)
            client.quota("api_calls", subject, idempotency_key=f"call of {subject}")
            client.reserve_quota("ai_tokens", subject, 100)
        client.quota("api_calls", "alice", tenant="acme")
    assert counted(deployment)["alice"] == 5
    assert deployment.run(erase) == "4 removed"
    assert counted(deployment) == {"alice": 1, "bob": 4, "bob#alice": 4}
    assert "count#acme#api_calls#alice" in {item["pk"]["S"] for item in deployment.items("counter")}


def counted(deployment: Deployment) -> Counter[str]:
    """Return how many items of the counter table are about each subject."""
    return Counter(
        item["subject"]["S"] if "subject" in item else item["pk"]["S"].split("#", 3)[3]
        for item in deployment.items("counter")
    )
