"""What `duostore limit` does: reads and writes the limits that are set in Aurora."""

from __future__ import annotations

import getpass
import json
from contextlib import contextmanager
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, Final

import typer

from duostore_server.cli.config_file import UNAVAILABLE, dsn_of_dev, fail
from duostore_server.config.problems import suggestion
from duostore_server.config.values import duration_text
from duostore_server.domain.errors import StoreError
from duostore_server.domain.limits import limit_key_violations, most_units
from duostore_server.domain.quotas import AlgorithmName
from duostore_server.storage.aurora.limits import list_limits, set_limit, unset_limit
from duostore_server.storage.aurora.migrate import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from duostore_server.config import Settings
    from duostore_server.domain.limits import LimitKey
    from duostore_server.storage.aurora.limits import SetLimit

_FAILED: Final = 1
_MAX_CALLER: Final = 128
_SOON: Final = "in force within two seconds"
_HEADER: Final = ("QUOTA", "TENANT", "SUBJECT", "LIMIT", "SET BY", "AT", "")


def login() -> str:
    """Return the name of whoever runs this, or an empty string if the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def set_(
    settings: Settings,
    quota: str,
    key: LimitKey,
    limit: int,
    *,
    caller: str,
    data: Path | None = None,
) -> int:
    """Set a limit, say what is in force, and return the exit code.

    ``data``, here and below, is the folder of a deployment of `duostore dev` that runs.
    """
    _check(quota, key)
    configured = settings.quotas.get(quota)
    if configured is None:
        fail(_not_configured(quota, settings))
    window = timedelta(seconds=configured.window)
    most = most_units(AlgorithmName(configured.algorithm), window)
    if limit > most:
        fail(f"LIMIT: must be at most {most} with this quota's algorithm and window")
    if len(caller) > _MAX_CALLER or not caller.isprintable():
        fail(f"--caller: may hold up to {_MAX_CALLER} characters that can be printed")
    with _explained():
        set_limit(_dsn(settings, data), quota, key, limit, caller=caller)
    typer.echo(f"{quota}, {_whom(key)}: {limit} in {duration_text(configured.window)}, {_SOON}")
    return 0


def unset(settings: Settings, quota: str, key: LimitKey, *, data: Path | None = None) -> int:
    """Forget a limit, say whether there was one, and return the exit code."""
    _check(quota, key)
    with _explained():
        done = unset_limit(_dsn(settings, data), quota, key)
    if not done:
        typer.echo(
            f"{quota}, {_whom(key)}: no limit is set. `duostore limit list` shows those that are.",
            err=True,
        )
        return _FAILED
    typer.echo(f"{quota}, {_whom(key)}: no longer set, {_SOON}")
    return 0


def list_(settings: Settings, *, as_json: bool, data: Path | None = None) -> int:
    """Print all limits that are set, and return the exit code."""
    with _explained():
        limits = list_limits(_dsn(settings, data))
    if as_json:
        shown = [_shown(limit, settings) for limit in limits]
        typer.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    elif limits:
        _print([_HEADER, *(_row(limit, settings) for limit in limits)])
    else:
        typer.echo("no limits are set at run time")
    return 0


def _check(quota: str, key: LimitKey) -> None:
    wrong = [f"{each.field}: {each.description}" for each in limit_key_violations(quota, key)]
    if wrong:
        fail("\n".join(wrong))


def _not_configured(quota: str, settings: Settings) -> str:
    names = sorted(settings.quotas)
    hint = suggestion(quota, names)
    known = f"configured: {', '.join(names)}" if names else "the configuration has no quotas"
    return f"{quota!r} is not a configured quota; {hint and f'{hint} '}{known}"


def _dsn(settings: Settings, data: Path | None) -> str:
    if data is not None:
        return dsn_of_dev(data)
    if settings.aurora.dsn is None:
        fail(
            "aurora.dsn: is required: how to reach the writer, whose table duostore.control holds "
            "the limits. Set DUOSTORE__AURORA__DSN; to reach that of `duostore dev`, give --data"
        )
    return settings.aurora.dsn.get_secret_value()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (MigrationError, StoreError) as error:
        # Shown to whoever runs the deployment: here the driver's words help.
        cause = f" ({error.__cause__})" if isinstance(error, StoreError) else ""
        fail(f"{error}{cause}", UNAVAILABLE if cause else _FAILED)


def _whom(key: LimitKey) -> str:
    if key.tenant is None:
        return f"subject {key.subject!r} in every tenant"
    return f"subject {key.subject!r} in tenant {key.tenant!r}"


def _shown(limit: SetLimit, settings: Settings) -> dict[str, Any]:
    shown = {
        "quota": limit.quota,
        "tenant": limit.key.tenant,
        "subject": limit.key.subject,
        "limit": limit.limit,
        "caller": limit.caller,
        "update_time": _time(limit),
        "configured": limit.quota in settings.quotas,
    }
    return shown if limit.limit is not None else {**shown, "value": limit.value}


def _row(limit: SetLimit, settings: Settings) -> tuple[str, ...]:
    tenant = {None: "(every)", "": "(empty)"}.get(limit.key.tenant, limit.key.tenant or "")
    units = "?" if limit.limit is None else str(limit.limit)
    cells = (limit.quota, tenant, limit.key.subject, units, limit.caller, _time(limit))
    return (*cells, _note(limit, settings))


def _note(limit: SetLimit, settings: Settings) -> str:
    if limit.limit is None:
        return f"passed over, cannot be read: {limit.value}"
    return "" if limit.quota in settings.quotas else "passed over, the quota is not configured"


def _time(limit: SetLimit) -> str:
    return limit.update_time.astimezone(UTC).isoformat(timespec="seconds")


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
