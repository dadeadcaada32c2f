"""A connection string from which the driver would quote the password is refused beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from duostore_server.config import ConfigError, load

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = '[dynamodb]\nregion = "local"\n[kinds.proposal]\n'


def read(folder: Path, dsn: str) -> str:
    config = folder / "duostore.toml"
    config.write_text(CONFIG)
    settings = load(config, {"DUOSTORE__AURORA__DSN": dsn}, serving=True)
    assert settings.aurora.dsn is not None
    return settings.aurora.dsn.get_secret_value()


@pytest.mark.parametrize(
    ("dsn", "password"),
    [
        ("postgresql://db/duostore", None),
        ("postgres://app@db:5432/duostore", None),
        ("postgresql://app:s3cr3t@db:5432/duostore?sslmode=require", "s3cr3t"),
        ("postgresql://app:p%40ss%2Fw%25rd%3F@[::1]:5432/duostore", "p@ss/w%rd?"),
        ("postgresql:///duostore?host=/run/postgresql&user=app", None),
        ("postgresql://app@%2Frun%2Fpostgresql/duostore", None),
        ("host=db dbname=duostore user=app password=s3cr3t", "s3cr3t"),
        ("host = db  password = 'my \\' secret' ", "my ' secret"),
        (r"host=db password=my\ secret options='-c geqo=off'", "my secret"),
    ],
)
def test_what_the_driver_understands_is_accepted(
    tmp_path: Path, dsn: str, password: str | None
) -> None:
    accepted = read(tmp_path, dsn)
    assert accepted == dsn.strip()
    assert conninfo_to_dict(accepted).get("password") == password


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:hush@more@db/duostore",
        "postgresql://app:hush/more@db/duostore",
        "postgresql://app:hush?more@db/duostore",
        "postgresql://app:hush#more@db/duostore",
        "postgresql://app:hush%more@db/duostore",
        "postgresql://app:hush%4@db/duostore",
        "host=db password=hush more",
        "host=db password='hush more",
        "host=db password=hush'more' x",
    ],
)
def test_what_it_would_quote_in_its_errors_is_refused(tmp_path: Path, dsn: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, dsn)
    assert "aurora.dsn" in str(refused.value)
    assert "hush" not in str(refused.value)
    assert "more" not in str(refused.value)


def test_the_driver_names_no_password_when_it_cannot_connect() -> None:
    with pytest.raises(psycopg.OperationalError) as failed:
        psycopg.connect("postgresql://app:hush%40more@127.0.0.1:1/duostore")
    assert "hush" not in str(failed.value)
