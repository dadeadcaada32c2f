"""Free TCP ports for servers that are stopped and started again."""

from __future__ import annotations

import os
import random
import socket

# Below the ports that systems hand out for outgoing connections: otherwise, while a server
# is down, such a connection can take its port, or a client that tries to reach the server can
# get that very port and connect to itself.
_CANDIDATES = range(12_000, 32_000)
_given: set[int] = set()
_random = random.SystemRandom()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on, never the same one twice.

    Nor one that another worker of pytest-xdist is given, which may not listen on it yet.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    candidates = _CANDIDATES[worker % workers :: workers]
    while True:
        port = _random.choice(candidates)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
