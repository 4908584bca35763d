import io
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.chunks.files import ArrowFiles, Files, files_of
from pipeline.chunks.hadoop_files import HadoopFiles
from pipeline.errors import InputError
from pipeline.storage.local_store import LocalStore
from pipeline.storage.store import store_of

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="module", params=["path", "file://", "by Spark"])
def opened(request: pytest.FixtureRequest, spark: "SparkSession") -> tuple[Files, str]:
    """A way to open files, and what stands before a path there."""
    return {
        "path": (files_of("/", False), ""),
        "file://": (files_of("file:///", False), "file://"),
        "by Spark": (files_of("/", True), "file:"),
    }[str(request.param)]


def test_every_way_to_open_files_lists_and_reads_the_same(tmp_path: Path, opened: tuple[Files, str]) -> None:
    files, scheme = opened
    content = os.urandom(300_000)
    (tmp_path / "b [1]").write_bytes(content)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("b [1]")
    root = f"{scheme}{tmp_path}"
    found = [(entry.name, entry.is_directory) for entry in files.children(root)]
    assert found == [("a", True), ("b [1]", False), ("link", False)]
    whole, entry, link = files.entry(root), files.entry(root, "b [1]"), files.entry(f"{root}/", "link")
    assert whole is not None
    assert whole.is_directory
    assert files.entry(root, "none") is None
    assert entry is not None
    assert files.entry(entry.address, "below") is None
    for one in (entry, link):
        assert one is not None
        assert (one.bytes, one.is_directory) == (len(content), False)
        with files.open(one.address) as stream:
            assert stream.read() == content


def test_reading_is_that_of_a_file_whatever_the_order_of_seeks(tmp_path: Path, opened: tuple[Files, str]) -> None:
    files, scheme = opened
    draw = random.Random(5)
    content = b"\n".join(draw.randbytes(draw.choice([0, 5, 300, 90_000])) for _ in range(40))
    (tmp_path / "log").write_bytes(content)
    expected = io.BytesIO(content)
    with files.open(f"{scheme}{tmp_path}/log") as stream:
        for _ in range(200):
            offset, size = draw.randrange(len(content)), draw.choice([1, 100, 70_000, 2 << 20])
            assert stream.seek(offset) == expected.seek(offset)
            assert stream.read(size) == expected.read(size)
            assert stream.readline() == expected.readline()
            assert stream.tell() == expected.tell()


def test_a_path_of_this_host_is_absolute_without_links_and_home_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").touch()
    (tmp_path / "to nothing").symlink_to("gone")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    files = ArrowFiles()
    for directory in (".", "~", f"{tmp_path}/"):
        assert [entry.address for entry in files.children(directory) if not entry.oddity] == [f"{tmp_path}/log"]
        entry = files.entry(directory, "log")
        assert entry is not None
        assert entry.address == f"{tmp_path}/log"
    nothing = files.entry(".", "to nothing")
    assert nothing is not None
    assert nothing.oddity == "a link to nothing"
    assert nothing in files.children(".")
    assert files.entry(".", "nothing") is None


def test_a_stamp_changes_with_the_content_and_says_what_is_no_file(tmp_path: Path) -> None:
    path, files = tmp_path / "log", ArrowFiles()
    path.write_bytes(b"one")
    os.mkfifo(tmp_path / "pipe")
    before, pipe = files.entries([str(path), str(tmp_path / "pipe")])
    assert before is not None
    assert pipe is not None
    path.write_bytes(b"two")
    os.utime(path, ns=(before.stamp[0], before.stamp[0]))
    (after,) = files.entries([str(path)])
    assert after is not None
    assert after.stamp != before.stamp
    assert (before.oddity, pipe.oddity) == ("", "no regular file")


def test_what_spark_opens_needs_the_java_side_of_a_session(spark: "SparkSession") -> None:
    assert isinstance(files_of("hdfs://name/raw", by_spark=True), HadoopFiles)
    assert spark._jvm is not None, "HadoopFiles opens files through this private name of PySpark"
    assert spark._jsc is not None


def test_a_store_is_a_directory_wherever_its_address_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in ("out", f"{tmp_path}/out", f"file://{tmp_path}/out", "./x/../out"):
        assert store_of(out) == LocalStore(tmp_path / "out")
    with pytest.raises(InputError, match="nowhere://x cannot be opened"):
        store_of("nowhere://x")
