from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pycountry
import pytest

from duostore_server.config import ConfigError, load, policies
from duostore_server.config.document_schema import DocumentSchema
from duostore_server.domain.errors import FieldViolation
from duostore_server.domain.keys import EntityKey
from duostore_server.domain.policies import KindPolicy, ProjectionMode

EXAMPLE = Path(__file__).parents[2] / "examples" / "proposals" / "duostore.toml"


def policy(schema: object, folder: Path) -> KindPolicy:
    (folder / "note.json").write_text(schema if isinstance(schema, str) else json.dumps(schema))
    file = folder / "duostore.toml"
    file.write_text('[kinds.note]\nschema = "note.json"\n')
    return policies(load(file, {})).of(EntityKey("", "note", "1"))


def found(schema: object, document: dict[str, Any], folder: Path) -> set[tuple[str, str]]:
    violations = policy(schema, folder).schema_violations(document)
    return {(violation.field, violation.description) for violation in violations}


def fault(schema: object, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        policy(schema, folder)
    (problem,) = caught.value.problems
    assert problem.key == "kinds.note.schema"
    return problem.message


def test_every_violation_is_listed_under_its_path(tmp_path: Path) -> None:
    schema = {
        "required": ["title", "owner"],
        "properties": {
            "title": {"type": "string", "maxLength": 3, "pattern": "^a"},
            "items": {"items": {"required": ["price"], "properties": {"price": {"minimum": 0}}}},
            "count": {"type": ["integer", "null"]},
            "status": {"enum": ["open", 7]},
        },
        "additionalProperties": False,
    }
    document = {
        "title": "bbbb",
        "items": [{"price": 1}, {}, {"price": 1}, {"price": -1}],
        "count": 1.5,
        "status": "x",
        "one": 1,
        "two": 2,
    }

    assert found(schema, document, tmp_path) == {
        ("data.owner", "is required"),
        ("data.title", "must have at most 3 character(s)"),
        ("data.title", "must match the pattern ^a"),
        ("data.items[1].price", "is required"),
        ("data.items[3].price", "must be at least 0"),
        ("data.count", "must be of type null, integer"),
        ("data.status", "must be one of open, 7"),
        ("data.one", "is not known to the schema"),
        ("data.two", "is not known to the schema"),
    }


@pytest.mark.parametrize(
    ("rule", "value", "field", "description"),
    [
        ({"const": 3}, 4, "data.x", "must be 3"),
        ({"exclusiveMinimum": 1}, 1, "data.x", "must be more than 1"),
        ({"exclusiveMaximum": 1}, 1, "data.x", "must be less than 1"),
        ({"maximum": 1}, 2, "data.x", "must be at most 1"),
        ({"multipleOf": 0.01}, 0.015, "data.x", "must be a multiple of 0.01"),
        ({"minLength": 2}, "a", "data.x", "must have at least 2 character(s)"),
        ({"minItems": 2}, [1], "data.x", "must have at least 2 item(s)"),
        ({"maxItems": 1}, [1, 2], "data.x", "must have at most 1 item(s)"),
        ({"uniqueItems": True}, [1, 1.0], "data.x", "must not hold an item twice"),
        ({"prefixItems": [True], "items": False}, [1, 2], "data.x[1]", "is not allowed"),
        (
            {"prefixItems": [True], "unevaluatedItems": False},
            ["a", "b"],
            "data.x",
            "holds items that are not known to the schema",
        ),
        ({"minProperties": 1}, {}, "data.x", "must have at least 1 field(s)"),
        ({"maxProperties": 0}, {"a": 1}, "data.x", "must have at most 0 field(s)"),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, "data.x.b", "is required"),
        (
            {"propertyNames": {"pattern": "^[a-z]+$"}},
            {"A1": 1},
            "data.x.A1",
            "has a name that the schema does not allow",
        ),
        ({"unevaluatedProperties": False}, {"a": 1}, "data.x.a", "is not known to the schema"),
        ({"format": "date-time"}, "today", "data.x", "must have the format date-time"),
        ({"anyOf": [{"type": "null"}]}, 1, "data.x", "does not match the schema (anyOf)"),
        ({"contains": {"const": 1}}, [2], "data.x", "does not match the schema (contains)"),
        ({"not": {"const": 1}}, 1, "data.x", "does not match the schema (not)"),
        ({"items": {"type": "null"}}, [None, 1], "data.x[1]", "must be of type null"),
        (
            {"additionalProperties": {"type": "null"}},
            {"2024": 1},
            "data.x.2024",
            "must be of type null",
        ),
    ],
)
def test_a_broken_rule_is_told_in_words(
    rule: dict[str, Any], value: Any, field: str, description: str, tmp_path: Path
) -> None:
    assert found({"properties": {"x": rule}}, {"x": value}, tmp_path) == {(field, description)}


