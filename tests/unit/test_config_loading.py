from __future__ import annotations

import json
import math
import re
import tomllib
import traceback
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server.config import (
    Address,
    ConfigError,
    Problem,
    Settings,
    check_for_serve,
    describe,
    load,
    policies,
)
from duostore_server.config.entries import Entry, entries, env_name
from duostore_server.config.kind_settings import Snapshots
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import SnapshotPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTE = "[kinds.note]\n"
REQUIRED: Mapping[str, Mapping[str, object]] = {
    "quotas": {"limit": 1000, "window": "1m"},
    "queries": {"sql": "note.sql"},
}
BOUNDED = [entry for entry in entries() if entry.low is not None]


def settings(text: str, folder: Path, environ: Mapping[str, str] | None = None) -> Settings:
    file = folder / "duostore.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ or {})


def problems(
    text: str, folder: Path, environ: Mapping[str, str] | None = None, *, serving: bool = False
) -> dict[str, str]:
    file = folder / "duostore.toml"
    file.write_text(text, encoding="utf-8")
    (folder / "note.sql").write_text("SELECT 1 AS one")
    listed: tuple[Problem, ...] = ()
    try:
        load(file, environ or {}, serving=serving)
    except ConfigError as error:
        listed = error.problems
    found = {problem.key: problem.message for problem in listed}
    assert len(found) == len(listed)
    return found


def toml(entry: Entry, value: object) -> str:
    table, name = ".".join(entry.path[:-1]).replace("NAME", "note"), entry.path[-1]
    header = NOTE if entry.path[0] != "kinds" else ""
    written = "inf" if value == math.inf else json.dumps(value)
    needed = REQUIRED.get(entry.path[0], {})
    others = "".join(f"{key} = {json.dumps(text)}\n" for key, text in needed.items() if key != name)
    return f"{header}[{table}]\n{others}{name} = {written}\n"


def test_a_kind_is_all_that_a_file_must_have(tmp_path: Path) -> None:
    loaded = settings(NOTE, tmp_path)

    assert loaded.server.address == Address("127.0.0.1", 50051)
    assert loaded.aurora.dsn is None
    assert loaded.cache.nodes == (Address("127.0.0.1", 11211),)
    assert loaded.kinds["note"].cache_ttl == 60
    assert loaded.kinds["note"].document_schema is None


def test_the_environment_beats_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    text = "[aurora]\npool_max = 5\nmax_waiting = 7\n" + NOTE
    loaded = settings(text, tmp_path, {"DUOSTORE__AURORA__POOL_MAX": "6"})

    assert (loaded.aurora.pool_max, loaded.aurora.max_waiting, loaded.aurora.pool_min) == (6, 7, 1)


