"""The boto3 client, set up for a service that has deadlines."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.config import Config

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient

_ATTEMPTS: Final = 2


def make_client(
    *,
    region: str,
    endpoint_url: str | None = None,
    connect_timeout: float = 0.3,
    read_timeout: float = 0.8,
    max_pool_connections: int = 24,
    user_agent: str = "duostore",
) -> DynamoDBClient:
    """Return a client that gives up soon; timeouts are seconds and hold for each attempt.

    Make one a process, after the fork, and close it: a client may be used by many
    threads, but not be made by two at a time. ``max_pool_connections`` should be the
    number of threads that call it, and a few more. Credentials come from where AWS
    SDKs look for them; an ``endpoint_url`` on this machine needs none.
    """
    session = botocore.session.get_session()
    if endpoint_url is not None and _is_loopback(endpoint_url):
        _need_no_credentials(session)
    return boto3.session.Session(botocore_session=session).client(
        "dynamodb",
        region_name=region,
        endpoint_url=endpoint_url,
        config=Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            max_pool_connections=max_pool_connections,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            tcp_keepalive=True,
            # Requests are built in this folder alone, and the types hold for them.
            parameter_validation=False,
            user_agent_extra=user_agent,
        ),
    )


def _is_loopback(endpoint_url: str) -> bool:
    host = urlsplit(endpoint_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _need_no_credentials(session: botocore.session.Session) -> None:
    """Sign with made-up credentials if none are configured: an emulator takes any.

    The instance metadata service is not asked, which would cost seconds on a machine
    that has none.
    """
    session.get_component("credential_provider").remove("iam-role")
    if session.get_credentials() is None:
        session.set_credentials("emulator", "emulator")
