"""The job: the settings of a run of jobs.preprocess and the raw files that they name."""

import os
from dataclasses import dataclass, replace
from typing import Any

from pipeline.aliccp.find import find_sources
from pipeline.chunks.sources import SourceFile
from pipeline.config.preprocess import SPARK, PreprocessSettings
from pipeline.errors import InputError
from pipeline.events.day_by_day import LeftByBase
from pipeline.events.find import find_log
from pipeline.events.tables import EventLog
from pipeline.features.base_vocabulary import Base
from pipeline.features.fields import Catalogue, catalogue
from pipeline.locations import is_address
from pipeline.spark.session import start_spark
from pipeline.storage.local_store import LocalStore
from pipeline.storage.store import Store, store_of


@dataclass(frozen=True)
class Job:
    """The settings, catalogue, raw files and output store of one run, as known before Spark starts."""

    settings: PreprocessSettings
    catalogue: Catalogue
    sources: tuple[SourceFile, ...]  # as the manifest lists them
    out: Store
    events: EventLog | None = None  # the tables of source=events
    base: Base | None = None  # whose vocabularies are extended
    left_by_base: LeftByBase | None = None  # with source.events.day_by_day: where the base has stopped

    @classmethod
    def of(cls, settings: PreprocessSettings) -> "Job":
        """Find the raw files that `settings` name and check their heads. Raises InputError for what is wrong there."""
        out = store_of(settings.out)
        check_apart(settings.source.path, settings.out)
        if settings.source.events and not settings.staging and not isinstance(out, LocalStore):
            raise InputError(
                f"out={settings.out} is an address, and source=events stores labelled impressions between its stages; "
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
                start_spark(settings.spark)  # nothing else can read the files
            found = find_sources(settings.source.path, bool(settings.labels.daction), by_spark)
            return cls(settings, fields, tuple(found), out, base=base)
        kinds = events.label_actions(settings.labels.daction)
        with_actions = bool(events.named_actions(kinds))
        log = find_log(settings.source.path, events, fields, with_actions, lambda: start_spark(settings.spark))
        left = LeftByBase.of(events, base.manifest.audit if base else None) if events.day_by_day else None
        return cls(pin_versions(settings, log), fields, log.files, out, log, base, left)

    @property
    def with_daction(self) -> bool:
        """Whether the dataset has the label daction."""
        return bool(self.settings.labels.daction)

    @property
    def determining(self) -> dict[str, Any]:
        """The settings that decide what the dataset holds, with the base's checksum."""
        return self.settings.determining(self.base.manifest_xxh3 if self.base else None)


def check_apart(source: str, out: str) -> None:
    """Raise InputError if the dataset would lie among the raw files: a later job would find it there."""
    places = [
        place.rstrip("/") if is_address(place) else os.path.realpath(os.path.expanduser(place))
        for place in (source.removeprefix("file://"), out.removeprefix("file://"))
    ]
    if places[1] == places[0] or places[1].startswith(f"{places[0]}/"):
        raise InputError(
            f"out={out} lies inside source.path={source}, among the raw files; choose a folder beside it, such as "
            f"{places[0]}-dataset."
        )


def pin_versions(settings: PreprocessSettings, log: EventLog) -> PreprocessSettings:
    """Return the settings with the version at which each table of the log is read, and print it."""
    assert settings.source.events is not None
    for table in (log.impressions, log.actions, *log.joins):
        if table.settings.as_of is not None:
            print(
                f"{table.name}: {table.settings.table or table.settings.path} as of {table.settings.as_of}", flush=True
            )
    return replace(settings, source=replace(settings.source, events=log.pin(settings.source.events)))
