"""What a configuration says of quotas, and what must fit together in it."""

from __future__ import annotations

import pickle
from datetime import timedelta
from pathlib import Path

import pytest

from duostore_server.config import ConfigError, Settings, load, quotas
from duostore_server.domain.limits import MAX_LIMIT
from duostore_server.domain.quotas import AlgorithmName, Quota

EXAMPLE = Path(__file__).parents[2] / "examples" / "proposals" / "duostore.toml"
KIND = "[kinds.note]\n"
CALLS = "[quotas.calls]\nlimit = 1000\nwindow = '1m'\n"
BUCKET = CALLS + "algorithm = 'token_bucket'\n"
SLIDING = CALLS + "algorithm = 'sliding_window'\n"
DUOSTORE_CALLS = {"DUOSTORE__QUOTAS__CALLS__LIMIT": "5", "DUOSTORE__QUOTAS__CALLS__WINDOW": "1m"}


def settings(text: str, folder: Path, **environ: str) -> Settings:
    file = folder / "duostore.toml"
    file.write_text(KIND + text, encoding="utf-8")
    return load(file, environ)


def problems(text: str, folder: Path, **environ: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        settings(text, folder, **environ)
    return {problem.key: problem.message for problem in caught.value.problems}


def test_a_limit_and_a_window_are_all_that_a_quota_must_have(tmp_path: Path) -> None:
    assert quotas(settings(CALLS, tmp_path)) == {
        "calls": Quota(
            name="calls",
            limit=1000,
            window=timedelta(minutes=1),
            algorithm=AlgorithmName.FIXED_WINDOW,
            lease=None,
            lease_time=timedelta(seconds=1),
            reservation_ttl=timedelta(minutes=1),
            release_expired=False,
            allow_on_outage=False,
            overrides={},
        )
    }


def test_all_that_is_said_of_a_quota_reaches_the_use_cases(tmp_path: Path) -> None:
    text = """
        [quotas."API calls"]
        limit = 50
        window = "24h"
        algorithm = "sliding_window"
        sub_windows = 96
        lease = 0
        lease_time = "10s"
        reservation_ttl = "30d"
        expired_reservations = "released"
        on_outage = "allow"
        [quotas."API calls".overrides]
        alice = 1
        "acme#bob" = 1000000000000
        "#c#d" = 7
        [quotas.tokens]
        limit = 2
        window = "1s"
        algorithm = "token_bucket"
    """
    found = quotas(settings(text, tmp_path))

    assert found["API calls"] == Quota(
        name="API calls",
        limit=50,
        window=timedelta(hours=24),
        algorithm=AlgorithmName.SLIDING_WINDOW,
        sub_windows=96,
        lease=0,
        lease_time=timedelta(seconds=10),
        reservation_ttl=timedelta(days=30),
        release_expired=True,
        allow_on_outage=True,
        overrides={"alice": 1, "acme#bob": 1000000000000, "#c#d": 7},
    )
    assert found["tokens"].algorithm is AlgorithmName.TOKEN_BUCKET
    # A twentieth of its window.
    assert found["tokens"].lease_time == timedelta(milliseconds=50)


def test_a_deployment_needs_no_quotas(tmp_path: Path) -> None:
    assert quotas(settings("", tmp_path)) == {}


def test_a_deployment_may_have_quotas_alone(tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text(CALLS)
    loaded = load(file, {})

    assert (loaded.kinds, list(loaded.quotas)) == ({}, ["calls"])
    assert list(load(None, DUOSTORE_CALLS).quotas) == ["calls"]
    # A quota that is bad is not none.
    file.write_text("[kinds]\n" + CALLS.replace("1m", "1y"))
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    assert [problem.key for problem in caught.value.problems] == ["quotas.calls.window"]


def test_a_limit_of_0_is_accepted_wherever_a_limit_is(tmp_path: Path) -> None:
    loaded = settings(
        CALLS.replace("1000", "0")
        + "overrides = { alice = 0 }\n"
        + BUCKET.replace("calls", "tokens").replace("1000", "0")
        + "lease = 50\n",
        tmp_path,
        DUOSTORE__QUOTAS__TOKENS__OVERRIDES="bob=0",
    )
    calls, tokens = quotas(loaded).values()

    assert (calls.limit, calls.overrides, calls.lease_of(0)) == (0, {"alice": 0}, 0)
    # What is blocked in haste keeps the lease that it had.
    assert (tokens.limit, tokens.overrides, tokens.lease_of(0)) == (0, {"bob": 0}, 0)


def test_the_demo_has_a_thousand_calls_a_minute() -> None:
    found = quotas(load(EXAMPLE, {}))

    calls = found["api_calls"]
    assert (calls.limit, calls.window) == (1000, timedelta(minutes=1))
    assert calls.algorithm is AlgorithmName.FIXED_WINDOW
    assert found["ai_tokens"].reservation_ttl == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("[quotas.calls]\nwindow = '1m'", "quotas.calls.limit", "is required"),
        ("[quotas.calls]\nlimit = 1", "quotas.calls.window", "is required"),
        ("quotas = 5", "quotas", "must be a table: [quotas]"),
        ("[quotas]\ncalls = 5", "quotas.calls", "must be a table: [quotas.calls]"),
        (CALLS + "limits = 5", "quotas.calls.limits", 'did you mean "limit"?'),
        (
            CALLS.replace("calls", "'a#b'"),
            'quotas."a#b"',
            "the name of the quota must not hold '#'",
        ),
        (CALLS.replace("calls", "''"), 'quotas.""', "the name of the quota must not be empty"),
        (CALLS + "algorithm = 'leaky'", "quotas.calls.algorithm", '"fixed_window" or'),
        (CALLS + "overrides = 5", "quotas.calls.overrides", "must be a table of subjects"),
        (CALLS + "lease = 1001", "quotas.calls.lease", "must be at most quotas.calls.limit, which"),
        (CALLS + "sub_windows = 60", "quotas.calls.sub_windows", '= "sliding_window"'),
        (BUCKET + "sub_windows = 60", "quotas.calls.sub_windows", '= "sliding_window"'),
        (
            SLIDING.replace("1m", "9999ms") + "sub_windows = 1000",
            "quotas.calls.window",
            "must be at least 10s with 1000 sub_windows",
        ),
        (
            BUCKET.replace("1000", "60000000001"),
            "quotas.calls.limit",
            "must be at most 60000000000, since",
        ),
        (
            BUCKET + "overrides = { a = 60000000001, b = 60000000000, 'c#d' = 60000000002 }",
            "quotas.calls.overrides",
            'the limit of "a", "c#d" must be at most 60000000000, since',
        ),
    ],
)
def test_what_does_not_fit_is_told_under_its_key(
    text: str, key: str, message: str, tmp_path: Path
) -> None:
    # A key of the file's own has to stand before the tables.
    file = tmp_path / "duostore.toml"
    file.write_text(f"{text}\n{KIND}")
    with pytest.raises(ConfigError) as caught:
        load(file, {})
    found = {problem.key: problem.message for problem in caught.value.problems}

    assert list(found) == [key]
    assert message in found[key]


