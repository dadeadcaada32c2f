"""The transforms of a kind: what is refused when they are loaded, and what they make."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pycountry
import pytest

from duostore_server.access.checks import Checks
from duostore_server.config import ConfigError, describe, load, policies
from duostore_server.domain.documents import compact_size
from duostore_server.domain.errors import InvalidRequestError
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, Policies, TransformError

EXAMPLE = Path(__file__).parents[2] / "examples" / "proposals"
NOTE = EntityKey("", "note", "1")


def loaded(folder: Path, kind: str, **files: str) -> KindPolicy:
    """Load a configuration of one kind; files are named as ``n2`` for ``n2.jmespath``."""
    for name, text in files.items():
        (folder / f"{name}.jmespath").write_text(text)
    file = folder / "duostore.toml"
    file.write_text(f"[kinds.note]\n{kind}\n")
    return policies(load(file, {})).of(NOTE)


def problems(folder: Path, kind: str, **files: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, kind, **files)
    return {problem.key: problem.message for problem in caught.value.problems}


def two(folder: Path, expression: str, kind: str = "") -> KindPolicy:
    table = 'transforms = { 2 = "n2.jmespath" }'
    return loaded(folder, f"projection_version = 2\n{table}\n{kind}", n2=expression)


def build(folder: Path, expression: str, document: dict[str, Any], kind: str = "") -> Any:
    return two(folder, expression, kind).transforms[2](document)


def why(folder: Path, expression: str, document: dict[str, Any], kind: str = "") -> str:
    with pytest.raises(TransformError) as caught:
        build(folder, expression, document, kind)
    return str(caught.value)


def test_a_kind_has_one_projection_version_unless_it_says_so(tmp_path: Path) -> None:
    policy = loaded(tmp_path, "")
    assert (policy.projection_version, dict(policy.transforms)) == (1, {})


def test_a_transform_makes_one_document_of_another_and_leaves_that_as_it_is(tmp_path: Path) -> None:
    document = {"first": "Ada", "last": "L", "tags": ["a", {"b": [1]}], "n": 1.5}
    before = copy.deepcopy(document)
    made = build(tmp_path, "{name: {first: first, last: last}, tags: tags, n: n}", document)
    assert made == {
        "name": {"first": "Ada", "last": "L"},
        "tags": ["a", {"b": [1]}],
        "n": 1.5,
    }
    made["tags"][1]["b"].append(2)
    assert document == before


def test_numbers_come_in_the_one_form_that_stores_give_back(tmp_path: Path) -> None:
    made = build(tmp_path, "{a: to_number('2.0'), b: avg(n), c: length(n)}", {"n": [1, 2, 3]})
    assert {name: type(value) for name, value in made.items()} == dict.fromkeys("abc", int)
    assert made == {"a": 2, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("missing", "the result is no object"),
        ("[a]", "the result is no object"),
        ("{a: abs(a)}", "the function abs takes number, not string"),
        ("{a: sum(list)}", "the function sum takes array-number, not string"),
        ("{a: &b}", "the result holds an expression (&), which is no value"),
        ("{a: floor(to_number('1e999'))}", "cannot be evaluated (OverflowError)"),
        ("{a: to_number('1e999')}", "of the result document.a is not a finite number"),
        ("{a: to_number('9007199254740993')}", "of the result document.a is a whole number of 2^"),
        ("{a: `9007199254740993`}", "of the result document.a is a whole number of 2^"),
        ('{"a\\u0000": a}', "of the result document has a field name with the character U+0000"),
        ('{a: `"\\ud800"`}', "the result holds text that is not Unicode"),
        ("merge(@, {a: missing[0]}, missing)", "cannot be evaluated (TypeError)"),
    ],
)
def test_what_cannot_be_made_is_told_without_values(
    tmp_path: Path, expression: str, expected: str
) -> None:
    said = why(tmp_path, expression, {"a": "secret", "list": [1, "secret"]})
    assert expected in said
    assert "secret" not in said


def test_a_result_may_be_as_large_as_a_document_of_the_kind_and_no_larger(tmp_path: Path) -> None:
    document = {"a": "x" * 10}
    size = compact_size({"a": "x" * 10, "b": "x" * 10})
    assert build(tmp_path, "{a: a, b: a}", document, f"max_bytes = {size}")
    assert why(tmp_path, "{a: a, b: a}", document, f"max_bytes = {size - 1}") == (
        f"the result has {size} bytes as compact JSON; its kind allows {size - 1}"
    )


def test_a_result_that_nests_too_deeply_is_refused(tmp_path: Path) -> None:
    expression = "{a: " * 21 + "@" + "}" * 21
    assert "nests deeper than 20 levels" in why(tmp_path, expression, {"x": 1})


@pytest.mark.parametrize(
    ("expression", "place", "fault"),
    [
        ("{a: a\n b}", "2:3", "'}' cannot stand here"),
        ("{a: a", "1:6", "the expression ends too early"),
        ("{a: #}", "1:5", "Unknown token #"),
        ("{\n  a: upper(a)\n}", "2:6", "there is no function upper"),
        ("items[?length(a, b) > `1`].b", "1:8", "the function length takes 1, and is given 2"),
        ("items[?length(a)].length(b, c)", "1:19", "the function length takes 1, and is given 2"),
        ("{a: not_null()}", "1:5", "the function not_null takes at least 1, and is given 0"),
    ],
)
def test_a_wrong_expression_is_told_with_its_place(
    tmp_path: Path, expression: str, place: str, fault: str
) -> None:
    table = 'projection_version = 2\ntransforms = { 2 = "n2.jmespath" }'
    found = problems(tmp_path, table, n2=expression)
    assert list(found) == ["kinds.note.transforms"]
    path = tmp_path / "n2.jmespath"
    assert f"2: {path}:{place}: {fault}" in found["kinds.note.transforms"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("projection_version = 0", {"projection_version": "must be 1 to 100"}),
        ("projection_version = 101", {"projection_version": "must be 1 to 100"}),
        ('projection_version = "2"', {"projection_version": "must be a whole number"}),
        ("projection_version = 2", {"transforms": "needs one for 2: "}),
        (
            'projection_version = 3\ntransforms = { 3 = "n2.jmespath" }',
            {"transforms": "needs one for 2: "},
        ),
        (
            'projection_version = 2\ntransforms = { 2 = "n2.jmespath", 3 = "n2.jmespath" }',
            {"transforms": "has one for 3, and kinds.note.projection_version is 2"},
        ),
        ('transforms = { 1 = "n2.jmespath" }', {"transforms": 'has "1", and projection versions'}),
        ('transforms = { 02 = "n2.jmespath" }', {"transforms": 'has "02", and projection'}),
        ('transforms = { 101 = "n2.jmespath" }', {"transforms": 'has "101", and projection'}),
        ('transforms = { 2 = "none.jmespath" }', {"transforms": "2: cannot be read: "}),
        ("transforms = { 2 = 7 }", {"transforms": "2: must be the path of a file, in quotes"}),
        ('transforms = ["n2.jmespath"]', {"transforms": "must be a table of projection versions"}),
        (
            'home = "dynamodb"\nprojection_version = 2\ntransforms = { 2 = "n2.jmespath" }',
            {
                "projection_version": 'needs kinds.note.home = "aurora"',
                "transforms": 'needs kinds.note.home = "aurora"',
            },
        ),
    ],
)
def test_what_does_not_fit_is_told_under_its_key(
    tmp_path: Path, kind: str, expected: dict[str, str]
) -> None:
    found = problems(tmp_path, kind, n2="{a: a}")
    assert set(found) == {f"kinds.note.{key}" for key in expected}
    for key, text in expected.items():
        assert text in found[f"kinds.note.{key}"]


def test_versions_that_are_read_no_more_need_no_transform(tmp_path: Path) -> None:
    table = 'transforms = { 4 = "n4.jmespath", 5 = "n5.jmespath" }'
    policy = loaded(tmp_path, f"projection_version = 5\n{table}", n4="{n: `4`}", n5="{n: `5`}")
    assert {shape: make({}) for shape, make in policy.transforms.items()} == {
        4: {"n": 4},
        5: {"n": 5},
    }


def test_a_variable_sets_both_and_the_settings_in_effect_show_them(tmp_path: Path) -> None:
    (tmp_path / "n2.jmespath").write_text("{a: a}")
    file = tmp_path / "duostore.toml"
    file.write_text("[kinds.note]\n")
    settings = load(
        file,
        {
            "DUOSTORE__KINDS__NOTE__PROJECTION_VERSION": "2",
            "DUOSTORE__KINDS__NOTE__TRANSFORMS": "2=n2.jmespath",
        },
    )
    assert policies(settings).of(NOTE).transforms[2]({"a": 1}) == {"a": 1}
    shown = describe(settings)
    assert "projection_version = 2\n" in shown
    assert f'transforms = {{ "2" = "{tmp_path / "n2.jmespath"}" }}\n' in shown
    file.write_text(f"{shown}\n")
    assert load(file, {}).kinds["note"].transforms == settings.kinds["note"].transforms


def refused(policy: KindPolicy, data: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        Checks(Policies({"note": policy})).document(NOTE, data)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_document_that_cannot_be_brought_into_a_shape_is_refused(tmp_path: Path) -> None:
    table = 'transforms = { 2 = "n2.jmespath", 3 = "n3.jmespath", 4 = "n4.jmespath" }'
    policy = loaded(
        tmp_path,
        f"projection_version = 4\n{table}",
        n2="{a: abs(never)}",
        n3="{a: abs(a)}",
        n4="{a: length(b)}",
    )
    assert refused(policy, {"a": 1, "b": 2}) == {
        "data": "cannot be brought into the shape of projection version 4: the function length "
        "takes string or array or object, not number"
    }
    found = refused(policy, {"a": "x", "b": "y"})
    assert "projection version 3: the function abs takes number, not string" in found["data"]


def test_of_a_relational_kind_what_is_saved_is_not_what_is_projected(tmp_path: Path) -> None:
    for name, text in (
        ("read.sql", "SELECT 1 AS a"),
        ("save.sql", "SELECT :data"),
        ("delete.sql", "SELECT 1"),
    ):
        (tmp_path / name).write_text(text)
    policy = two(
        tmp_path,
        "{a: abs(a)}",
        'read_model = "read.sql"\nsave_sql = "save.sql"\ndelete_sql = "delete.sql"',
    )
    assert policy.relational
    assert Checks(Policies({"note": policy})).document(NOTE, {"b": 1}) == {"b": 1}


def test_the_example_brings_every_language_into_its_new_shape() -> None:
    policy = policies(load(EXAMPLE / "duostore.toml", {})).of(EntityKey("", "language", "aaa"))
    path = Path(pycountry.__file__).parent / "databases" / "iso639-3.json"
    languages = json.loads(path.read_text(encoding="utf-8"))["639-3"]
    made = {language["alpha_3"]: policy.transforms[2](language) for language in languages}
    assert made["bod"] == {
        "codes": {"part_3": "bod", "part_1": "bo", "part_2b": "tib"},
        "name": "Tibetan",
        "names": ["Tibetan"],
        "scope": "I",
        "type": "L",
    }
    assert made["aaa"]["codes"] == {"part_3": "aaa"}
    for language in languages:
        names = (language.get(name) for name in ("name", "common_name", "inverted_name"))
        assert made[language["alpha_3"]]["names"] == [name for name in names if name]