def test_a_document_that_matches_has_no_violations(tmp_path: Path) -> None:
    schema = {"properties": {"x": {"type": "integer"}, "day": {"format": "date"}}}

    assert found(schema, {"x": 1, "day": "2024-02-29"}, tmp_path) == set()


@pytest.mark.parametrize(
    ("value", "accepted"), [(1, True), (1.0, True), (1e20, True), (1.5, False), (True, False)]
)
def test_whole_doubles_are_integers(value: Any, accepted: bool, tmp_path: Path) -> None:  # noqa: FBT001 - an expectation
    assert (found({"properties": {"x": {"type": "integer"}}}, {"x": value}, tmp_path) == set()) is (
        accepted
    )


def test_an_example_is_the_first_that_the_schema_gives(tmp_path: Path) -> None:
    for schema, example in (
        ({}, None),
        ({"examples": []}, None),
        ({"examples": [7]}, None),
        ({"examples": [{"a": 1}, {"b": 2}]}, {"a": 1}),
    ):
        assert DocumentSchema(tmp_path, schema).example == example


def test_the_examples_of_the_example_match_their_schemas() -> None:
    kinds = load(EXAMPLE, {}).kinds
    for schema in (kinds["proposal"].document_schema, kinds["language"].document_schema):
        assert schema is not None
        assert schema.example is not None
        assert list(schema.violations(schema.example)) == []


def test_settings_differ_if_a_schema_does(tmp_path: Path) -> None:
    file = tmp_path / "duostore.toml"
    file.write_text('[kinds.note]\nschema = "note.json"\n')
    (tmp_path / "note.json").write_text('{"type": "object"}')
    first = load(file, {})

    assert load(file, {}) == first
    (tmp_path / "note.json").write_text('{"type": "object", "maxProperties": 1}')
    assert load(file, {}) != first


def test_a_description_is_bounded_and_quotes_no_data(tmp_path: Path) -> None:
    schema = {"properties": {"x": {"enum": ["long" * 100]}, "y": {"pattern": "^b", "maxLength": 1}}}
    violations = found(schema, {"x": "secret", "y": "secret" * 1000}, tmp_path)

    assert {field for field, _ in violations} == {"data.x", "data.y"}
    assert all(len(text) <= 200 and "secret" not in text for _, text in violations)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        pytest.param({"a": [1] * 5000}, 5000, id="that are few enough"),
        pytest.param({"a": [1] * 10_000}, 1, id="of very many values"),
        pytest.param({"n" * 50_000: [1] * 200}, 1, id="below a long name"),
        pytest.param({"a": [["x" * 3_000_000]]}, 1, id="with a long value in others"),
    ],
)
def test_all_violations_are_listed_unless_that_could_take_all_memory(
    document: dict[str, Any], told: int, tmp_path: Path
) -> None:
    schema = DocumentSchema(tmp_path, {"additionalProperties": {"items": {"type": "null"}}})
    listed = list(schema.violations(document))

    assert {v.description for v in listed[:told]} == {"must be of type null"}
    assert all(re.fullmatch(r"data\.(a|n{99}…)\[[0-9]+\]", v.field) for v in listed[:told])
    rest = [(v.field, "elsewhere too" in v.description) for v in listed[told:]]
    assert rest == ([] if told > 1 else [("data", True)])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"), "is not valid JSON"),
        ('{"type": "object", "type": "array"}', '"type" stands twice in one object'),
        ("true", "must hold a JSON object"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "must be of draft 2020-12"),
        ({"$schema": []}, "must be of draft 2020-12"),
        ({"const": "\ud800"}, "is no valid JSON Schema"),
        ('{"items":' * 400 + "{}" + "}" * 400, "is no valid JSON Schema"),
        ({"$id": "%%"}, "cannot be followed within the file"),
        ({"type": "strng"}, 'at /type: "strng"'),
        ({"properties": {"a": {"minLength": -1}}}, "at /properties/a/minLength"),
        ({"properties": {"a": {"format": "datetime"}}}, "Unknown format: 'datetime'"),
        ({"properties": {"a": {"pattern": "("}}}, "at /properties/a/pattern"),
        ({"properties": {"a": {"pattern": "^(?!x)"}}}, "or has look-around or back-references"),
        ({"$ref": "https://example.com/a.json"}, "cannot be followed within the file"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "cannot be followed within the file"),
        ({"$ref": "#/$defs/a"}, "cannot be followed within the file"),
    ],
)
def test_a_bad_schema_is_a_problem_of_its_key(schema: object, message: str, tmp_path: Path) -> None:
    assert message in fault(schema, tmp_path)


