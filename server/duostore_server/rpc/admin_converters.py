"""Messages of those who operate the service as values of the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from duostore_server.domain.errors import FieldViolation, InvalidRequestError

if TYPE_CHECKING:
    from duostore.v1 import admin_pb2 as pb

_NO_VALUE: Final = "must be a string or a number; leave it out to forget what is set of the flag"


def sample_of(request: pb.CheckConsistencyRequest) -> int | None:
    """Return how many entities are to be compared, None for all."""
    match request.WhichOneof("extent"):
        case "sample":
            return request.sample
        case "all" if request.all:
            return None
        case "all":
            raise _violation("all", "must be true if set")
        case _:
            raise _violation("extent", "must have one of sample and all")


def flag_value_of(request: pb.SetFlagRequest) -> str | float | None:
    """Return what a flag is to be, None to forget what is set; a whole number is an integer."""
    if not request.HasField("value"):
        return None
    match request.value.WhichOneof("kind"):
        case "string_value":
            return request.value.string_value
        case "number_value":
            number = request.value.number_value
            return int(number) if number.is_integer() else number
        case _:
            raise _violation("value", _NO_VALUE)


def _violation(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError([FieldViolation(field, description)])
