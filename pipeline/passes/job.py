"""The job: the settings of a run of jobs.preprocess, the raw files that they name, and what the first pass counts there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.aliccp.byte_ranges import input_splits
from pipeline.aliccp.find import find_sources
from pipeline.aliccp.reader import ChunkReader
from pipeline.aliccp.spark_lines import LineReader
from pipeline.audit.tally import Tally
from pipeline.chunks.sources import ACTIONS, InputSplit, SourceFile
from pipeline.config.preprocess import SPARK, PreprocessSettings
from pipeline.dataset.manifest import Source
from pipeline.errors import InputError
from pipeline.events.reader import EventReader
from pipeline.events.tables import EventLog, find_log
from pipeline.features.base_vocabulary import Base
from pipeline.features.fields import Catalogue, catalogue
from pipeline.features.moments import Moments
from pipeline.features.vocabulary import Vocabulary
from pipeline.passes.duplicates import Repeats
from pipeline.spark.session import start_spark
from pipeline.storage.local_store import LocalStore
from pipeline.storage.store import Store, store_of

if TYPE_CHECKING:
    from pipeline.events.label import Labelled


@dataclass(frozen=True)
class Counted:
    """What the first pass found."""

    tally: Tally
    vocabularies: list[Vocabulary]  # of each field in catalogue order; without ids for a numeric or a hashed one
    moments: Moments  # of the numeric fields in catalogue order
    repeats: Repeats  # impression ids that stand in several contexts


@dataclass(frozen=True)
class Job:
    """What every step needs."""

    settings: PreprocessSettings
    catalogue: Catalogue
    sources: tuple[SourceFile, ...]  # as the manifest lists them
    out: Store
    events: EventLog | None = None  # of source=events
    base: Base | None = None  # whose vocabularies are extended
    labelled: "Labelled | None" = None  # what source=events makes of it, once it has
    lines: LineReader | None = None  # of source.reader=spark, once Spark has looked at the files

    @classmethod
    def of(cls, settings: PreprocessSettings) -> "Job":
        """The job, with its raw files found and looked at."""
        out = store_of(settings.out)
        if settings.source.events and not settings.staging and not isinstance(out, LocalStore):
            raise InputError(
                f"out={settings.out} is an address, and source=events puts labelled impressions by in between; "
                "give a directory that all workers see as staging=DIRECTORY."
            )
        events = settings.source.events
        vocabulary = settings.vocabulary
        fields = catalogue(settings.features, vocabulary.min_count, events is not None, vocabulary.max_ids)
        base = Base.of(vocabulary.base, fields.fields) if vocabulary.base else None
        if vocabulary.base and store_of(vocabulary.base).location == out.location:
            raise InputError(f"vocabulary.base={vocabulary.base} is out itself; a dataset extends another one.")
        if events is None:
            by_spark = settings.source.reader == SPARK
            if by_spark:
                start_spark(settings.spark)  # nothing else can look at the files
            found = find_sources(settings.source.path, bool(settings.labels.daction), by_spark)
            return cls(settings, fields, tuple(found), out, base=base)
        events.checked(settings.labels.daction)
        log = find_log(settings.source.path, events, fields)
        return cls(settings, fields, log.files, out, log, base)

    @property
    def logs(self) -> tuple[SourceFile, ...]:
        """What the passes read, by ordinal."""
        return self.labelled.sources if self.labelled else self.sources

    @property
    def splits(self) -> tuple[InputSplit, ...]:
        """The input splits of the log itself; the action log is read by the driver."""
        if self.labelled:
            return self.labelled.splits
        logs = [source for source in self.sources if source.table != ACTIONS]
        return tuple(input_splits(logs, self.settings.source.split_bytes))

    @property
    def reader(self) -> ChunkReader | EventReader | LineReader:
        """How the log is read."""
        if self.labelled:
            return self.labelled.reader
        if self.lines:
            return self.lines
        return ChunkReader.of(self.catalogue, self.settings)

    @property
    def with_daction(self) -> bool:
        """Whether the dataset has that label."""
        return bool(self.settings.labels.daction)

    @property
    def determining(self) -> dict[str, Any]:
        """The settings that decide what the dataset holds, with the content of the base."""
        return self.settings.determining(self.base.manifest_xxh3 if self.base else None)

    @property
    def manifest_sources(self) -> tuple[Source, ...]:
        """The raw files as the manifest lists them."""
        return tuple(Source(source.name, source.bytes) for source in self.sources)