def test_every_type_of_value_can_be_set_by_environment(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    (tmp_path / "key.pem").touch()
    (tmp_path / "note.json").write_text("{}")
    loaded = settings(
        NOTE,
        tmp_path,
        {
            "DUOSTORE__SERVER__ADDRESS": "[::1]:7000",
            "DUOSTORE__SERVER__REFLECTION": "False",
            "DUOSTORE__SERVER__TLS__CERTIFICATE": "cert.pem",
            "DUOSTORE__SERVER__TLS__KEY": str(tmp_path / "key.pem"),
            "DUOSTORE__AURORA__DSN": " postgresql://u:p@h/d\n",
            "DUOSTORE__DYNAMODB__ENDPOINT_URL": "http://127.0.0.1:8000",
            "DUOSTORE__CACHE__NODES": "a:1, b:2",
            "DUOSTORE__CACHE__COMPRESS_ABOVE": "2048",
            "DUOSTORE__CACHE__MEMORY_MAX_BYTES": "2MiB",
            "DUOSTORE__METRICS__ADDRESS": "",
            "DUOSTORE__LOGGING__LEVEL": "debug",
            "DUOSTORE__KINDS__NOTE__ABSENT_TTL": "7s",
            "DUOSTORE__KINDS__NOTE__SCHEMA": "note.json",
        },
    )

    assert loaded.server.address == Address("::1", 7000)
    assert loaded.server.reflection is False
    assert loaded.server.tls.certificate == tmp_path / "cert.pem"
    assert loaded.server.tls.key == tmp_path / "key.pem"
    assert loaded.aurora.dsn is not None
    assert loaded.aurora.dsn.get_secret_value() == "postgresql://u:p@h/d"
    assert loaded.dynamodb.endpoint_url == "http://127.0.0.1:8000"
    assert loaded.cache.nodes == (Address("a", 1), Address("b", 2))
    assert loaded.cache.compress_above == 2048
    assert loaded.cache.memory_max_bytes == 2 << 20
    assert loaded.metrics.address is None
    assert loaded.logging.level == "debug"
    assert loaded.kinds["note"].absent_ttl == 7
    assert loaded.kinds["note"].document_schema is not None
    assert loaded.kinds["note"].document_schema.path == tmp_path / "note.json"


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    text = """
        [server]
        address = "::1:50051"
        thread = 8
        drain_timeout = 20
        [aurora]
        pool_max = 30
        [cache]
        nodes = ["a:1", "a:1"]
        [views.recent]
        sql = "recent.sql"
        [kinds.proposal]
        cache_ttl = "60"
        absent_ttl = "1m"
        schema = "missing.json"
        [kinds."a#b"]
    """
    environ = {"DUOSTORE__LOGGING__LEVEL": "loud", "DUOSTORE__AURORA__DNS": "postgresql://u:p@h"}

    assert problems(text, tmp_path, environ) == {
        "server.address": 'needs brackets around its IPv6 address, such as "[::1]:50051"',
        "server.thread": 'is not known; did you mean "threads"?',
        "server.drain_timeout": 'is a number without a unit; write a duration, such as "60s"',
        "server.threads": (
            "must be at least aurora.pool_max + aurora.max_waiting + 2, which is 44: "
            "a slow database must not hold every thread"
        ),
        "cache.nodes": 'lists "a:1" twice',
        "views": (
            "is not known; known here: "
            "server, aurora, dynamodb, cache, projector, consolidator, fan_out, idempotency, "
            "verifier, backfill, admin, flags, slo, metrics, logging, kinds, queries, quotas"
        ),
        "kinds.proposal.cache_ttl": (
            'must be a duration: a whole number and one of ms, s, m, h, d, such as "60s"'
        ),
        "kinds.proposal.absent_ttl": "must be 5s to 30s",
        "kinds.proposal.schema": (
            f'cannot be read: "{tmp_path / "missing.json"}": No such file or directory'
        ),
        'kinds."a#b"': "the name of the kind must not hold '#'",
        "logging.level": (
            'must be "debug" or "info" or "warning" or "error" (set by DUOSTORE__LOGGING__LEVEL)'
        ),
        "DUOSTORE__AURORA__DNS": 'matches no key; did you mean "DUOSTORE__AURORA__DSN"?',
    }


def test_the_error_shows_every_problem_on_a_line_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text("[server]\nworkers = 0\nthreads = 1\n" + NOTE)
    with pytest.raises(ConfigError) as caught:
        load(file, {})

    assert str(caught.value).splitlines() == [
        "the configuration has 2 problems:",
        "  server.workers: must be 1 to 64",
        "  server.threads: must be 4 to 64",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[server]\nworkers = = 2\n", "is not valid TOML: Invalid value (at line 2, column 11)"),
        (b"[server\n", "line 1"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"\xff\xfe", "is not UTF-8 text, at byte 0"),
        (b"a = " + b"[" * 100_000, "is not valid TOML"),
        (b"a = " + b"9" * 5_000, "is not valid TOML"),
    ],
)
def test_a_file_that_is_no_toml_is_one_problem(
    content: bytes, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "duostore.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(file, {})

    (problem,) = caught.value.problems
    assert problem.key == str(file)
    assert message in problem.message


def test_the_environment_is_checked_even_if_the_file_cannot_be_read(tmp_path: Path) -> None:
    environ = {
        "DUOSTORE__AURORA__POOL_MAX": "many",
        "DUOSTORE__AROURA__DSN": "x",
        "DUOSTORE__KINDS__NOTE__CACHE_TTL": "60s",
    }
    file = tmp_path / "missing.toml"
    with pytest.raises(ConfigError) as caught:
        load(file, environ)

    assert {problem.key: problem.message for problem in caught.value.problems} == {
        str(file): "cannot be read: No such file or directory",
        "aurora.pool_max": "must be a whole number (set by DUOSTORE__AURORA__POOL_MAX)",
        "DUOSTORE__AROURA__DSN": 'matches no key; did you mean "DUOSTORE__AURORA__DSN"?',
    }


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[server]\nthread = 1", "server.thread", 'is not known; did you mean "threads"?'),
        ("[servr]\nthreads = 5", "servr", 'is not known; did you mean "server"?'),
        ("[server]\npool_max = 5", "server.pool_max", 'did you mean "aurora.pool_max"?'),
        ("[metrics]\nzzz = 1", "metrics.zzz", "is not known; known here: address"),
        ("[server.tls]\ncertificat = 'x'", "server.tls.certificat", '"certificate"?'),
        ("[kinds.note]\ncache_tll = '1m'", "kinds.note.cache_tll", '"cache_ttl"?'),
        ("[kinds.note.snapshots]\nkept = '7d'", "kinds.note.snapshots.kept", '"keep"?'),
        ("[views.calls]\nx = 1", "views", "is not known; known here: server"),
        ('[kinds."a.b"]\nx = 1', 'kinds."a.b".x', "is not known"),
    ],
)
def test_an_unknown_key_is_refused_with_a_guess(
    text: str, key: str, message: str, tmp_path: Path
) -> None:
    found = problems(text + ("" if "note" in text else "\n" + NOTE), tmp_path)

    assert list(found) == [key]
    assert message in found[key]


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("server = 3", "server", "must be a table: [server]"),
        ("kinds = []", "kinds", "must be a table: [kinds]"),
        ("[server]\ntls = true", "server.tls", "must be a table: [server.tls]"),
        ("[kinds]\nnote = 3", "kinds.note", "must be a table: [kinds.note]"),
        (
            "[kinds.note]\nsnapshots = true",
            "kinds.note.snapshots",
            "must be a table: [kinds.note.snapshots]",
        ),
        ("[kinds.'']", 'kinds.""', "the name of the kind must not be empty"),
        ("[kinds." + "x" * 65 + "]", "kinds." + "x" * 65, "has 65 bytes of UTF-8"),
        ('[kinds."a\\u0007"]', 'kinds."a\a"', "holds the control character U+0007"),
        ("", "kinds", "at least one kind, query or quota is needed: a table [kinds.NAME], [que"),
        ("[kinds]\n[quotas]", "kinds", "at least one kind, query or quota is needed"),
    ],
)
def test_tables_and_names_of_kinds_are_checked(
    text: str, key: str, message: str, tmp_path: Path
) -> None:
    found = problems(text if "kinds" in text or not text else f"{text}\n{NOTE}", tmp_path)

    assert list(found) == [key]
    assert message in found[key]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[aurora]\ndsn = 'localhost'", "must be a connection string"),
        ("[aurora]\ndsn = ''", "must be a connection string"),
        ("[dynamodb]\nregion = 'EU Central'", "must be the name of a region"),
        ("[dynamodb]\nendpoint_url = 'localhost:8000'", "must be http:// or https://"),
        ("[dynamodb]\nendpoint_url = 'http://u:p@localhost'", "must be http:// or https://"),
        ("[dynamodb]\nendpoint_url = 'http://[::1'", "must be http:// or https://"),
        ("[dynamodb]\ntable_prefix = 'a b'", "must be at most 100 of the characters"),
        ("[cache]\nnamespace = ''", "must be 1 to 32 of the characters"),
        ("[cache]\nnodes = []", "must be a list of at least one address"),
        ("[cache]\nnodes = 'a:1'", "must be a list of at least one address"),
        ("[cache]\nnodes = ['a:1', 'b']", "entry 2 must be host:port"),
        ("[cache]\nbackend = 'redis'", 'must be "memcached" or "memory"'),
        ("[server.tls]\ncertificate = '.'\nkey = '.'", "cannot be read"),
        ("[server.tls]\ncertificate = ''\nkey = ''", "must be the path of a file"),
        ("[kinds.note]\nhome = 'redis'", 'must be "aurora" or "dynamodb"'),
        ("[kinds.note]\nttl = 24", "is a number without a unit"),
        ("[kinds.note]\nsnapshots = { keep = '59s' }", "must be 0s, for none, or at least 60s"),
        ("[kinds.note]\nsnapshots = { keep = '1ms' }", "must be 0s, for none, or at least 60s"),
        ("[kinds.note]\nprojection = 'sync'", 'must be "inline" or "async"'),
    ],
)
def test_a_value_of_the_wrong_form_is_refused(text: str, message: str, tmp_path: Path) -> None:
    found = problems(text + ("" if "note" in text else "\n" + NOTE), tmp_path)

    assert found
    assert all(message in text for text in found.values())


