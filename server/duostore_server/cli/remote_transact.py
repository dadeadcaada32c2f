"""`duostore transact`: several mutations, all or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore.v1 import data_access_pb2
from duostore_server.cli.answers import transacted_shown
from duostore_server.cli.mutation_lines import read_mutations
from duostore_server.cli.one_call import (
    complain,
    if_in_doubt,
    made_if_none,
    print_json,
    refused,
    run,
)
from duostore_server.domain.errors import Reason

if TYPE_CHECKING:
    from duostore.v1.data_access_pb2_grpc import DataAccessStub
    from duostore_server.cli.one_call import Metadata
    from duostore_server.cli.target import Target

# A mutation says by its fields what other commands say by options.
_ADVICE: Final = {
    Reason.ENTITY_EXISTS: (
        'To replace it leave the mutation\'s "if_absent" out, or name its version by "if_version".'
    ),
    Reason.VERSION_MISMATCH: (
        'Read it again, decide anew, and name the version that you read by "if_version".'
    ),
}


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
        mutations=read.messages, idempotency_key=made_if_none(idempotency_key)
    )

    def work(stub: DataAccessStub, metadata: Metadata) -> None:
        answer = stub.Transact(request, timeout=timeout, metadata=metadata)
        print_json(transacted_shown(answer))

    in_doubt = if_in_doubt(request.idempotency_key)
    return run(target, work, in_doubt=in_doubt, advice=_ADVICE, tell=tell)
