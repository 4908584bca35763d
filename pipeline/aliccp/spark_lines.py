"""Read raw logs that Python cannot open (source.reader=spark): Spark's text reader gives tasks the lines, as bytes.

Spark tells only the file and the block of a line, not its offset. The driver looks up where the first line of each
block begins. The lines of a block come in their order, so the offset of each follows. A gzip file is one block, and
its offsets are those of the uncompressed text.

    lines()                      file | block | text   one row a line, which ends in its line feed
    LineReader.chunks()          the text buffer of an Arrow batch is a chunk without a copy
    PickTasks.pick(), .write()   the lines that grouping rejected, found by their offsets in one more reading
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from pipeline.aliccp.byte_ranges import cut_long_lines, first_line_at
from pipeline.aliccp.field_probe import names_of
from pipeline.aliccp.reader import ChunkReader
from pipeline.chunks.chunk import SCOPE_OF, Chunk
from pipeline.chunks.fingerprints import has_changed
from pipeline.chunks.sources import InputSplit, SourceFile, reading_source
from pipeline.errors import InputError
from pipeline.spark.hashes import xxhash64_of_text
from pipeline.spark.paths import escape_glob
from pipeline.spark.running import Batches

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Block = tuple[int, int]  # (id of the file, first byte of the block)

# Hadoop drops it at the head of a file, where it makes the first line a bad one.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineReader:
    """A reader of chunks from the rows of `lines`, as ChunkReader is of files."""

    reader: ChunkReader
    sources: Mapping[int, SourceFile]  # by the id of the file
    starts: Mapping[Block, int]  # offset of the first line of each block
    with_mark: frozenset[int] = field(default_factory=frozenset)  # files with a byte order mark

    def chunks(self, batches: Batches) -> Iterator[Chunk]:
        """Parse the lines of `batches` as chunks."""
        names = {table: names_of(self.reader.catalogue, scope) for table, scope in SCOPE_OF.items()}
        for source, start, offset, text in self.texts(batches):
            for whole in cut_long_lines(offset, text, self.reader.max_line_bytes):
                yield self.reader.parse_chunk(source, start, whole, names[source.table])

    def texts(self, batches: Batches) -> Iterator[tuple[SourceFile, int, int, bytes]]:
        """Yield (file, start of the block, offset, whole lines), the lines of a block in their order."""
        next_offset: dict[Block, int] = {}
        for batch in batches:
            for piece in _split_by_block(batch):
                block = (piece.column("file")[0].as_py(), piece.column("block")[0].as_py())
                text = _text_of(piece.column("text"))
                if block not in next_offset and block[1] == 0 and block[0] in self.with_mark:
                    text = _BYTE_ORDER_MARK + text
                source = self.sources[block[0]]
                if block not in self.starts:  # no line began there when the job began
                    raise InputError(has_changed(source))
                offset = next_offset.get(block, self.starts[block])
                next_offset[block] = offset + len(text)
                yield source, block[1], offset, text


def lines(spark: "SparkSession", sources: Sequence[SourceFile], split_bytes: int) -> "DataFrame":
    """Read `sources` as a table of one row a line: file, block, text.

    Each block is a partition, its lines in their order.
    """
    from pyspark.sql import functions as F

    # The driver foresees the blocks: no two files share a partition, and every block has this size.
    for name in ("maxPartitionBytes", "openCostInBytes"):
        spark.conf.set(f"spark.sql.files.{name}", str(split_bytes))
    frame = spark.read.option("lineSep", "\n").text([escape_glob(source.path) for source in sources])
    return frame.select(
        F.xxhash64("_metadata.file_path").alias("file"),
        F.col("_metadata.file_block_start").alias("block"),
        # The text reader takes bytes as they are, and no cast validates them.
        F.concat(F.col("value").cast("binary"), F.lit(bytearray(b"\n"))).alias("text"),
    )


def line_reader(frame: "DataFrame", reader: ChunkReader, splits: Sequence[InputSplit]) -> LineReader:
    """Make the reader of `frame`, the table of `lines`. The driver opens every block to find its first line."""
    by_path = {_with_one_slash(split.source.path): split.source for split in splits}
    sources: dict[int, SourceFile] = {}
    with_mark: set[int] = set()
    starts: dict[Block, int] = {}
    for address in frame.inputFiles():
        # Spark percent-encodes an address in its own way, so decode its address instead of encoding ours.
        source = by_path[_with_one_slash(unquote(address))]
        begins = _find_line_starts([split for split in splits if split.source == source])
        # A row may spell its file with one slash where the list of files has three.
        for number in map(xxhash64_of_text, {address, _with_one_slash(address)}):
            sources[number] = source
            starts |= {(number, block): offset for block, offset in begins.items()}
            if _read_head(source) == _BYTE_ORDER_MARK:
                with_mark.add(number)
    return LineReader(reader, sources, starts, frozenset(with_mark))


def _find_line_starts(splits: Sequence[InputSplit]) -> dict[int, int]:
    """Find the offset of the first line of each block of a file; a block in which no line begins has none.

    Hadoop's rule: a line that begins at its first byte belongs to the block before, one at its end to it.
    """
    begins = {0: 0}
    if len(splits) > 1:
        with reading_source(splits[0].source) as stream:
            for split in splits[1:]:
                if (offset := first_line_at(stream, split.start, split.start + split.length + 1)) is not None:
                    begins[split.start] = offset
    return begins


def _with_one_slash(address: str) -> str:
    return re.sub(r"\Afile:/+", "file:/", address)


def _read_head(source: SourceFile) -> bytes:
    with reading_source(source) as stream:
        return stream.read(len(_BYTE_ORDER_MARK))


def _split_by_block(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if not batch.num_rows:
        return
    file_R, block_R = batch.column("file").to_numpy(), batch.column("block").to_numpy()
    changes = np.flatnonzero((file_R[1:] != file_R[:-1]) | (block_R[1:] != block_R[:-1])) + 1
    bounds = [0, *changes.tolist(), batch.num_rows]
    for start, stop in pairwise(bounds):
        yield batch.slice(start, stop - start)


def _text_of(column: pa.BinaryArray) -> bytes:
    """Return the values one after the other, as they lie in the buffer."""
    _, offsets, data = column.buffers()
    bound_R = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    text: bytes = data[bound_R[0] : bound_R[-1]].to_pybytes()
    return text
