"""`duostore explain`: what each store holds of one entity."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from duostore.v1 import admin_pb2
from duostore_server.cli.answers_admin import explained_shown
from duostore_server.cli.explain_display import explained_view
from duostore_server.cli.one_call import key_message, print_json
from duostore_server.cli.remote_admin import run_admin
from duostore_server.cli.terminal import console_on

if TYPE_CHECKING:
    from duostore.v1.admin_pb2_grpc import AdminStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target
    from duostore_server.domain.keys import EntityKey


def explain(target: Target, key: EntityKey, *, as_json: bool, timeout: float) -> int:
    """Print what each store holds of an entity, and return the exit code."""
    request = admin_pb2.ExplainRequest(key=key_message(key))

    def work(stub: AdminStub, metadata: Metadata) -> None:
        answer = stub.Explain(request, timeout=timeout, metadata=metadata)
        if as_json:
            print_json(explained_shown(answer))
        else:
            console = console_on(sys.stdout)
            console.print(explained_view(answer, time.time(), width=console.width))

    return run_admin(target, work)
