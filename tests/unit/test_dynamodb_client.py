from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from duostore_server.domain.errors import StoreUnavailableError
from duostore_server.storage.dynamodb.client import make_client
from duostore_server.storage.dynamodb.errors import ErrorEdge
from tests.support.dynamodb_traffic import Traffic, answer

if TYPE_CHECKING:
    from pathlib import Path

    from botocore.awsrequest import AWSPreparedRequest, AWSResponse


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def headers_sent(endpoint_url: str) -> dict[str, str]:
    """Return the headers of a request, which is answered before it leaves."""
    requests: list[AWSPreparedRequest] = []

    def keep(request: AWSPreparedRequest) -> AWSResponse:
        requests.append(request)
        return answer(request, {"TableNames": []})

    with (
        closing(
            make_client(region="eu-central-1", endpoint_url=endpoint_url, user_agent="duostore/7")
        ) as client,
        Traffic(client).watched() as traffic,
    ):
        traffic.tamper = keep
        client.list_tables()
    (request,) = requests
    # Some are bytes, whatever the stubs say.
    headers: Any = request.headers
    return {
        name: text.decode() if isinstance(text, bytes) else text for name, text in headers.items()
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.9.9.9"])
def test_an_endpoint_on_this_machine_needs_no_credentials(host: str) -> None:
    headers = headers_sent(f"http://{host}:8000")
    assert "Credential=emulator/" in headers["Authorization"]
    assert "/eu-central-1/dynamodb/" in headers["Authorization"]
    assert headers["User-Agent"].endswith("duostore/7")


@pytest.mark.parametrize("host", ["127.0.0.1", "dynamodb.invalid"])
def test_credentials_that_are_configured_are_used(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDCONFIGURED")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "Credential=AKIDCONFIGURED/" in headers_sent(f"http://{host}:8000")["Authorization"]


@pytest.mark.parametrize(
    "endpoint_url", [None, "http://10.0.0.1:8000", "http://localhost.invalid:8000"]
)
def test_elsewhere_credentials_are_never_made_up(endpoint_url: str | None) -> None:
    with (
        closing(make_client(region="eu-central-1", endpoint_url=endpoint_url)) as client,
        capture_logs() as logs,
        pytest.raises(StoreUnavailableError),
        ErrorEdge().translated(),
    ):
        client.list_tables()
    assert [entry["fault"] for entry in logs] == ["NoCredentialsError"]


def test_the_client_gives_up_soon() -> None:
    with closing(
        make_client(
            region="eu-central-1",
            endpoint_url="http://127.0.0.1:8000",
            connect_timeout=0.25,
            read_timeout=0.75,
            max_pool_connections=7,
        )
    ) as client:
        config = client.meta.config
    assert (config.connect_timeout, config.read_timeout) == (0.25, 0.75)  # type: ignore[attr-defined]
    assert config.max_pool_connections == 7  # type: ignore[attr-defined]
    assert config.retries == {"mode": "standard", "total_max_attempts": 2}  # type: ignore[attr-defined]
    assert config.tcp_keepalive is True  # type: ignore[attr-defined]
