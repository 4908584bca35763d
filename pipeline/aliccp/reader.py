"""Read the input splits of an Ali-CCP log as chunks: parse each, apply the policies, decide the split of each line."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.aliccp import parse
from pipeline.aliccp.byte_ranges import read_chunks
from pipeline.aliccp.field_probe import Names, names_of
from pipeline.chunks import line_columns
from pipeline.chunks.chunk import SCOPE_OF, Chunk
from pipeline.chunks.sources import SKELETON, InputSplit, SourceFile
from pipeline.config.preprocess import KEEP, PreprocessSettings
from pipeline.errors import InputError
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
        )

    def read(self, split: InputSplit) -> Iterator[Chunk]:
        """Read the chunks of a split. Raises InputError if the file is cut off or gone."""
        names = names_of(self.catalogue, SCOPE_OF[split.source.table])
        try:
            for offset, text in read_chunks(split):
                yield self.parse_chunk(split.source, offset, text, names)
        except (OSError, EOFError) as error:
            raise InputError(
                f"{split.source.path} cannot be read to its end ({error}); repair or replace the file, then run again."
            ) from error

    def parse_chunk(self, source: SourceFile, offset: int, text: bytes, names: Names) -> Chunk:
        """Parse whole lines that begin at `offset` of `source`; `names` are those of its table's scope."""
        parsed = parse.parse(text, source.table == SKELETON, names)
        parse.apply_policies(parsed.line_table, self.reject_mismatch, self.reject_without_click)
        is_test = source.period == "test"
        split_L = splits_of(parsed.line_table[:, line_columns.KEY], is_test, self.validation, self.seed)
        split_L[parsed.line_table[:, line_columns.HAS_KEY] == 0] = TEST if is_test else TRAIN
        return Chunk(source, offset, text, parsed, split_L)
