"""Read the input splits of an Ali-CCP log as chunks: parse each, apply the policies, decide the split of each line."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.aliccp import parse
from pipeline.aliccp.byte_ranges import RawLines, read_chunks
from pipeline.aliccp.field_probe import Names, names_of
from pipeline.chunks import line_columns
from pipeline.chunks.chunk import SCOPE_OF, Chunk
from pipeline.chunks.sources import SKELETON, InputSplit, SourceFile
from pipeline.config.preprocess import KEEP, PreprocessSettings
from pipeline.features.fields import Catalogue
from pipeline.kernels.hashing import TEST, TRAIN, splits_of


@dataclass(frozen=True)
class ChunkReader:
    """A reader of chunks: all that a task needs for it."""

    catalogue: Catalogue
    validation: float
    seed: int
    reject_mismatch: bool
    reject_without_click: bool
    max_line_bytes: int

    @classmethod
    def of(cls, catalogue: Catalogue, settings: PreprocessSettings) -> "ChunkReader":
        """Make the reader that `settings` describe."""
        checks = settings.checks
        return cls(
            catalogue,
            settings.split.validation,
            settings.seed,
            checks.feature_count_mismatch != KEEP,
            checks.conversion_without_click != KEEP,
            settings.source.max_line_bytes,
        )

    def read(self, split: InputSplit) -> Iterator[Chunk]:
        """Read the chunks of a split. Raises InputError if the file is cut off or gone."""
        names = names_of(self.catalogue, SCOPE_OF[split.source.table])
        for lines in read_chunks(split, self.max_line_bytes):
            yield self.parse_chunk(split.source, lines, names)

    def parse_chunk(self, source: SourceFile, lines: RawLines, names: Names) -> Chunk:
        """Parse lines of `source`; `names` are those of its table's scope."""
        if lines.long_xxh3 is not None:
            parsed = parse.reject_whole(lines.text)
        else:
            parsed = parse.parse(lines.text, source.table == SKELETON, names)
        parse.apply_policies(parsed.line_table, self.reject_mismatch, self.reject_without_click)
        is_test = source.period == "test"
        split_L = splits_of(parsed.line_table[:, line_columns.KEY], is_test, self.validation, self.seed)
        split_L[parsed.line_table[:, line_columns.HAS_KEY] == 0] = TEST if is_test else TRAIN
        return Chunk(source, lines.offset, lines.text, parsed, split_L)
