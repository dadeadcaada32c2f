"""A Prometheus for tests, that scrapes one service every second and evaluates its rules."""

from __future__ import annotations

import json
import math
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from duostore_server.embedded.process import Command
from tests.support import installed
from tests.support.ports import free_port
from tests.support.server import SingleProcessServer

if TYPE_CHECKING:
    from pathlib import Path

_ANSWER_SECONDS = 10.0

_CONFIG = """
global:
  scrape_interval: 1s
  scrape_timeout: 1s
  evaluation_interval: 1s
rule_files: [duostore.rules.yml]
scrape_configs:
  - job_name: duostore
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class PrometheusServer(SingleProcessServer):
    """A Prometheus that keeps what it scrapes in a folder of the test's."""

    def __init__(self, folder: Path, *, scraped: int, rules: str) -> None:
        """``scraped`` is a port; ``rules`` a file's text, evaluated once a second here."""
        super().__init__()
        self._folder = folder
        self._port = free_port()
        (folder / "prometheus.yml").write_text(_CONFIG.format(port=scraped))
        often = re.sub(r"(?m)^    interval: \w+$", "    interval: 1s", rules)
        (folder / "duostore.rules.yml").write_text(often, encoding="utf-8")

    def query(self, expr: str) -> list[float]:
        """Return the values that a query answers now; NaN, which says nothing, left out."""
        answer = self._get("query", query=expr)
        found = answer["data"]
        assert found["resultType"] == "vector", expr
        values = (float(sample["value"][1]) for sample in found["result"])
        return [value for value in values if not math.isnan(value)]

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules, and how each did when it was last evaluated."""
        groups = self._get("rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def command(self, log: Path) -> Command:
        return Command(
            argv=[
                str(installed.prometheus()),
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
                "--log.level=warn",
            ],
            log=log,
            env=os.environ,
            cwd=self._folder,
        )

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self._url("-/ready"), timeout=_ANSWER_SECONDS) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **params: str) -> Any:
        url = self._url(f"api/v1/{path}?{urllib.parse.urlencode(params)}")
        try:
            with urllib.request.urlopen(url, timeout=_ANSWER_SECONDS) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.add_note(f"{params}: {error.read().decode()}")
            raise

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}/{path}"
