"""Runs the commands that call a service."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import typer
from typer.testing import CliRunner

from duostore_server.cli import client

if TYPE_CHECKING:
    from typer.testing import Result

app = typer.Typer(pretty_exceptions_enable=False)
client.register(app)


def duostore(*arguments: str, stdin: bytes | str | None = None, **env: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, arguments, input=stdin, env=env)


def start(*arguments: str, before: str = "") -> subprocess.Popen[str]:
    """Run a command in a process of its own, in which ``before``, some Python, is run first."""
    program = f"{before}\nfrom {__name__} import app\napp()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


def _environment() -> dict[str, Any]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DUOSTORE_")}