@pytest.mark.parametrize("entry", BOUNDED, ids=lambda entry: ".".join(entry.path))
def test_bounds_are_inclusive_and_told(entry: Entry, tmp_path: Path) -> None:
    key = ".".join(entry.path).replace("NAME", "note")
    low, high = entry.form.write(entry.low), entry.form.write(entry.high)
    step = 0.001 if entry.type is float else 1
    too_high = entry.form.write(entry.high + step)

    assert problems(toml(entry, too_high), tmp_path)[key] == f"must be {low} to {high}"
    if entry.low >= step:
        too_low = entry.form.write(entry.low - step)
        assert problems(toml(entry, too_low), tmp_path)[key] == f"must be {low} to {high}"
    for good in (low, high):
        Settings.model_validate(tomllib.loads(toml(entry, good)), context={"folder": tmp_path})


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: ".".join(entry.path))
@pytest.mark.parametrize("value", [{}, [[1]], float("inf"), True, 12, "\0"], ids=repr)
def test_no_message_speaks_of_the_machinery(entry: Entry, value: object, tmp_path: Path) -> None:
    found = problems(toml(entry, value), tmp_path)

    fits = isinstance(value, int) or (
        value == {} and entry.path[-1] in {"overrides", "params", "transforms"}
    )
    assert found or fits
    for message in found.values():
        assert not re.search(r"pydantic|input|Error|Errno|\bstr\b|\bdict\b|\bint\b", message)
        assert re.match("(must|is|has|needs|lists|entry|cannot) ", message)


