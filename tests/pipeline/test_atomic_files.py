import errno
import io
import os
import stat
from pathlib import Path

import pytest
import xxhash

from pipeline.atomic_files import move_whole, sync_directory, write_whole, xxh3_of


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "é\n")
    write_whole(path, b"new", partial=tmp_path / "elsewhere", mode=0o700)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_content_is_on_the_disk_before_the_rename_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_whole(tmp_path / "a", b"x")
    assert steps == ["content", "rename", "directory"]
    (tmp_path / "finished").write_bytes(b"y")
    move_whole(tmp_path / "finished", tmp_path / "a")
    assert steps == ["content", "rename", "directory"] * 2
    assert (tmp_path / "a").read_bytes() == b"y"


def test_only_a_directory_is_synced_as_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        sync_directory(tmp_path / "file")


def test_the_checksum_is_that_of_the_bytes_however_they_come() -> None:
    content = os.urandom((4 << 20) + 5)
    assert xxh3_of(io.BytesIO(content)) == xxhash.xxh3_64(content).hexdigest()
    assert xxh3_of(io.BytesIO()) == xxhash.xxh3_64(b"").hexdigest()
