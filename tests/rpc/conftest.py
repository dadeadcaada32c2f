"""One service for the tests of the API, over the real stores of the run."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.support.administrator import Administrator
from tests.support.in_process import InProcess, in_process
from tests.support.service import Caller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import DynamoDBLocal, MemcachedServer, PostgresServer

CONFIG = """
[kinds.proposal]
schema = "proposal.json"
max_bytes = "64KiB"
snapshots = {}
[kinds.note]
max_bytes = "4MiB"
snapshots = { consolidate_every = "1s" }
[kinds.memo]
snapshots = { keep = "0s" }
[kinds.tag]
projection = "async"
[kinds.label]
projection_version = 2
transforms = { 2 = "label_2.jmespath" }
[kinds.state]
home = "dynamodb"
max_bytes = "4MiB"
[kinds.session]
home = "dynamodb"
ttl = "2s"
# So long that none of their windows ends, and no bucket refills, while a test looks.
[quotas.fixed]
limit = 10
window = "31d"
lease = 0
overrides = { vip = 20, "acme#vip" = 5 }
[quotas.sliding]
limit = 10
window = "31d"
algorithm = "sliding_window"
lease = 0
[quotas.bucket]
limit = 10
window = "31d"
algorithm = "token_bucket"
lease = 0
[quotas.leased]
limit = 100
window = "31d"
[quotas.brief]
limit = 10
window = "31d"
lease = 0
reservation_ttl = "1s"
[quotas.returned]
limit = 10
window = "31d"
lease = 0
reservation_ttl = "1s"
expired_reservations = "released"
[queries.tally]
sql = "tally.sql"
params = { count = "integer" }
[server]
max_message_bytes = "24MiB"
max_answer_bytes = "24MiB"
# These tests are of answers, and not of a DynamoDB that is slow on a busy machine.
[dynamodb]
read_timeout = "3s"
[projector]
claim = "4s"
# It reads at random, and these tests count what is read.
[verifier]
saves = 0
rows = 0
[admin]
token = "correct-horse-battery-staple"
"""
SCHEMA = """
{
  "type": "object",
  "required": ["title"],
  "additionalProperties": false,
  "properties": {
    "title": {"type": "string", "minLength": 1},
    "pages": {"type": "integer"},
    "parts": {"type": "array", "items": {"type": "object", "required": ["price"]}}
  }
}
"""

TALLY = "SELECT n, n::numeric / 2 AS half FROM generate_series(1, :count) AS n ORDER BY n"


@pytest.fixture(scope="module")
def api(
    postgres: PostgresServer,
    dynamodb: DynamoDBLocal,
    memcached: MemcachedServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[InProcess]:
    folder = tmp_path_factory.mktemp("api")
    (folder / "proposal.json").write_text(SCHEMA)
    (folder / "tally.sql").write_text(TALLY)
    (folder / "label_2.jmespath").write_text("{text: name}")
    (folder / "duostore.toml").write_text(CONFIG)
    with in_process(
        folder / "duostore.toml",
        dsn=postgres.create_database(),
        endpoint_url=dynamodb.endpoint_url,
        prefix=f"t{secrets.token_hex(4)}_",
        node=memcached.address,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def channel(api: InProcess) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(api.target, options=options) as opened:
        yield opened


@pytest.fixture
def admin(channel: grpc.Channel) -> Administrator:
    """Somebody who operates the service."""
    return Administrator(channel, token="correct-horse-battery-staple", caller="ops")


@pytest.fixture
def notes(channel: grpc.Channel) -> Caller:
    """Somebody who calls for a kind without a schema."""
    return Caller(channel, kind="note")


@pytest.fixture
def proposals(channel: grpc.Channel) -> Caller:
    """Somebody who calls for a kind with a schema."""
    return Caller(channel, kind="proposal")


@pytest.fixture(params=["note", "state"])
def either(channel: grpc.Channel, request: pytest.FixtureRequest) -> Caller:
    """Somebody who calls for a kind at home in Aurora, and one at home in DynamoDB."""
    return Caller(channel, kind=request.param)


@pytest.fixture
def id_() -> str:
    """The id of an entity that nobody else uses."""
    return secrets.token_hex(8)
