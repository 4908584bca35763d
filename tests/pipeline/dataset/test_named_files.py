"""Files that a manifest or checkpoint names: relative, inside, regular, and what the names say of them."""

import os
from pathlib import Path

import pytest
import xxhash

from pipeline.dataset.named_files import FileStamp, NamedFiles, inner_name
from pipeline.errors import InputError, printable


@pytest.fixture
def named(tmp_path: Path) -> NamedFiles:
    folder = tmp_path / "dataset"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "part").write_bytes(b"content")
    (tmp_path / "outside").write_bytes(b"content")
    return NamedFiles.below(folder, "manifest.json", "run jobs.preprocess again.")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside", "train/../../outside", "", ".", "a\0b", "train/\x1b[2J", "a\nb", 7, None, ["train"]],
)
def test_a_name_that_leaves_the_folder_or_is_none_is_refused_in_printable_text(name: object) -> None:
    with pytest.raises(InputError, match=r"only relative paths inside it are read: run jobs") as caught:
        inner_name(name, "/data/manifest.json", "run jobs.preprocess again.")
    assert str(caught.value).isprintable()


def test_a_name_comes_back_in_its_plain_form() -> None:
    assert inner_name("train//./part", "manifest.json", "") == "train/part"


def test_a_file_inside_is_stamped_opened_and_checked(named: NamedFiles) -> None:
    root = Path(named.root)
    (root / "link").symlink_to(root / "train" / "part")
    elsewhere = root.parent / "alias"
    elsewhere.symlink_to(root)  # the folder itself may be reached by a link
    for files in (named, NamedFiles.below(elsewhere, "manifest.json", ""), NamedFiles.below(f"file://{root}", "m", "")):
        for name in ("train/part", "link"):
            found = files.check_size(name, 7)
            assert found == FileStamp(7, (root / "train" / "part").stat().st_mtime_ns)
            with files.open(name) as stream:
                assert stream.read() == b"content"
            files.check_content(name, xxhash.xxh3_64_hexdigest(b"content"))
    with pytest.raises(InputError, match=r"train/part has 7 bytes where manifest.json says 8; run jobs"):
        named.check_size("train/part", 8)
    with pytest.raises(InputError, match=r"train/part has the checksum \w+ where manifest.json says 0: its bytes"):
        named.check_content("train/part", "0")


def test_what_is_no_regular_file_inside_is_refused_at_once(named: NamedFiles) -> None:
    root = Path(named.root)
    os.mkfifo(root / "fifo")
    (root / "away").symlink_to(root.parent / "outside")
    (root / "folder_away").symlink_to(root.parent)
    (root / "dangling").symlink_to(root / "nothing")
    (root / "loop").symlink_to(root / "loop")
    (root / "device").symlink_to("/dev/zero")
    for name, found in {
        "fifo": "is not a regular file",
        "train": "is not a regular file",
        "away": "a link leads out of the folder",
        "folder_away/outside": "a link leads out of the folder",
        "device": "a link leads out of the folder",
        "dangling": "is missing, though manifest.json names it",
        "nothing": "is missing, though manifest.json names it",
        "train/part/deeper": "Not a directory",
        "loop": "Too many levels of symbolic links",
        "x" * 300: "File name too long",
    }.items():
        for act in (named.stamp, named.open, lambda name: named.check_size(name, 7)):
            with pytest.raises(
                InputError, match=rf"{name} .*{found}.*; (run jobs.preprocess again|remove the circle of links)\."
            ):
                act(name)


def test_printable_text_escapes_what_a_terminal_acts_on_and_nothing_else() -> None:
    assert printable("plain, µ 物品 …") == "plain, µ 物品 …"
    assert printable("\x1b[31mred\r\n\x9b\x7f\0") == "\\x1b[31mred\\r\\n\\x9b\\x7f\\x00"
    assert printable("\u202egnp.exe\u2028\ud800") == "\\u202egnp.exe\\u2028\\ud800"
