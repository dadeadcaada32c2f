from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from structlog.testing import capture_logs

from duostore_server.domain.errors import (
    Store,
    StoreError,
    StoreOverloadedError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from duostore_server.storage.dynamodb.errors import ErrorEdge

if TYPE_CHECKING:
    from botocore.exceptions import _ClientErrorResponseTypeDef

URL = "http://127.0.0.1:1"


def answered(code: str, status: int = 400) -> ClientError:
    response: _ClientErrorResponseTypeDef = {
        "Error": {"Code": code, "Message": "secret detail"},
        "ResponseMetadata": {
            "RequestId": "",
            "HostId": "",
            "HTTPStatusCode": status,
            "HTTPHeaders": {},
            "RetryAttempts": 1,
        },
    }
    return ClientError(response, "PutItem")


def translate(error: Exception, edge: ErrorEdge | None = None) -> Exception:
    with pytest.raises(Exception) as caught, (edge or ErrorEdge()).translated():  # noqa: PT011
        raise error
    return caught.value


KNOWN = [
    (answered("ProvisionedThroughputExceededException"), StoreOverloadedError),
    (answered("ThrottlingException"), StoreOverloadedError),
    (answered("Throttling"), StoreOverloadedError),
    (answered("RequestLimitExceeded"), StoreOverloadedError),
    (answered("InternalServerError", 500), StoreUnavailableError),
    (answered("ServiceUnavailable", 503), StoreUnavailableError),
    (answered("502", 502), StoreUnavailableError),
    (answered("ResourceNotFoundException"), StoreUnavailableError),
    (answered("AccessDeniedException"), StoreUnavailableError),
    (answered("ExpiredTokenException"), StoreUnavailableError),
    (answered("UnrecognizedClientException"), StoreUnavailableError),
    (ConnectTimeoutError(endpoint_url=URL), StoreTimeoutError),
    (ReadTimeoutError(endpoint_url=URL), StoreTimeoutError),
    (EndpointConnectionError(endpoint_url=URL), StoreUnavailableError),
    (ConnectionClosedError(endpoint_url=URL), StoreUnavailableError),
    (SSLError(endpoint_url=URL, error=OSError("certificate")), StoreUnavailableError),
    (HTTPClientError(error="anything"), StoreUnavailableError),
    (NoCredentialsError(), StoreUnavailableError),
    (PartialCredentialsError(provider="env", cred_var="key"), StoreUnavailableError),
    (CredentialRetrievalError(provider="sso", error_msg="expired"), StoreUnavailableError),
]


@pytest.mark.parametrize(("error", "kind"), KNOWN, ids=lambda value: repr(value)[:60])
def test_what_is_known_is_translated(error: Exception, kind: type[StoreError]) -> None:
    translated = translate(error)
    assert type(translated) is kind
    assert isinstance(translated, StoreError)
    assert translated.store is Store.DYNAMODB
    assert translated.__cause__ is error
    assert "detail" not in str(translated)


@pytest.mark.parametrize(
    "error",
    [
        answered("ValidationException"),
        answered("KMSAccessDeniedException"),
        answered("RequestExpired"),
        ParamValidationError(report="a bug, and a secret detail"),
        BotoCoreError(),
    ],
)
def test_what_is_not_known_is_a_store_that_cannot_be_used_and_is_logged(error: Exception) -> None:
    with capture_logs() as logs:
        assert type(translate(error)) is StoreUnavailableError
    assert len(logs) == 1
    assert "detail" not in str(logs)


def test_what_is_not_the_drivers_is_let_through() -> None:
    error = ValueError("a bug")
    assert translate(error) is error


def test_a_fault_that_lasts_is_logged_with_advice_once_a_minute() -> None:
    now = [1000.0]
    edge = ErrorEdge(clock=lambda: now[0])
    with capture_logs() as logs:
        for _ in range(100):
            translate(answered("ResourceNotFoundException"), edge)
            translate(NoCredentialsError(), edge)
            now[0] += 0.5
        assert [entry["fault"] for entry in logs] == [
            "ResourceNotFoundException",
            "NoCredentialsError",
        ]
        assert "duostore migrate" in logs[0]["advice"]
        now[0] += 10
        translate(answered("ResourceNotFoundException"), edge)
    assert len(logs) == 3


def test_what_passes_by_itself_is_not_logged() -> None:
    with capture_logs() as logs:
        for error, _ in KNOWN:
            if isinstance(error, ClientError) and "Credentials" not in str(error):
                continue
            if not isinstance(error, (NoCredentialsError, PartialCredentialsError)):
                translate(error)
    assert [entry["fault"] for entry in logs] == ["CredentialRetrievalError"]