@pytest.mark.parametrize("name", ["region", "dsn"])
def test_keys_without_a_value_may_not_be_empty(name: str, tmp_path: Path) -> None:
    table = "aurora" if name == "dsn" else "dynamodb"

    assert list(problems(NOTE, tmp_path, {f"DUOSTORE__{table.upper()}__{name.upper()}": ""})) == [
        f"{table}.{name}"
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("DUOSTORE__AROURA__DSN", 'did you mean "DUOSTORE__AURORA__DSN"?'),
        ("DUOSTORE__AURORA__DNS", 'did you mean "DUOSTORE__AURORA__DSN"?'),
        ("DUOSTORE__AURORA_DSN", 'did you mean "DUOSTORE__AURORA__DSN"?'),
        ("DUOSTORE_AURORA_DSN", 'did you mean "DUOSTORE__AURORA__DSN"?'),
        ("duostore__aurora__dsn", 'did you mean "DUOSTORE__AURORA__DSN"?'),
        ("DUOSTORE__KINDS__NOET__CACHE_TTL", 'did you mean "DUOSTORE__KINDS__NOTE__CACHE_TTL"?'),
        ("DUOSTORE__KINDS__NOTE__LIFE", "matches no key"),
        (
            "DUOSTORE__KINDS__NOTE__SNAPSHOTS__KEPT",
            'did you mean "DUOSTORE__KINDS__NOTE__SNAPSHOTS__KEEP"?',
        ),
        ("duostore__aurora__dns", "matches no key"),
        ("DUOSTORE__XYZZY", "matches no key"),
        ("DUOSTORE__", "matches no key"),
    ],
)
def test_a_variable_that_matches_no_key_is_a_problem(name: str, hint: str, tmp_path: Path) -> None:
    found = problems(NOTE, tmp_path, {name: "postgresql://u:hunter2@h"})

    assert list(found) == [name]
    assert hint in found[name]