@pytest.mark.parametrize(
    "text",
    [
        CALLS + "lease = 1000",
        CALLS + "expired_reservations = 'released'\nreservation_ttl = '1s'",
        SLIDING + "sub_windows = 2",
        SLIDING.replace("1m", "10s") + "sub_windows = 1000",
        SLIDING.replace("1m", "1s"),
        BUCKET + "expired_reservations = 'released'\nreservation_ttl = '1s'",
        BUCKET.replace("1000", "60000000000"),
        CALLS.replace("1000", str(MAX_LIMIT)),
    ],
)
def test_what_just_fits_is_accepted(text: str, tmp_path: Path) -> None:
    settings(text, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("'' = 1", 'lists "", whose subject must not be empty'),
        ("'acme#' = 1", 'lists "acme#", whose subject must not be empty'),
        (f"'{'t' * 65}#a' = 1", "whose tenant has 65 bytes"),
        (f"'{'s' * 257}' = 1", "whose subject has 257 bytes"),
        ('"a\\u0007" = 1', "whose subject holds the control character U+0007"),
        ("a = -1", 'the limit of "a" must be a whole number, 0 to 1000000000000'),
        ("a = 1000000000001", 'the limit of "a" must be'),
        ("a = 1.0", 'the limit of "a" must be'),
        ("a = true", 'the limit of "a" must be'),
        ("a = '5'", 'the limit of "a" must be'),
        ("a = -1, 'b#' = 1", '"a" must be a whole number, 0 to 1000000000000; lists "b#", whose'),
    ],
)
def test_every_override_is_checked(override: str, message: str, tmp_path: Path) -> None:
    found = problems(f"{CALLS}overrides = {{ {override} }}", tmp_path)

    assert list(found) == ["quotas.calls.overrides"]
    assert message in found["quotas.calls.overrides"]


