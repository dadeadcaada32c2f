"""`duostore transact`: several mutations, all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duostore.v1 import data_access_pb2
from duostore_server.cli.answers import transacted_shown
from duostore_server.cli.mutation_lines import read_mutations
from duostore_server.cli.one_call import complain, if_in_doubt, print_json, refused, run

if TYPE_CHECKING:
    from duostore.v1.data_access_pb2_grpc import DataAccessStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target


def transact(
    target: Target, text: bytes, *, tenant: str, idempotency_key: str, timeout: float
) -> int:
    """Apply the mutations in a text, print what became of them, and return the exit code.

    ``tenant`` is that of mutations that name none.
    """
    read = read_mutations(text, tenant=tenant)

    def tell(line: str) -> None:
        complain(read.with_lines(line))

    if read.violations:
        return refused("the transaction", read.violations, tell=tell)
    request = data_access_pb2.TransactRequest(
        mutations=read.messages, idempotency_key=idempotency_key
    )

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        answer = stub.Transact(request, timeout=timeout, metadata=metadata)
        print_json(transacted_shown(answer))

    return run(target, work, in_doubt=if_in_doubt(idempotency_key), tell=tell)