def test_a_reference_to_a_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    target = (tmp_path / "other.json").as_uri()

    assert "cannot be followed" in fault({"$ref": target}, tmp_path)


def test_the_time_a_pattern_takes_grows_with_the_string_alone(tmp_path: Path) -> None:
    # A backtracking engine would need 2^40 steps.
    violations = found(
        {"properties": {"x": {"pattern": "^(a+)+$"}}}, {"x": "a" * 40 + "!"}, tmp_path
    )

    assert violations == {("data.x", "must match the pattern ^(a+)+$")}


def test_policies_say_what_the_file_says() -> None:
    deployed = policies(load(EXAMPLE, {}))
    template = deployed.of(EntityKey("", "template", "1"))
    language = deployed.of(EntityKey("", "language", "1"))

    assert (template.projection, template.cache_ttl, template.absent_ttl, template.max_bytes) == (
        ProjectionMode.ASYNC,
        600,
        10,
        262_144,
    )
    assert (language.projection, language.cache_ttl, language.absent_ttl, language.max_bytes) == (
        ProjectionMode.INLINE,
        3600,
        30,
        4096,
    )
    assert list(template.schema_violations({"anything": "goes"})) == []
    assert [*deployed.violations(EntityKey("", "invoice", "1"), "key")] == [
        FieldViolation(
            "key.kind",
            "'invoice' is not a configured kind "
            "(configured: author_card, country, country_card, editor_state, language, proposal, "
            "subdivision, template)",
        )
    ]


def test_the_example_accepts_every_language_and_refuses_what_is_none() -> None:
    databases = Path(pycountry.__file__).parent / "databases"
    languages = json.loads((databases / "iso639-3.json").read_text(encoding="utf-8"))["639-3"]
    check = policies(load(EXAMPLE, {})).of(EntityKey("", "language", "1")).schema_violations

    assert len(languages) > 7900
    assert [violation for language in languages for violation in check(language)] == []
    assert {violation.field for violation in check({**languages[0], "alpha_2": "AAA", "x": 1})} == {
        "data.alpha_2",
        "data.x",
    }


def test_the_example_accepts_a_proposal_and_lists_what_is_wrong_with_another() -> None:
    check = policies(load(EXAMPLE, {})).of(EntityKey("", "proposal", "1")).schema_violations
    proposal = {
        "title": "A new roof",
        "status": "draft",
        "author": "ada",
        "customer": "Brown & Sons",
        "sections": [{"heading": "What we do", "text": "Replace it."}],
        "currency": "EUR",
        "items": [{"description": "Slates", "quantity": 1200, "price": "2.95"}],
        "valid_until": "2027-01-31",
        "tags": ["roof"],
    }

    assert list(check(proposal)) == []
    assert list(check({"title": "A new roof", "status": "draft"})) == []
    assert {
        violation.field
        for violation in check({"status": "sent", "items": [{"quantity": 0, "price": 2.95}]})
    } == {
        "data.title",
        "data.status",
        "data.currency",
        "data.items[0].description",
        "data.items[0].quantity",
        "data.items[0].price",
    }