def test_all_problems_of_all_quotas_are_told_at_once(tmp_path: Path) -> None:
    text = """
        [quotas.a]
        limit = -1
        window = "1m"
        lease = 5
        sub_windows = 5
        [quotas.b]
        window = "32d"
        on_outage = "maybe"
        sub_windows = 6
        lease = 7
        overrides = { alice = -1 }
        [quotas.c]
        limit = 1
        window = "1m"
        lease = 2
        sub_windows = 2
        [quotas.d]
        window = "999ms"
        limit = 10000000000000
        algorithm = "token_bucket"
        sub_windows = 2
        overrides = { alice = 1000000000000 }
        [quotas.e]
        limit = 3
        window = "500ms"
        algorithm = "sliding_window"
        sub_windows = 1000
        lease = 4
    """
    # What is said of a key that is bad itself is said once: nothing is held against others by it.
    assert problems(text, tmp_path) == {
        "quotas.a.limit": "must be 0 to 1000000000000",
        "quotas.a.sub_windows": 'needs quotas.a.algorithm = "sliding_window"',
        "quotas.b.limit": "is required",
        "quotas.b.window": "must be 1s to 31d",
        "quotas.b.on_outage": 'must be "deny" or "allow"',
        "quotas.b.sub_windows": 'needs quotas.b.algorithm = "sliding_window"',
        "quotas.b.overrides": 'the limit of "alice" must be a whole number, 0 to 1000000000000',
        "quotas.c.lease": "must be at most quotas.c.limit, which is 1",
        "quotas.c.sub_windows": 'needs quotas.c.algorithm = "sliding_window"',
        "quotas.d.limit": "must be 0 to 1000000000000",
        "quotas.d.window": "must be 1s to 31d",
        "quotas.d.sub_windows": 'needs quotas.d.algorithm = "sliding_window"',
        "quotas.e.window": "must be 1s to 31d",
        "quotas.e.lease": "must be at most quotas.e.limit, which is 3",
    }


def test_the_environment_overrides_quotas_of_the_file(tmp_path: Path) -> None:
    loaded = settings(
        CALLS + "overrides = { alice = 1 }\n" + CALLS.replace("calls", "'blog.posts'"),
        tmp_path,
        DUOSTORE__QUOTAS__CALLS__LIMIT="7",
        DUOSTORE__QUOTAS__CALLS__LEASE="0",
        DUOSTORE__QUOTAS__CALLS__OVERRIDES="bob=5, acme#a=b=6 ,",
        DUOSTORE__QUOTAS__BLOG_POSTS__WINDOW="2m",
        DUOSTORE__QUOTAS__BLOG_POSTS__OVERRIDES="",
    )

    assert (loaded.quotas["calls"].limit, loaded.quotas["calls"].lease) == (7, 0)
    # As a list is: the whole of it.
    assert loaded.quotas["calls"].overrides == {"bob": 5, "acme#a=b": 6}
    assert loaded.quotas["blog.posts"].window == 120
    assert loaded.quotas["blog.posts"].overrides == {}


@pytest.mark.parametrize(
    ("name", "value", "key", "message"),
    [
        ("CALLS__OVERRIDES", "alice", "quotas.calls.overrides", "must be a table of subjects"),
        ("CALLS__OVERRIDES", "alice=x", "quotas.calls.overrides", 'the limit of "alice" must'),
        ("CALLS__OVERRIDES", "alice=-1", "quotas.calls.overrides", 'the limit of "alice" must'),
        ("CALLS__LIMIT", "many", "quotas.calls.limit", "must be a whole number (set by"),
        (
            "CALL__LIMIT",
            "5",
            "DUOSTORE__QUOTAS__CALL__LIMIT",
            'did you mean "DUOSTORE__QUOTAS__CALLS__LIMIT"?',
        ),
    ],
)
def test_a_variable_that_makes_no_sense_is_a_problem(
    name: str, value: str, key: str, message: str, tmp_path: Path
) -> None:
    found = problems(CALLS, tmp_path, **{f"DUOSTORE__QUOTAS__{name}": value})

    assert list(found) == [key]
    assert message in found[key]


def test_without_a_file_the_environment_names_quotas() -> None:
    loaded = load(
        None,
        {
            "DUOSTORE__KINDS__NOTE__CACHE_TTL": "7s",
            "DUOSTORE__QUOTAS__API_CALLS__LIMIT": "5",
            "DUOSTORE__QUOTAS__API_CALLS__WINDOW": "1m",
        },
    )
    assert {name: quota.limit for name, quota in loaded.quotas.items()} == {"api_calls": 5}
    with pytest.raises(ConfigError, match=r"quotas\.calls\.window: is required"):
        load(None, {"DUOSTORE__QUOTAS__CALLS__LIMIT": "5", "DUOSTORE__KINDS__A__HOME": "aurora"})


def test_variables_of_quotas_are_passed_over_if_the_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "missing.toml", {"DUOSTORE__QUOTAS__CALLS__LIMIT": "5"})
    assert len(caught.value.problems) == 1


def test_quotas_are_handed_to_other_processes(tmp_path: Path) -> None:
    loaded = settings(CALLS + "overrides = { alice = 1 }", tmp_path)

    assert pickle.loads(pickle.dumps(loaded)) == loaded
    assert '"alice":1' in loaded.model_dump_json()
