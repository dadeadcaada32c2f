"""The stores that tests run against, all of them real servers.

A test that only uses a store takes the fixtures of ``conftest``; one that stops, pauses or
kills it takes a private server::

    with running(MemcachedServer()) as memcached:
        memcached.pause()
"""

from __future__ import annotations

from tests.support.dynamodb_local import DynamoDBLocal
from tests.support.memcached import MemcachedServer
from tests.support.postgres import PostgresServer
from tests.support.server import Server, running

__all__ = ["DynamoDBLocal", "MemcachedServer", "PostgresServer", "Server", "running"]
