"""A DynamoDB Local for tests."""

from __future__ import annotations

import http.client
import os
from typing import TYPE_CHECKING

from duostore_server.embedded.process import Command
from tests.support import installed
from tests.support.ports import free_port
from tests.support.server import SingleProcessServer

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_SECONDS = 5.0


class DynamoDBLocal(SingleProcessServer):
    """DynamoDB Local: Amazon's own emulator, with no throttling. Takes any credentials.

    Without ``data_dir``, an existing folder, it holds all in memory and forgets it when it
    stops. Its tables are the same for all regions and credentials.
    """

    def __init__(self, *, data_dir: Path | None = None) -> None:
        super().__init__()
        self._port = free_port()
        self._data_dir = data_dir

    @property
    def endpoint_url(self) -> str:
        """Return the URL for ``boto3.client(..., endpoint_url=...)``."""
        return f"http://127.0.0.1:{self._port}"

    def command(self, log: Path) -> Command:
        kept = ["-inMemory"] if self._data_dir is None else ["-dbPath", str(self._data_dir)]
        return Command(
            argv=[
                str(installed.java()),
                # Ready in less than two thirds of the time, and faster for the first minutes.
                *("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m"),
                "-Djava.library.path=DynamoDBLocal_lib",
                *("-jar", "DynamoDBLocal.jar", *kept, "-sharedDb", "-disableTelemetry"),
                *("-port", str(self._port)),
            ],
            cwd=installed.dynamodb_local(),
            log=log,
            env=os.environ,
        )

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request("GET", "/")
            # An unsigned request: it understands it well enough to refuse it.
            return connection.getresponse().status == http.HTTPStatus.BAD_REQUEST
        except OSError:
            return False
        finally:
            connection.close()
