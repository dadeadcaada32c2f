"""What travels between boto3's client and DynamoDB: counted, and tampered with.

No emulator throttles, answers in part, or loses a reply after it has done the work; hooks of
botocore do, below its own retries.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ReadTimeoutError
from botocore.httpsession import URLLib3Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from botocore.awsrequest import AWSPreparedRequest
    from types_boto3_dynamodb import DynamoDBClient


class _Body(BytesIO):
    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


class Traffic:
    """The requests of one client. ``sent`` counts them by operation, retries included.

    ``tamper`` is called with each request before it is sent: it may answer in DynamoDB's
    place, or raise. ``answered`` may change each parsed answer.
    """

    def __init__(self, client: DynamoDBClient) -> None:
        self.sent: Counter[str] = Counter()
        self.tamper: Callable[[AWSPreparedRequest], AWSResponse | None] = lambda _: None
        self.answered: Callable[[dict[str, Any]], None] = lambda _: None
        self._events = client.meta.events

    @contextmanager
    def watched(self) -> Iterator[Traffic]:
        """Watch while the block runs."""
        # The stubs do not know that a handler may answer.
        self._events.register("before-send.dynamodb", self._before_send)  # type: ignore[arg-type]
        self._events.register("after-call.dynamodb", self._after_call)
        try:
            yield self
        finally:
            self._events.unregister("before-send.dynamodb", self._before_send)  # type: ignore[arg-type]
            self._events.unregister("after-call.dynamodb", self._after_call)

    def _before_send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
        self.sent[operation(request)] += 1
        return self.tamper(request)

    def _after_call(self, parsed: dict[str, Any], **_: Any) -> None:
        self.answered(parsed)


def operation(request: AWSPreparedRequest) -> str:
    """Return the operation that a request asks for."""
    target = request.headers["X-Amz-Target"]
    text = target.decode() if isinstance(target, bytes) else str(target)
    return text.rpartition(".")[2]


def refused(request: AWSPreparedRequest, code: str, status: int = 400) -> AWSResponse:
    """Return the answer with which DynamoDB refuses a request."""
    error = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "as the test wants"}
    return _response(request, status, error)


def answer(request: AWSPreparedRequest, body: dict[str, Any]) -> AWSResponse:
    """Return an answer of DynamoDB."""
    return _response(request, 200, body)


def lose_reply(request: AWSPreparedRequest) -> AWSResponse | None:
    """Let DynamoDB do the work, and the client time out."""
    session = URLLib3Session()
    try:
        assert session.send(request).status_code in {200, 400}
    finally:
        session.close()
    raise ReadTimeoutError(endpoint_url=request.url)


def _response(request: AWSPreparedRequest, status: int, body: dict[str, Any]) -> AWSResponse:
    headers = HTTPHeaders.from_dict({"content-type": "application/x-amz-json-1.0"})
    return AWSResponse(request.url, status, headers, _Body(json.dumps(body).encode()))
