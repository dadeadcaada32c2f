"""A call whose answer comes in portions, for as long as somebody takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import grpc

from duostore.status import error_of

if TYPE_CHECKING:
    from typing import Self

    from google.protobuf.message import Message

    from duostore.errors import Error
    from duostore.status import Call

ResponseT = TypeVar("ResponseT", bound="Message")
ResponseT_co = TypeVar("ResponseT_co", bound="Message", covariant=True)


class Portions(Protocol[ResponseT_co]):
    """What gRPC gives for a call whose answer comes in portions."""

    def __next__(self) -> ResponseT_co: ...

    def cancel(self) -> object:
        """End the call, if it has not ended."""


class Stream(Generic[ResponseT]):
    """Yields the portions of an answer, each once. Raises ``Error`` if the call fails.

    What is not taken is not sent either, but for what a connection holds by itself. For one
    thread; ``cancel`` may come from any.
    """

    def __init__(self, portions: Portions[ResponseT], call: Call) -> None:
        self._portions = portions
        self.call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ResponseT:
        try:
            return next(self._portions)
        except grpc.RpcError as error:
            raise failure_of(self.call, error) from error

    def cancel(self) -> None:
        """End the call, wherever it is. Safe to repeat, and after its end."""
        self._portions.cancel()


def failure_of(call: Call, error: grpc.RpcError) -> Error:
    """Return what a failed call is told as."""
    trailing = [(item.key, item.value) for item in error.trailing_metadata() or ()]
    return error_of(call, error.code(), error.details() or "", trailing)
