"""source.reader=spark: the same dataset, byte for byte, through Hadoop's file systems."""

import gzip
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from raw_log import random_log, small_log

from pipeline.aliccp.byte_ranges import input_splits, read_chunks
from pipeline.aliccp.reader import ChunkReader
from pipeline.aliccp.spark_lines import line_reader, lines
from pipeline.chunks.hadoop_files import HadoopFiles
from pipeline.chunks.sources import SKELETON, SourceFile
from pipeline.config.preprocess import PreprocessSettings
from pipeline.errors import InputError
from pipeline.features.fields import catalogue
from pipeline.preprocess import preprocess
from pipeline.storage.commit import files_named

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

Settings = Callable[..., PreprocessSettings]
SMALL = ("rows.max_impressions=8", "rows.impressions_per_row_group=50", "rows.impressions_per_file=300")


@pytest.fixture
def session(spark: "SparkSession") -> "Iterator[SparkSession]":
    """The session, with its input splits as they were in the end."""
    yield spark
    for name in ("maxPartitionBytes", "openCostInBytes"):
        spark.conf.unset(f"spark.sql.files.{name}")


def source_of(path: Path, text: bytes, ordinal: int) -> SourceFile:
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    size = path.stat().st_size
    return SourceFile(ordinal, path.name, f"file:{path}", size, SKELETON, "train", path.suffix == ".gz", by_spark=True)


@pytest.mark.parametrize("split_bytes", [1, 7, 64, 1 << 20])
def test_every_line_comes_once_with_its_offset_whatever_the_bytes_and_the_blocks(
    tmp_path: Path, session: "SparkSession", preprocess_settings: Settings, split_bytes: int
) -> None:
    draw = random.Random(split_bytes)
    folder = tmp_path / "50% [a] {b}?"
    folder.mkdir()
    texts = [
        b"\xef\xbb\xbfmark\n\nx",
        b"\xff\xfe\r\n\x00\n" * 3,
        b"a" * 40 + b"\n" + b"b" * 90,
        b"no end",
        b"\n",
        b"\xef\xbb\xbfz",
    ]
    texts.append(b"\n".join(b"x" * draw.choice([0, 0, 1, 5, 30, 200]) for _ in range(30)))
    sources = [
        source_of(folder / f"p{number} é.csv{'.gz' * (number % 3 == 2)}", text, number)
        for number, text in enumerate(texts)
    ]
    splits = input_splits(sources, split_bytes)
    settings = preprocess_settings(tmp_path, tmp_path / "out")
    frame = lines(session, sources, split_bytes)
    reader = line_reader(frame, ChunkReader.of(catalogue(settings.features, 2), settings), splits)

    def told(batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        for source, _, offset, text in reader.texts(batches):
            yield pa.RecordBatch.from_pydict({"ordinal": [source.ordinal], "offset": [offset], "text": [text]})

    rows = frame.mapInArrow(told, "ordinal long, offset long, text binary").collect()
    for source in sources:
        local = [SourceFile(**{**vars(source), "path": source.path.removeprefix("file:"), "by_spark": False})]
        expected = [lines[:2] for split in input_splits(local, 1 << 20) for lines in read_chunks(split, 1 << 20)]
        found = sorted((row.offset, bytes(row.text)) for row in rows if row.ordinal == source.ordinal)
        assert b"".join(text for _, text in found) == b"".join(text for _, text in expected)
        for offset, text in found:
            before = sum(len(other) for at, other in found if at < offset)
            assert offset == before, text


@pytest.mark.parametrize("compressed", [False, True])
def test_a_log_read_by_spark_makes_the_dataset_that_python_makes(
    tmp_path: Path, session: "SparkSession", preprocess_settings: Settings, compressed: bool
) -> None:
    raw = random_log(4, num_contexts=20, interleaved=True).write(tmp_path / "raw", compressed=compressed)
    given = [*SMALL, "source.split_bytes=4000"]
    manifest = preprocess(preprocess_settings(raw, tmp_path / "python", *given))
    address = Path(f"file:{raw}")
    by_spark = preprocess_settings(address, tmp_path / "spark", *given, "source.reader=spark")
    assert preprocess(by_spark).to_json() == manifest.to_json()
    assert any("reread-" in path for path in files_named(manifest))
    for path in files_named(manifest):
        assert (tmp_path / "spark" / path).read_bytes() == (tmp_path / "python" / path).read_bytes()


def test_an_action_log_and_the_heads_of_files_are_read_through_javas_streams(
    tmp_path: Path, session: "SparkSession"
) -> None:
    text = bytes(range(256)) * 1000
    (tmp_path / "log").write_bytes(text)
    (tmp_path / "log.gz").write_bytes(gzip.compress(text))
    files = HadoopFiles()
    assert [entry.name for entry in files.children(f"file:{tmp_path}")] == ["log", "log.gz"]
    entry = files.entry(f"file:{tmp_path}", "log")
    assert entry is not None
    assert (entry.bytes, entry.is_directory) == (len(text), False)
    with files.open(entry.address) as stream:
        assert stream.read() == text
        stream.seek(70_000)
        assert stream.read(5) == text[70_000:70_005]
    with source_of(tmp_path / "again.gz", text, 0).open() as stream:
        assert stream.read() == text
    assert files.entry(f"file:{tmp_path}", "none") is None


def test_mistakes_are_said_in_one_sentence(
    tmp_path: Path, session: "SparkSession", preprocess_settings: Settings
) -> None:
    def refusal(source: str, *more: str) -> str:
        with pytest.raises(InputError) as refused:
            preprocess(preprocess_settings(Path(source), tmp_path / "out", "source.reader=spark", *more))
        return str(refused.value)

    assert f"source.path=file:{tmp_path}/no does not exist" in refusal(f"file:{tmp_path}/no")
    assert "cannot be read" in refusal("nosuch:/x")
    raw = small_log().write(tmp_path / "raw", compressed=True)
    whole = (raw / "sample_skeleton_test.csv.gz").read_bytes()
    (raw / "sample_skeleton_test.csv.gz").write_bytes(whole[:-12])
    assert "sample_skeleton_test.csv.gz cannot be read" in refusal(f"file:{raw}")
