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


def method_of(name: str) -> MethodDescriptor:
    """Return the method that is called by a name like ``duostore.v1.DataAccess/Get``."""
    method: MethodDescriptor = descriptor_pool.Default().FindMethodByName(name.replace("/", "."))
    return method


def main(target: str, *arguments: str) -> None:
    """Print the answer to a call."""
    plaintext, data, body, _, name = arguments
    if (plaintext, data) != ("-plaintext", "-d"):
        raise SystemExit(f"no arguments of the README: {arguments}")
    method = method_of(name)
    request = json_format.Parse(body, GetMessageClass(method.input_type)())
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(
            f"/{name}",
            type(request).SerializeToString,
            GetMessageClass(method.output_type).FromString,
        )
        answer = call(request, timeout=10)
    sys.stdout.write(f"{json_format.MessageToJson(answer)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