def test_variables_of_others_are_left_alone(tmp_path: Path) -> None:
    # Kubernetes sets the like of these for a Service named duostore.
    environ = {
        "DUOSTORE_SERVICE_HOST": "10.0.0.1",
        "DUOSTORE_PORT_50051_TCP_ADDR": "10.0.0.1",
        "DUOSTORE_SERVER_PORT": "tcp://10.0.0.1:50051",
        "PATH": "/bin",
        "AWS_REGION": "eu-central-1",
    }

    assert settings(NOTE, tmp_path, environ) == settings(NOTE, tmp_path)


def test_kinds_are_overridden_whatever_their_names_hold(tmp_path: Path) -> None:
    text = '[kinds."Blog-Post.v2"]\n[kinds.a__b]\n'
    environ = {
        "DUOSTORE__KINDS__BLOG_POST_V2__CACHE_TTL": "7s",
        "DUOSTORE__KINDS__A__B__CACHE_TTL": "8s",
    }
    loaded = settings(text, tmp_path, environ)

    assert loaded.kinds["Blog-Post.v2"].cache_ttl == 7
    assert loaded.kinds["a__b"].cache_ttl == 8


def test_what_each_home_of_a_kind_means_to_the_use_cases(tmp_path: Path) -> None:
    text = """
        [kinds.plain]
        [kinds.drafted]
        snapshots = {}
        [kinds.unkept]
        cache_ttl = "7s"
        [kinds.unkept.snapshots]
        consolidate_every = "1m"
        keep = "0s"
        [kinds.state]
        home = "dynamodb"
        [kinds.session]
        home = "dynamodb"
        cache_ttl = "2s"
        ttl = "24h"
        consolidate_every = "5m"
    """
    found = policies(settings(text, tmp_path))

    def of(kind: str) -> tuple[object, ...]:
        policy = found.of(EntityKey("", kind, "1"))
        every = policy.consolidate_every
        return policy.home.value, policy.cache_ttl, policy.ttl, every, policy.snapshots

    assert of("plain") == ("aurora", 60, None, None, None)
    by_default = SnapshotPolicy(timedelta(seconds=30), timedelta(days=7))
    assert of("drafted") == ("aurora", 60, None, None, by_default)
    unkept = SnapshotPolicy(timedelta(minutes=1), timedelta(0))
    assert of("unkept") == ("aurora", 7, None, None, unkept)
    assert of("state") == ("dynamodb", 5, None, None, None)
    every = timedelta(minutes=5)
    assert of("session") == ("dynamodb", 2, timedelta(hours=24), every, None)


@pytest.mark.parametrize("text", ["[kinds.proposal]", "[kinds.proposal]\nsnapshots = {}"])
def test_the_environment_reaches_tables_within_a_kind(text: str, tmp_path: Path) -> None:
    loaded = settings(text, tmp_path, {"DUOSTORE__KINDS__PROPOSAL__SNAPSHOTS__KEEP": "30d"})

    assert loaded.kinds["proposal"].snapshots == Snapshots.model_validate({"keep": "30d"})
    assert list(problems(text, tmp_path, {"DUOSTORE__KINDS__PROPOSAL__SNAPSHOTS__KEEP": "30"})) == [
        "kinds.proposal.snapshots.keep"
    ]
    assert load(None, {"DUOSTORE__KINDS__A__SNAPSHOTS__CONSOLIDATE_EVERY": "1m"}).kinds.keys() == {
        "a"
    }


