"""Stands in for grpcurl, as the README calls it: ``-plaintext -d BODY ADDRESS SERVICE/METHOD``.

Run with the target before these arguments: that is called, in place of ADDRESS.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import grpc
from google.protobuf import descriptor_pool, json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from duostore.v1 import data_access_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

# What these declare is known by its name.
_PROTOS = (data_access_pb2, health_pb2)
# What grpcurl adds to the number of a status for its exit code.
_EXIT_OFFSET = 64


def method_of(name: str) -> MethodDescriptor:
    """Return the method that is called by a name like ``duostore.v1.DataAccess/Get``."""
    method: MethodDescriptor = descriptor_pool.Default().FindMethodByName(name.replace("/", "."))
    return method


def main(target: str, *arguments: str) -> None:
    """Print the answers to a call, or the error."""
    plaintext, data, body, _, name = arguments
    if (plaintext, data) != ("-plaintext", "-d"):
        raise SystemExit(f"no arguments of the README: {arguments}")
    method = method_of(name)
    request = json_format.Parse(body, GetMessageClass(method.input_type)())
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_stream(
            f"/{name}",
            type(request).SerializeToString,
            GetMessageClass(method.output_type).FromString,
        )
        try:
            for answer in call(request, timeout=10):
                text = json_format.MessageToJson(answer, ensure_ascii=False)
                sys.stdout.write(f"{text}\n")
        except grpc.RpcError as error:
            code = error.code()
            named = "".join(word.capitalize() for word in code.name.split("_"))
            sys.stderr.write(f"ERROR:\n  Code: {named}\n  Message: {error.details()}\n")
            raise SystemExit(_EXIT_OFFSET + code.value[0]) from error


if __name__ == "__main__":
    main(*sys.argv[1:])
