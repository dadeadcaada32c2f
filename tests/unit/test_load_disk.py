from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duostore_server.cli.load_disk import Disk, LocalDisk
from tests.support.simulated_disk import CrashError, SimulatedDisk

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=[LocalDisk, SimulatedDisk])
def disk(request: pytest.FixtureRequest) -> Disk:
    made: Callable[[], Disk] = request.param
    return made()


def test_a_file_that_is_not_there_has_no_content(disk: Disk, tmp_path: Path) -> None:
    assert disk.read(tmp_path / "a") is None
    assert disk.size(tmp_path / "a") is None
    disk.remove(tmp_path / "a")


def test_a_write_replaces_what_stands_behind_its_place(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "a"
    disk.write(path, b"12345", at=0)
    disk.write(path, b"ab", at=2)
    assert disk.read(path) == b"12ab"
    disk.write(path, b"", at=3)
    assert disk.size(path) == 3
    disk.write(path, b"c", at=3)
    assert disk.read(path) == b"12ac"


def test_a_write_never_leaves_a_gap(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "a"
    disk.write(path, b"12", at=0)
    with pytest.raises(OSError, match="cut"):
        disk.write(path, b"x", at=3)
    assert disk.read(path) == b"12"


def test_a_renamed_file_replaces_another(disk: Disk, tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    disk.write(old, b"old", at=0)
    disk.write(new, b"new", at=0)
    disk.sync(new)
    disk.rename(new, old)
    disk.sync_names(tmp_path)
    assert (disk.read(new), disk.read(old)) == (None, b"new")
    disk.remove(old)
    assert disk.read(old) is None


A, B = Path("/f/a"), Path("/f/b")


def _after_crash(disk: SimulatedDisk) -> list[dict[str, bytes]]:
    left = [{path.name: data for path, data in files.items()} for files in disk.survivors()]
    assert len({tuple(sorted(files.items())) for files in left}) == len(left)
    return left


def test_what_was_not_synced_may_be_lost_or_torn() -> None:
    disk = SimulatedDisk({A: b"12"})
    disk.write(A, b"3456", at=2)
    assert _after_crash(disk) == [{"a": b"12"}, {"a": b"1234"}, {"a": b"123456"}]
    disk.sync(A)
    assert _after_crash(disk) == [{"a": b"123456"}]


def test_a_new_file_may_be_lost_until_its_name_is_synced() -> None:
    disk = SimulatedDisk()
    disk.write(A, b"", at=0)
    disk.sync(A)
    assert _after_crash(disk) == [{}, {"a": b""}]
    disk.sync_names(A.parent)
    assert _after_crash(disk) == [{"a": b""}]


def test_a_rename_without_sync_leaves_the_old_or_the_new_and_the_content_may_be_lost() -> None:
    disk = SimulatedDisk({B: b"old"})
    disk.write(A, b"n", at=0)
    disk.rename(A, B)
    assert _after_crash(disk) == [{"b": b"old"}, {"b": b""}, {"b": b"n"}]


def test_the_machine_stops_before_the_operation_that_it_is_told() -> None:
    disk = SimulatedDisk({A: b"12"}, crash_at=1)
    disk.write(A, b"", at=0)
    with pytest.raises(CrashError):
        disk.sync(A)
    with pytest.raises(CrashError):
        disk.remove(A)
    assert _after_crash(disk) == [{"a": b"12"}, {"a": b""}]