def test_every_misfit_of_a_kind_is_told_at_once(tmp_path: Path) -> None:
    text = """
        [kinds.a]
        ttl = "1h"
        consolidate_every = "1m"
        snapshots = { keep = "2s" }
        [kinds.b]
        home = "dynamodb"
        projection = "async"
        [kinds.b.snapshots]
    """

    assert set(problems(text, tmp_path)) == {
        "kinds.a.ttl",
        "kinds.a.consolidate_every",
        "kinds.a.snapshots.keep",
        "kinds.b.projection",
        "kinds.b.snapshots",
    }
    # Of a home that cannot be read nothing follows.
    assert list(problems("[kinds.a]\nhome = 'x'\nttl = '1h'", tmp_path)) == ["kinds.a.home"]


def test_a_variable_that_could_mean_two_kinds_is_a_problem(tmp_path: Path) -> None:
    name = "DUOSTORE__KINDS__A_B__CACHE_TTL"
    found = problems("[kinds.a-b]\n[kinds.a_b]\n", tmp_path, {name: "7s"})

    assert found == {
        name: "could mean kinds.a-b.cache_ttl and kinds.a_b.cache_ttl; set them in the file"
    }


def test_without_a_file_the_environment_says_everything() -> None:
    loaded = load(
        None, {"DUOSTORE__KINDS__NOTE__CACHE_TTL": "7s", "DUOSTORE__SERVER__WORKERS": "3"}
    )

    assert (loaded.kinds["note"].cache_ttl, loaded.server.workers) == (7, 3)
    with pytest.raises(ConfigError, match="kinds: at least one kind, query or quota is needed"):
        load(None, {})


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[server]\nthreads = 21", "server.threads", "aurora.max_waiting + 2, which is 22"),
        ("[aurora]\npool_max = 11", "server.threads", "which is 25"),
        ("[aurora]\nmax_waiting = 15", "server.threads", "which is 25"),
        ("[aurora]\npool_min = 9", "aurora.pool_min", "at most aurora.pool_max, which is 8"),
        (
            "[server]\nmax_concurrent_rpcs = 23",
            "server.max_concurrent_rpcs",
            "at least server.threads, which is 24",
        ),
        (
            "[server]\nmax_deadline = '4s'",
            "server.default_deadline",
            "at most server.max_deadline, which is 4s",
        ),
        ("[server]\ndrain_timeout = '4s'", "server.default_deadline", "server.drain_timeout"),
        (
            "[server]\nconnection_age_grace = '4s'",
            "server.default_deadline",
            "server.connection_age_grace",
        ),
        (
            "[aurora]\nlock_timeout = '3s'",
            "aurora.lock_timeout",
            "at most aurora.statement_timeout, which is 2s",
        ),
        (
            "[server]\nmax_message_bytes = '1408KiB'",
            "kinds.note.max_bytes",
            "needs server.max_message_bytes to be at least 1442816, and it is 1408KiB",
        ),
        (
            "[server]\nmax_answer_bytes = '1408KiB'",
            "kinds.note.max_bytes",
            "needs server.max_answer_bytes to be at least 1442816, and it is 1408KiB",
        ),
        (
            "[projector]\nclaim = '899ms'",
            "projector.claim",
            "at least dynamodb.read_timeout + cache.timeout, which is 900ms",
        ),
        ("[dynamodb]\nread_timeout = '1500ms'", "projector.claim", "which is 1600ms"),
        ("[cache]\ntimeout = '701ms'", "projector.claim", "which is 1501ms"),
        ("[metrics]\naddress = '127.0.0.1:50051'", "metrics.address", "is server.address"),
        ("[metrics]\naddress = '0.0.0.0:50051'", "metrics.address", "is server.address"),
        ("[kinds.a]\nttl = '1h'", "kinds.a.ttl", 'needs kinds.a.home = "dynamodb"'),
        (
            "[kinds.a]\nconsolidate_every = '1m'",
            "kinds.a.consolidate_every",
            'needs kinds.a.home = "dynamodb"',
        ),
        (
            "[kinds.a]\nhome = 'dynamodb'\nsnapshots = {}",
            "kinds.a.snapshots",
            'needs kinds.a.home = "aurora"',
        ),
        (
            "[kinds.a]\nhome = 'dynamodb'\nprojection = 'async'",
            "kinds.a.projection",
            'must be "inline" with kinds.a.home = "dynamodb"',
        ),
        ("[server.tls]\nkey = 'a.pem'", "server.tls.certificate", "with server.tls.key"),
        ("[server.tls]\ncertificate = 'a.pem'", "server.tls.key", "with server.tls.certificate"),
        ("[server.tls]\nclient_ca = 'a.pem'", "server.tls.client_ca", "beside it"),
    ],
)
def test_keys_must_fit_together(text: str, key: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pem").touch()
    found = problems(f"{text}\n{NOTE}", tmp_path)

    assert list(found) == [key]
    assert message in found[key]


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nthreads = 22",
        "[aurora]\npool_max = 10",
        "[aurora]\nmax_waiting = 14",
        "[aurora]\npool_min = 8",
        "[server]\nmax_concurrent_rpcs = 24",
        "[server]\nmax_deadline = '5s'",
        "[server]\ndrain_timeout = '5s'",
        "[server]\nconnection_age_grace = '5s'",
        "[aurora]\nlock_timeout = '2s'",
        "[server]\nmax_message_bytes = '1409KiB'\nmax_answer_bytes = '1409KiB'",
        "[projector]\nclaim = '900ms'",
        "[cache]\ntimeout = '700ms'",
        "[metrics]\naddress = '127.0.0.2:50051'",
        "[kinds.a]\nhome = 'dynamodb'\nttl = '1h'\nconsolidate_every = '1m'",
        "[kinds.a]\nprojection = 'async'\nsnapshots = {}",
        "[server.tls]\ncertificate = 'a.pem'\nkey = 'a.pem'\nclient_ca = 'a.pem'",
    ],
)
def test_keys_that_just_fit_are_accepted(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.pem").touch()

    settings(f"{text}\n{NOTE}", tmp_path)


def test_a_bad_key_is_not_held_against_its_neighbours(tmp_path: Path) -> None:
    # With its default in place of the bad value, threads would be too few.
    text = "[server]\nthreads = 10\n[aurora]\npool_max = 'many'\n" + NOTE

    assert list(problems(text, tmp_path)) == ["aurora.pool_max"]
    assert list(problems("[kinds.'a#b']", tmp_path)) == ['kinds."a#b"']


def test_serve_needs_more_than_dev(tmp_path: Path) -> None:
    text = "[cache]\nbackend = 'memory'\n" + NOTE
    with pytest.raises(ConfigError) as caught:
        check_for_serve(settings(text, tmp_path))
    found = {problem.key: problem.message for problem in caught.value.problems}

    assert list(found) == ["aurora.dsn", "dynamodb.region", "cache.backend"]
    assert problems(text, tmp_path, serving=True) == found
    assert list(problems(text + "x = 1", tmp_path, serving=True)) == ["kinds.note.x", *found]
    check_for_serve(
        settings(
            "[aurora]\ndsn = 'host=db'\n[dynamodb]\nregion = 'eu-central-1'\n" + NOTE, tmp_path
        )
    )


def test_the_embedded_default_replaces_the_stores_and_nothing_else(tmp_path: Path) -> None:
    text = (
        "[aurora]\ndsn = 'host=db'\npooler = true\n"
        "[dynamodb]\ntable_prefix = 'x_'\nregion = 'local'\n" + NOTE
    )
    loaded = settings(text, tmp_path)
    embedded = loaded.embedded(dsn=DSN, endpoint_url="http://127.0.0.1:8000")

    assert embedded.aurora.dsn is not None
    assert embedded.aurora.dsn.get_secret_value() == DSN
    assert (embedded.aurora.pooler, embedded.cache.backend) == (False, "memory")
    assert embedded.dynamodb.endpoint_url == "http://127.0.0.1:8000"
    assert (embedded.dynamodb.table_prefix, embedded.dynamodb.region) == ("x_", "us-east-1")
    assert (embedded.server, embedded.kinds) == (loaded.server, loaded.kinds)
    assert SECRET not in repr(embedded) + describe(embedded)
    assert loaded.cache.backend == "memcached"


SECRET = "hunter2"
DSN = f"postgresql://app:{SECRET}@db.internal:5432/app"


@pytest.mark.parametrize("by_environment", [False, True])
def test_the_password_is_never_shown(by_environment: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    text = NOTE if by_environment else f"[aurora]\ndsn = '{DSN}'\n{NOTE}"
    loaded = settings(text, tmp_path, {"DUOSTORE__AURORA__DSN": DSN} if by_environment else {})

    assert loaded.aurora.dsn is not None
    assert loaded.aurora.dsn.get_secret_value() == DSN
    for shown in (
        repr(loaded),
        str(loaded),
        repr(loaded.aurora),
        str(loaded.model_dump()),
        loaded.aurora.model_dump_json(),
        describe(loaded),
    ):
        assert SECRET not in shown
    assert 'dsn = "********"' in describe(loaded)


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (f"[aurora]\ndsn = 'postgres:{SECRET}'", {}),
        (f"[aurora]\ndsn = ['{DSN}']", {}),
        (f"[aurora]\ndsn = {DSN}", {}),
        (f"[aurora]\ndsn = '{DSN}", {}),
        (f"[aurora]\ndns = '{DSN}'", {}),
        (f"[dynamodb]\nendpoint_url = '{DSN}'", {}),
        (f"[server]\nworkers = '{DSN}'\ndrain_timeout = '{DSN}'", {}),
        (f"[server]\nmax_message_bytes = '{DSN}'\nreflection = '{DSN}'", {}),
        (f"aurora = '{DSN}'", {}),
        ("", {"DUOSTORE__AURORA__DSN": SECRET}),
        ("", {"DUOSTORE__AURORA__DNS": DSN}),
        ("", {"DUOSTORE__AURORA__POOL_MAX": DSN}),
    ],
)
def test_no_problem_shows_the_password(text: str, environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ)

    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in shown
    assert caught.value.__context__ is None


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    loaded: Any = settings(NOTE, tmp_path)

    with pytest.raises(ValueError, match="frozen"):
        loaded.server.workers = 9


