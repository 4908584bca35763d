"""Files that change after they have been checked."""

import os
from pathlib import Path

import pytest
from damaged_files import error_of, with_content
from slow_reading import POOLING
from tiny_dataset import write_tiny_dataset

from pipeline.dataset.manifest import DatasetFile
from pipeline.errors import InputError
from training.feed.columns import Columns
from training.feed.dataset_files import DatasetFiles


@pytest.fixture
def opened(tmp_path: Path) -> tuple[DatasetFiles, DatasetFile, Path]:
    """A file of three row groups, the first of which has been read."""
    manifest = write_tiny_dataset(tmp_path, num_contexts=80)
    files = DatasetFiles(str(tmp_path), Columns(manifest.fields, POOLING, ("click", "conversion")), "size")
    file = manifest.files_of("train")[0]
    files.read(file, 0)
    return files, file, tmp_path / file.path


def test_a_file_changed_in_place_is_hashed_and_refused(opened: tuple[DatasetFiles, DatasetFile, Path]) -> None:
    files, file, path = opened
    with path.open("r+b") as stream:
        stream.seek(file.bytes // 3)
        letter = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([letter[0] ^ 1]))
    for _ in range(2):
        with pytest.raises(InputError, match=rf"{file.path} has the checksum .* its bytes have changed"):
            files.read(file, 1)


def test_a_file_cut_short_or_deleted_is_refused(opened: tuple[DatasetFiles, DatasetFile, Path]) -> None:
    files, file, path = opened
    os.truncate(path, file.bytes - 1)
    with pytest.raises(InputError, match=rf"{file.path} has {file.bytes - 1} bytes where the manifest says"):
        files.read(file, 1)
    path.unlink()
    with pytest.raises(InputError, match=rf"{file.path} is missing, though the manifest names it"):
        files.read(file, 1)


def test_a_file_changed_while_it_is_read_is_refused(
    opened: tuple[DatasetFiles, DatasetFile, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, file, path = opened
    read = files._read

    def slow_read(*args: object) -> object:
        table = read(*args)  # type: ignore[arg-type]
        path.write_bytes(b"x" * file.bytes)
        return table

    monkeypatch.setattr(files, "_read", slow_read)
    with pytest.raises(InputError, match="its bytes have changed"):
        files.read(file, 1)


def test_a_name_that_leads_to_no_regular_file_of_the_dataset_is_refused_at_once(
    opened: tuple[DatasetFiles, DatasetFile, Path],
) -> None:
    files, file, path = opened
    away = path.parents[2] / f"{path.parents[1].name}-away"
    path.rename(away)
    path.symlink_to(away)
    with pytest.raises(InputError, match=rf"{file.path} cannot be read .a link leads out of the folder, to {away}"):
        files.read(file, 1)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=rf"{file.path} cannot be read .it is not a regular file"):
        files.read(file, 1)
    path.unlink()
    away.rename(path)
    assert files.read(file, 1).num_rows


def test_a_footer_that_is_no_utf_8_is_one_sentence(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path, num_contexts=20)
    content = (tmp_path / manifest.files[0].path).read_bytes()
    footer = content.index(b"impression_id")  # the schema stands first in the footer
    damaged = content[:footer] + b"\xff" + content[footer + 1 :]
    for decoder in ("pages", "pyarrow"):
        message = error_of(tmp_path, with_content(tmp_path, manifest, damaged), decoder=decoder)
        assert "cannot be read ('utf-8' codec can't decode byte 0xff" in message
        assert message.isprintable()


def test_a_file_that_was_only_touched_is_read_on(opened: tuple[DatasetFiles, DatasetFile, Path]) -> None:
    files, file, path = opened
    expected = files.read(file, 1)
    os.utime(path, ns=(1, 1))
    assert files.read(file, 1) == expected
