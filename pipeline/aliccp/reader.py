"""Read the input splits of an Ali-CCP log as chunks: parse each, apply the policies, decide the split of each line."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from pipeline.aliccp import parse
from pipeline.aliccp.byte_ranges import CHUNK_BYTES, RawLines, read_chunks
from pipeline.aliccp.field_probe import Names, names_of
from pipeline.chunks import line_columns
from pipeline.chunks.chunk import SCOPE_OF, Chunk
from pipeline.chunks.fingerprints import text_of_fingerprint
from pipeline.chunks.sources import SKELETON, InputSplit, SourceFile, reading_source
from pipeline.config.preprocess import KEEP, PreprocessSettings
from pipeline.features.fields import Catalogue
from pipeline.kernels.hashing import TEST, TRAIN, order_hashes, splits_of
from pipeline.kernels.line_fingerprint import line_fingerprint


@dataclass(frozen=True)
class ChunkReader:
    """A reader of chunks: all that a task needs for it."""

    catalogue: Catalogue
    validation: float
    seed: int
    reject_mismatch: bool
    reject_without_click: bool
    max_line_bytes: int
    needs_labels: bool = True  # an impression without labels is a bad line

    @classmethod
    def of(cls, catalogue: Catalogue, settings: PreprocessSettings, needs_labels: bool = True) -> "ChunkReader":
        """Make the reader that `settings` describe."""
        checks = settings.checks
        return cls(
            catalogue,
            settings.split.validation,
            settings.seed,
            checks.feature_count_mismatch != KEEP,
            checks.conversion_without_click != KEEP,
            settings.source.max_line_bytes,
            needs_labels,
        )

    def read(self, split: InputSplit) -> Iterator[Chunk]:
        """Read the chunks of a split. Raises InputError if the file is cut off or gone."""
        names = names_of(self.catalogue, SCOPE_OF[split.source.table])
        for lines in read_chunks(split, self.max_line_bytes):
            yield self.parse_chunk(split.source, split.start, lines, names)

    def parse_chunk(self, source: SourceFile, split_start: int, lines: RawLines, names: Names) -> Chunk:
        """Parse lines of an input split of `source`; `names` are those of its table's scope."""
        if lines.long_xxh3 is not None:
            parsed = parse.reject_whole(lines.text)
        else:
            parsed = parse.parse(lines.text, source.table == SKELETON, names, self.needs_labels)
        parse.apply_policies(parsed.line_table, self.reject_mismatch, self.reject_without_click)
        is_test = source.period == "test"
        split_L = splits_of(parsed.line_table[:, line_columns.KEY], is_test, self.validation, self.seed)
        split_L[parsed.line_table[:, line_columns.HAS_KEY] == 0] = TEST if is_test else TRAIN
        fingerprint = fingerprint_of_lines(lines, parsed.line_table[:, line_columns.START])
        return Chunk(source, lines.offset, lines.text, parsed, split_L, None, split_start, fingerprint)


def fingerprint_of_lines(lines: RawLines, start_L: np.ndarray) -> int:
    """Return the fingerprint of lines that begin at `start_L`; of a line that is too long, its hash and its offset's."""
    if lines.long_xxh3 is not None:
        return int(order_hashes(np.array([lines.offset]), 0)[0]) ^ lines.long_xxh3
    return line_fingerprint(lines.text, np.ascontiguousarray(start_L), lines.offset)


def fingerprint_of_file(source: SourceFile, max_line_bytes: int) -> str:
    """Read a file of the log, and return its fingerprint as the manifest has it.

    Of lines, that of the passes; of any other table, the xxh3 of its uncompressed bytes.
    """
    if source.table in SCOPE_OF:
        total = 0
        for lines in read_chunks(InputSplit(source, 0, source.bytes), max_line_bytes):
            is_end = np.frombuffer(lines.text, np.uint8) == ord("\n")
            total += fingerprint_of_lines(lines, np.flatnonzero(np.r_[True, is_end[:-1]]))
        return text_of_fingerprint(total)
    hashed = xxhash.xxh3_64()
    with reading_source(source) as stream:
        while block := stream.read(CHUNK_BYTES):
            hashed.update(block)
    return hashed.hexdigest()
