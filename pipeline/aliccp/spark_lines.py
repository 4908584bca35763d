"""Raw logs that Python cannot open (source.reader=spark): Spark's text reader gives tasks the lines, as bytes.

Spark says of a line only in which block of which file it was read. Where the first line of each block begins, the driver
finds by looking there; the lines of a block come in their order, so the place of each follows. A gzip file is one
block, and places are counted in what it holds.

    lines()                      file | block | text   one row a line, its line feed behind it
    LineReader.chunks()          the text buffer of an Arrow batch is a chunk as it stands
    PickTasks.pick(), .write()   the lines that grouping rejected, found by their places in one more reading
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from pipeline.aliccp.field_probe import names_of
from pipeline.aliccp.reader import ChunkReader
from pipeline.chunks.chunk import SCOPE_OF, Chunk
from pipeline.chunks.sources import InputSplit, SourceFile
from pipeline.spark.hashes import xxhash64_of_text
from pipeline.spark.paths import escape_glob
from pipeline.spark.running import Batches

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Place = tuple[int, int]  # (id of the file, first byte of the block)

_BYTE_ORDER_MARK = (
    b"\xef\xbb\xbf"  # Hadoop swallows it at the head of a file, where it would make the first line a bad one
)


@dataclass(frozen=True)
class LineReader:
    """Makes chunks of the rows of `lines`, as ChunkReader does of files."""

    reader: ChunkReader
    sources: Mapping[int, SourceFile]  # by the id of the file
    starts: Mapping[Place, int]  # where the first line of each block begins
    marked: frozenset[int] = field(default_factory=frozenset)  # files with a byte order mark

    def chunks(self, batches: Batches) -> Iterator[Chunk]:
        """Parsed chunks."""
        names = {table: names_of(self.reader.catalogue, scope) for table, scope in SCOPE_OF.items()}
        for source, offset, text in self.texts(batches):
            yield self.reader.parsed(source, offset, text, names[source.table])

    def texts(self, batches: Batches) -> Iterator[tuple[SourceFile, int, bytes]]:
        """(file, offset, whole lines), the lines of a block in their order."""
        next_offset: dict[Place, int] = {}
        for batch in batches:
            for piece in _one_block_each(batch):
                place = (piece.column("file")[0].as_py(), piece.column("block")[0].as_py())
                text = _text_of(piece.column("text"))
                if place not in next_offset and place[1] == 0 and place[0] in self.marked:
                    text = _BYTE_ORDER_MARK + text
                offset = next_offset.get(place, self.starts[place])
                next_offset[place] = offset + len(text)
                yield self.sources[place[0]], offset, text


def lines(spark: "SparkSession", sources: Sequence[SourceFile], split_bytes: int) -> "DataFrame":
    """One row a line of `sources`: file, block, text. Each block in a partition of its own, its lines in their order."""
    from pyspark.sql import functions as F

    # Blocks that the driver can foresee: no two files in a partition, and no other size than this.
    for name in ("maxPartitionBytes", "openCostInBytes"):
        spark.conf.set(f"spark.sql.files.{name}", str(split_bytes))
    frame = spark.read.option("lineSep", "\n").text([escape_glob(source.path) for source in sources])
    return frame.select(
        F.xxhash64("_metadata.file_path").alias("file"),
        F.col("_metadata.file_block_start").alias("block"),
        # The text reader takes bytes as they are, and no cast looks at them.
        F.concat(F.col("value").cast("binary"), F.lit(bytearray(b"\n"))).alias("text"),
    )


def line_reader(frame: "DataFrame", reader: ChunkReader, splits: Sequence[InputSplit]) -> LineReader:
    """The reader of `frame`, which is `lines`; looks at the beginning of every block, on the driver."""
    by_path = {_one_slash(split.source.path): split.source for split in splits}
    sources: dict[int, SourceFile] = {}
    marked: set[int] = set()
    starts: dict[Place, int] = {}
    for address in frame.inputFiles():
        # Spark percent-encodes an address in its own way, so what it says is decoded, and not what we say encoded.
        source = by_path[_one_slash(unquote(address))]
        begins = _line_starts(source, [split.start for split in splits if split.source == source and split.start])
        # A row may spell its file with one slash where the list of files has three.
        for number in map(xxhash64_of_text, {address, _one_slash(address)}):
            sources[number] = source
            starts |= {(number, block): offset for block, offset in begins.items()}
            if _head(source) == _BYTE_ORDER_MARK:
                marked.add(number)
    return LineReader(reader, sources, starts, frozenset(marked))


def _line_starts(source: SourceFile, blocks: Sequence[int]) -> dict[int, int]:
    """Find where the first line of each block begins. Hadoop's rule: a line that begins at its first byte is the one before's."""
    begins = {0: 0}
    if blocks:
        with source.open() as stream:
            for block in blocks:
                stream.seek(block)
                stream.readline()
                begins[block] = stream.tell()
    return begins


def _one_slash(address: str) -> str:
    return re.sub(r"\Afile:/+", "file:/", address)


def _head(source: SourceFile) -> bytes:
    with source.open() as stream:
        return stream.read(len(_BYTE_ORDER_MARK))


def _one_block_each(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if not batch.num_rows:
        return
    file_R, block_R = batch.column("file").to_numpy(), batch.column("block").to_numpy()
    changes = np.flatnonzero((file_R[1:] != file_R[:-1]) | (block_R[1:] != block_R[:-1])) + 1
    bounds = [0, *changes.tolist(), batch.num_rows]
    for start, stop in pairwise(bounds):
        yield batch.slice(start, stop - start)


def _text_of(column: pa.BinaryArray) -> bytes:
    """The values one behind the other, which is how they lie in the buffer."""
    _, offsets, data = column.buffers()
    bound_R = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    text: bytes = data[bound_R[0] : bound_R[-1]].to_pybytes()
    return text
