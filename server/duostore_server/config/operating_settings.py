"""The definition of how the service is operated: verifier, backfills, admin, flags."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    WithJsonSchema,
)

from duostore_server.config.section import Section, setting
from duostore_server.config.values import Form

_LEAST_TOKEN: Final = 16


def _token(value: object) -> object:
    # Never quoted in a message.
    if isinstance(value, str) and not re.fullmatch(f"[!-~]{{{_LEAST_TOKEN},}}", value):
        raise ValueError(
            f"must have at least {_LEAST_TOKEN} characters, printable ASCII without spaces"
        )
    return value


def _callers(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(name, str) and name for name in value
    ):
        raise ValueError('must be a list of common names, such as ["ops"]')
    return tuple(value)


def _provider(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError('must be module:function, such as "acme_flags:provider", or ""')
    return value


Token: TypeAlias = Annotated[
    SecretStr,
    BeforeValidator(_token),
    Form("text", str),
]
Callers: TypeAlias = Annotated[
    tuple[str, ...],
    PlainValidator(_callers),
    PlainSerializer(list),
    WithJsonSchema({"type": "array", "items": {"type": "string", "minLength": 1}}),
    Form("list of common names", list),
]
Provider: TypeAlias = Annotated[str, AfterValidator(_provider), Form("module:function", str)]


class Verifier(Section):
    """``[verifier]``."""

    saves: int = setting(
        20,
        "Saves a second, taken at random, of which DynamoDB and the cache are compared with "
        "Aurora 1 s, 60 s and 5 min after they were made; `0` for none.",
        0,
        1000,
    )
    rows: int = setting(
        10, "Entities a second, taken at random, that are compared; `0` for none.", 0, 1000
    )
    repair: bool = setting(
        False,  # noqa: FBT003 - a default
        "Whether what does not agree is projected anew. If not, it is counted and logged, and "
        "`duostore check --repair` mends it.",
    )


class Backfill(Section):
    """``[backfill]``."""

    workers: int = setting(2, "Parts of backfills that a background process does at a time.", 1, 16)
    batch: int = setting(
        200,
        "Entities of a part between two checkpoints, which a process that dies redoes.",
        1,
        1000,
    )


class Admin(Section):
    """``[admin]``."""

    token: Token | None = setting(
        None,
        "Who shows this token, as `authorization: Bearer TOKEN` in the metadata of a call, may "
        "call Admin. At least 16 characters. Secret: better set by environment.",
    )
    callers: Callers = setting(
        [],
        "Who may call Admin by the common names of their certificates, which server.tls.client_ca "
        "has signed.",
    )
    open: bool = setting(
        False,  # noqa: FBT003 - a default
        "Whether everybody who reaches the port may call Admin. `duostore dev` is open.",
    )


class Flags(Section):
    """``[flags]``."""

    provider: Provider = setting(
        "",
        "Who says what the flags are, if not Duostore itself: `module:function`, which returns an "
        "OpenFeature provider.",
    )