def test_paths_are_seen_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "note.json").write_text("{}")
    (tmp_path / "etc" / "duostore.toml").write_text("[kinds.note]\nschema = 'note.json'\n")
    monkeypatch.chdir(tmp_path)
    loaded = load(Path("etc/duostore.toml"), {})

    assert loaded.kinds["note"].document_schema is not None
    assert loaded.kinds["note"].document_schema.path == tmp_path / "etc" / "note.json"


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: ".".join(entry.path))
def test_every_variable_of_the_reference_is_known(entry: Entry, tmp_path: Path) -> None:
    name = env_name(tuple("note" if part == "NAME" else part for part in entry.path))
    text = f"{NOTE}[quotas.note]\nlimit = 1\nwindow = '1m'\n[queries.note]\nsql = 'note.sql'\n"

    assert name not in problems(text, tmp_path, {name: "?"})


def test_work_that_no_call_waits_for_has_time(tmp_path: Path) -> None:
    path = tmp_path / "duostore.toml"
    text = "[dynamodb]\nread_timeout = '20s'\n[projector]\nclaim = '30s'\n[kinds.note]\n"
    path.write_text(text)
    dynamodb = load(path, {}).unhurried().dynamodb
    assert (dynamodb.connect_timeout, dynamodb.read_timeout) == (10.0, 20.0)
