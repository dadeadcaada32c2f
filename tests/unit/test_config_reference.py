from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from duostore_server.config import ConfigError, describe, json_schema, load, render_reference
from duostore_server.config.entries import entries, env_name

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "proposals" / "duostore.toml"


def test_the_reference_in_the_docs_is_fresh() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")

    assert written == render_reference(), "write render_reference() to docs/configuration.md"


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: ".".join(entry.path))
def test_every_key_is_in_the_reference_with_its_meaning(entry: Any) -> None:
    (row,) = [
        line for line in render_reference().splitlines() if env_name(entry.path) + "`" in line
    ]

    assert row.startswith(f"| `{entry.path[-1]}` | {entry.form.label}")
    assert entry.meaning.endswith(".")
    assert f" | {entry.meaning} | " in row
    assert row.count("|") == 6


def test_every_key_is_in_the_json_schema_with_its_meaning() -> None:
    schema = json_schema()
    for entry in entries():
        node = schema
        for name in entry.path:
            properties = node.get("properties", {})
            node = properties[name] if name in properties else node["additionalProperties"]
            if "$ref" in node:
                node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        assert node["description"] == entry.meaning
        assert node.get("default") == entry.default
    # TOML has no null.
    assert '"null"' not in json.dumps(schema)


def test_the_json_schema_accepts_what_is_loaded_and_refuses_what_is_not(tmp_path: Path) -> None:
    validator = jsonschema_rs.Draft202012Validator(json_schema())
    example = tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert list(validator.iter_errors(example)) == []
    assert validator.is_valid({"kinds": {"note": {}}})
    assert validator.is_valid({"quotas": {"calls": {"limit": 0, "window": "1m"}}})

    file = tmp_path / "duostore.toml"
    for text in (
        "[server]\nworkers = 0",
        "[server]\nworkers = 'two'",
        "[server]\nthread = 5",
        "[server]\ndrain_timeout = 20",
        "[server]\ndrain_timeout = '20'",
        "[server]\nmax_message_bytes = '8MB'",
        "[server]\naddress = '::1:5'",
        "[cache]\nnodes = []",
        "[cache]\nbackend = 'redis'",
        "[queries.x]",
        "[kinds.note]\nhome = 'x'",
        "[kinds.note]\nttl = '1 day'",
        "[kinds.note.snapshots]\nkept = '7d'",
        "[quotas.calls]\nlimit = 5",
        "[quotas.calls]\nwindow = '1m'",
        "[quotas.calls]\nlimit = -1\nwindow = '1m'",
        "[quotas.calls]\nlimit = 5\nwindow = '1m'\noverrides = [5]",
        "[quotas.calls]\nlimit = 5\nwindow = '1m'\noverrides = { alice = -1 }",
        "[quotas.calls]\nlimit = 5\nwindow = '1m'\noverrides = { '' = 1 }",
        "[kinds]",
        "[quotas]",
        "",
    ):
        alone = "kinds" in text or text in {"", "[quotas]"}
        file.write_text(text if alone else f"{text}\n[kinds.note]\n")
        assert not validator.is_valid(tomllib.loads(file.read_text())), text
        with pytest.raises(ConfigError):
            load(file, {})


def test_a_description_is_toml_that_loads_as_the_same_settings(tmp_path: Path) -> None:
    environ = {
        "DUOSTORE__SERVER__DRAIN_TIMEOUT": "1500ms",
        "DUOSTORE__SERVER__DEFAULT_DEADLINE": "1s",
        "DUOSTORE__CACHE__NODES": "a:1,[::1]:2",
        "DUOSTORE__CACHE__COMPRESS_ABOVE": "1000",
        "DUOSTORE__METRICS__ADDRESS": "",
    }
    loaded = load(EXAMPLE, environ)
    file = tmp_path / "duostore.toml"
    file.write_text(describe(loaded), encoding="utf-8")

    assert loaded.quotas["api_calls"].overrides
    assert load(file, {}) == loaded
    assert "# dsn is not set\n" in describe(loaded)


def test_a_description_names_every_kind_as_toml_does(tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text('[kinds."a.b"]\n[kinds.c]\n')

    assert '\n[kinds."a.b"]\nhome = "aurora"\n' in describe(load(file, {}))
    assert "\n[kinds.c]\n" in describe(load(file, {}))


def test_a_description_tells_what_a_kind_does_not_have(tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text("[kinds.a]\nhome = 'dynamodb'\n[kinds.b.snapshots]\nkeep = '0s'\n")
    described = describe(load(file, {}))

    assert '\nhome = "dynamodb"\ncache_ttl = "5s"\n' in described
    assert "\n# [kinds.a.snapshots] is not set\n" in described
    assert '\n[kinds.b.snapshots]\nconsolidate_every = "30s"\nkeep = "0s"\n' in described
    assert described.count("# ttl is not set\n") == 2


def test_a_description_writes_a_table_of_limits_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text(
        "[kinds.a]\n"
        '[quotas."b.c"]\nlimit = 5\nwindow = "1m"\n'
        'overrides = { "a \\"b\\"#c = d" = 7, "\u00e9" = 8 }\n'
        '[quotas.d]\nlimit = 5\nwindow = "1m"\n'
    )
    described = describe(load(file, {}))

    assert '\n[quotas."b.c"]\nlimit = 5\nwindow = "60s"\n' in described
    assert '\noverrides = { "a \\"b\\"#c = d" = 7, "\u00e9" = 8 }\n' in described
    assert "\noverrides = {}\n" in described
    again = tmp_path / "again.toml"
    again.write_text(described, encoding="utf-8")
    assert load(again, {}) == load(file, {})


def test_a_description_tells_what_holds_of_quotas_where_the_file_does_not(tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text(
        '[quotas.plain]\nlimit = 1019\nwindow = "20s"\n'
        '[quotas.said]\nlimit = 1000\nwindow = "1h"\nlease = 7\nlease_time = "10s"\n'
        '[quotas.sliding]\nlimit = 0\nwindow = "10s"\nalgorithm = "sliding_window"\n'
    )
    described = describe(load(file, {}))
    plain, said, sliding = described.partition("[quotas.plain]\n")[2].split("\n\n")

    assert "# sub_windows is not set\n# lease is not set: 50, a twentieth of the limit\n" in plain
    assert '\nlease_time = "1s"\n' in plain
    assert '\nwindow = "1h"\n' in said
    assert '\n# sub_windows is not set\nlease = 7\nlease_time = "10s"\n' in said
    assert "\n# sub_windows is not set: 60\n# lease is not set: 0, a tw" in sliding
    assert '\nlease_time = "1s"  # in force: 500ms, a twentieth of the window\n' in sliding
    again = tmp_path / "again.toml"
    again.write_text(described, encoding="utf-8")
    assert load(again, {}) == load(file, {})


def test_a_table_within_a_kind_says_what_it_is_for() -> None:
    assert "\n## `[kinds.NAME.snapshots]`\n\nSnapshots of the kind" in render_reference()
    assert "\n## `[kinds.NAME]`\n\nThe kinds of entity" in render_reference()
