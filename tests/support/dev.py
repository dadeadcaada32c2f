"""A `duostore dev` that runs, with what it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.support.ports import free_port
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_SECONDS = 60
STOP_SECONDS = 60
ANSWERS = "Stop it with Ctrl-C."


@dataclass(frozen=True)
class RunningDev:
    """A `duostore dev`: where it answers, its process, and a file with all that it prints."""

    target: str
    process: subprocess.Popen[bytes]
    log: Path

    def printed(self) -> str:
        """Return what it has printed so far."""
        return self.log.read_text("utf-8")


@contextmanager
def running_dev(folder: Path, data: Path) -> Iterator[RunningDev]:
    """Run `duostore dev` with the `duostore.toml` of a folder; it ends with the block."""
    target = f"127.0.0.1:{free_port()}"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("DUOSTORE_")}
    environ |= {"DUOSTORE__SERVER__ADDRESS": target, "DUOSTORE__METRICS__ADDRESS": ""}
    command = [sys.executable, "-m", "duostore_server.cli.main", "dev"]
    log = folder / "dev.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "--config", str(folder / "duostore.toml"), "--data", str(data)],
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        running = RunningDev(target, process, log)
        try:
            eventually(
                lambda: process.poll() is not None or ANSWERS in running.printed(),
                within=START_SECONDS,
                what="it answers",
            )
            assert process.poll() is None, running.printed()
            yield running
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)
