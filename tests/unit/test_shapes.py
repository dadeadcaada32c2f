"""Which shapes are written and read, and that no order of flags answers a reader wrongly."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from duostore_server import codec
from duostore_server.access.shapes import Shapes, flags_of
from duostore_server.domain.entities import Cached, Entity, Form, Projection
from duostore_server.domain.errors import ControlsUnknownError, ProjectionFailedError, Store
from duostore_server.domain.policies import (
    KindPolicy,
    Policies,
    ProjectionMode,
    TransformError,
)
from duostore_server.domain.transactions import Change, Origin, Transaction
from tests.support import reader_stack
from tests.support.reader_stack import KEY, NOON, key

if TYPE_CHECKING:
    from duostore_server.domain.controls import FlagValue
    from duostore_server.domain.documents import JsonObject

WRITE, READ = "projection_write.proposal.2", "projection_read.proposal.2"


def upper(document: JsonObject) -> JsonObject:
    if "id" not in document:
        raise TransformError("there is no id")
    return {"ID": document["id"]}


def policies(newest: int = 2, **transforms: Any) -> Policies:
    made = transforms.pop("transforms", {2: upper, 3: lambda data: {"third": data["id"]}})
    kind = KindPolicy(
        cache_ttl=60,
        absent_ttl=10,
        projection=ProjectionMode.INLINE,
        max_bytes=1000,
        projection_version=newest,
        transforms=made,
    )
    return Policies({"proposal": kind, "plain": replace(kind, projection_version=1)})


def entity(data: JsonObject | None) -> Entity:
    return Entity(KEY, 7, data, NOON, NOON)


def shapes(write: str = "old", read: int = 0) -> Shapes:
    values: dict[str, FlagValue] = {WRITE: write, READ: read}
    return Shapes(policies(), codec.encode, values.__getitem__)


def test_each_evolving_kind_has_two_flags_of_its_newest_version() -> None:
    assert list(flags_of(policies(3))) == [
        "projection_write.proposal.3",
        "projection_read.proposal.3",
    ]
    assert flags_of(policies(1)) == {}


@pytest.mark.parametrize(
    ("value", "fits"), [("both", True), ("none", False), (1, False), (None, False)]
)
def test_a_flag_of_words_takes_its_words_alone(value: object, *, fits: bool) -> None:
    assert (flags_of(policies())[WRITE].problem(value) is None) is fits


@pytest.mark.parametrize(
    ("value", "fits"), [(0, True), (100, True), (101, False), (-1, False), (True, False)]
)
def test_a_flag_of_percent_takes_whole_numbers_up_to_100(value: object, *, fits: bool) -> None:
    assert (flags_of(policies())[READ].problem(value) is None) is fits


def test_each_flag_says_what_it_may_be() -> None:
    for flag in flags_of(policies()).values():
        assert flag.choices or flag.most
        for value in flag.choices or (f"0 to {flag.most}",):
            assert value in flag.description


@pytest.mark.parametrize(("write", "written"), [("old", (1,)), ("both", (1, 2)), ("new", (2,))])
def test_the_flag_says_which_shapes_are_written(write: str, written: tuple[int, ...]) -> None:
    projected = shapes(write).project(entity({"id": "1"}))
    assert projected.shapes == frozenset(written)
    for shape, data in ((1, {"id": "1"}), (2, {"ID": "1"})):
        payload = projected.in_shape(shape)
        assert (None if payload is None else codec.document_of(payload)) == (
            data if shape in written else None
        )


def test_of_the_third_version_the_second_is_the_old_one() -> None:
    values: dict[str, FlagValue] = {
        "projection_write.proposal.3": "both",
        "projection_read.proposal.3": 0,
    }
    third = Shapes(policies(3), codec.encode, values.__getitem__)
    assert third.project(entity({"id": "1"})).shapes == {2, 3}
    assert third.to_read(KEY) == 2


def test_without_flags_all_is_as_before() -> None:
    plain = Shapes(policies(), codec.encode)
    assert plain.to_read(KEY) == 1
    assert plain.project(entity({"id": "1"})) == Projection(
        7, Form.VALUE, codec.encode(entity({"id": "1"}))
    )


def test_a_deletion_has_no_shape() -> None:
    assert shapes("both").project(entity(None)) == Projection(7, Form.TOMBSTONE)


def test_a_share_of_the_keys_reads_the_new_shape_and_always_the_same_ones() -> None:
    keys = [key(str(number)) for number in range(2000)]
    before: set[str] = set()
    for percent in (0, 10, 50, 100):
        now = {one.id for one in keys if shapes(read=percent).to_read(one) == 2}
        assert before <= now
        assert abs(len(now) - 20 * percent) < 100
        before = now
    assert len(before) == len(keys)


def test_a_document_that_fits_no_shape_is_left_to_aurora_and_its_reader_is_told_why() -> None:
    odd = entity({"other": 1})
    assert shapes("new").project(odd) == Projection(7, Form.STUB)
    assert shapes("both").project(odd).shapes == {1}
    with pytest.raises(ProjectionFailedError, match="version 2: there is no id"):
        shapes("new").payload(odd, 2)


class Stack:
    """A reader of an evolving kind, and writers that take the flags for other ones."""

    def __init__(self) -> None:
        self.stack = reader_stack.Stack(policies=policies())
        self.values = self.stack.flags
        self.values |= {WRITE: "old", READ: 0}

    def save(self, text: str, write: str) -> None:
        """Commit and project as a process would to which the flag is ``write``."""
        change = Change(KEY, {"id": text}, None, timedelta())
        transaction = Transaction((change,), Origin("", ""))
        (written,) = self.stack.rows.write(transaction, self.stack.soon()).written
        projected = shapes(write).project(written.entity)
        self.stack.stored.put(KEY, projected, self.stack.soon())
        self.stack.entries.invalidate((KEY,))

    def get(self) -> tuple[JsonObject, Store]:
        reading = self.stack.get()
        assert reading.payload is not None
        return codec.document_of(reading.payload), reading.served_from


@pytest.mark.parametrize("write", ["old", "both", "new"])
@pytest.mark.parametrize("mine", ["old", "both", "new"])
@pytest.mark.parametrize("percent", [0, 100])
def test_whatever_others_write_a_reader_gets_its_shape_of_the_newest_version(
    write: str, mine: str, percent: int
) -> None:
    stack = Stack()
    stack.values |= {WRITE: mine, READ: percent}
    stack.save("1", "both")
    stack.save("2", write)
    expected = {"ID": "2"} if percent else {"id": "2"}
    there = write == "both" or (write == "new") is bool(percent)
    assert stack.get() == (expected, Store.DYNAMODB if there else Store.AURORA)
    # What was missing was brought if it is to be written; and it is cached, whoever had it.
    assert stack.get() == (expected, Store.CACHE)


def test_an_entry_in_another_shape_is_passed_over_and_dropped() -> None:
    stack = Stack()
    stack.values |= {WRITE: "both"}
    stack.save("1", "both")
    assert stack.get() == ({"id": "1"}, Store.DYNAMODB)
    assert stack.get() == ({"id": "1"}, Store.CACHE)
    stack.values[READ] = 100
    assert stack.get() == ({"ID": "1"}, Store.DYNAMODB)
    assert stack.get() == ({"ID": "1"}, Store.DYNAMODB)
    held = stack.stack.entries.read((KEY,))[KEY]
    assert isinstance(held, Cached)
    assert held.shape == 2
    assert stack.get() == ({"ID": "1"}, Store.CACHE)


def test_that_an_entity_is_absent_is_known_in_every_shape() -> None:
    stack = Stack()
    stack.values[READ] = 100
    (reading,) = stack.stack.reader.batch_get((KEY,), stack.stack.soon()).values()
    assert (reading.version, reading.payload) == (0, None)
    stack.values[READ] = 0
    (again,) = stack.stack.reader.batch_get((KEY,), stack.stack.soon()).values()
    assert again.served_from is Store.CACHE


def unknown(stack: Stack) -> None:
    """Let the process know no flag, as one that starts while Aurora is away."""
    stack.values.clear()


def test_who_knows_no_flags_writes_all_shapes() -> None:
    know_nothing = Shapes(policies(3), codec.encode, lambda _: None)
    assert know_nothing.project(entity({"id": "1"})).shapes == {2, 3}
    with pytest.raises(ControlsUnknownError):
        know_nothing.to_read(KEY)
    assert Shapes(policies(1), codec.encode, lambda _: None).to_read(KEY) == 1


@pytest.mark.parametrize(("write", "answer"), [("old", {"id": "1"}), ("new", {"ID": "1"})])
def test_who_knows_no_flags_answers_the_only_shape_that_there_is(
    write: str, answer: JsonObject
) -> None:
    stack = Stack()
    stack.save("1", write)
    unknown(stack)
    assert stack.get() == (answer, Store.DYNAMODB)
    assert stack.get() == (answer, Store.CACHE)


@pytest.mark.parametrize("percent", [0, 100])
def test_who_knows_no_flags_answers_what_others_have_cached_and_leaves_it(percent: int) -> None:
    stack = Stack()
    stack.values |= {WRITE: "both", READ: percent}
    stack.save("1", "both")
    answer, _ = stack.get()
    unknown(stack)
    assert stack.get() == (answer, Store.CACHE)
    stack.values |= {WRITE: "both", READ: percent}
    assert stack.get() == (answer, Store.CACHE)


def test_who_knows_no_flags_does_not_choose_between_two_shapes() -> None:
    stack = Stack()
    stack.save("1", "both")
    unknown(stack)
    for strong in (False, True):
        with pytest.raises(ControlsUnknownError):
            stack.stack.reader.get(KEY, stack.stack.soon(), strong=strong)
    stack.values |= {WRITE: "both", READ: 100}
    assert stack.get() == ({"ID": "1"}, Store.DYNAMODB)


def test_who_knows_no_flags_asks_nobody_for_a_document_that_is_not_projected() -> None:
    stack = Stack()
    stack.save("1", "new")
    stack.stack.stored.held.clear()
    unknown(stack)
    with pytest.raises(ControlsUnknownError):
        stack.get()


def test_who_knows_no_flags_knows_a_deletion() -> None:
    stack = Stack()
    stack.stack.stored.put(KEY, Projection(3, Form.TOMBSTONE), stack.stack.soon())
    unknown(stack)
    (reading,) = stack.stack.reader.batch_get((KEY,), stack.stack.soon()).values()
    assert (reading.version, reading.payload) == (3, None)
