"""The settings of jobs.preprocess: the tree behind conf/preprocess.yaml, one dataclass a group.

Each setting has its default and its comment here and nowhere else; `--help` prints both (jobs.entry).

Some settings determine the dataset: they stand in the manifest, and their hash says whether a finished dataset is the
one asked for. The others (`source.path`, `source.split_bytes`, the path of `vocabulary.base`, `spark`, `audit`, `out`,
`staging`, `overwrite`, `grace_hours`) say only how and where the job runs, and go to run.json.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import xxhash

from pipeline.config.events import EventsSettings
from pipeline.config.features import FeaturesSettings
from pipeline.config.recorded import NEWER, recorded
from pipeline.errors import InputError

_MISSING = "???"  # OmegaConf's mark of a value that the command line must give

QUARANTINE, KEEP, FAIL, WARN = "quarantine", "keep", "fail", "warn"
#: Doubts about a whole event log, not about one row.
DOUBTS = ("label_without_positive", "join_without_match", "empty_split", "actions_end", "shared_context")
WITHIN_CONTEXT, GLOBAL = "context", "global"
ALICCP, EVENTS = "aliccp", "events"
PYTHON, SPARK = "python", "spark"


@dataclass
class SourceSettings:
    """The group `source`: where the raw log is, and how it is cut into input splits."""

    name: str = "aliccp"
    path: str = _MISSING  # the raw log: a folder or an address (s3://…)
    split_bytes: int = 64 << 20  # of an input split; gzip files are one split each
    max_line_bytes: int = 16 << 20  # a longer line is quarantined (malformed_line): its first 64 KiB, and where it is
    reader: str = PYTHON  # spark: through Hadoop's file systems, for addresses that Python cannot open
    events: EventsSettings | None = None  # of source=events

    def __post_init__(self) -> None:
        if self.name not in (ALICCP, EVENTS):
            raise InputError(f"source.name={self.name} is not a known layout; choose {ALICCP} or {EVENTS}.")
        if (self.name == EVENTS) != (self.events is not None):
            raise InputError(f"source.name={self.name} and source.events do not go together; choose source=events.")
        if self.reader not in (PYTHON, SPARK):
            raise InputError(f"source.reader={self.reader} is not one of {PYTHON}, {SPARK}.")
        if self.events is not None and self.reader == SPARK:
            raise InputError(
                "source=events has no source.reader: give a directory that all workers see, or an address (s3://…), as "
                "source.path; what only Spark can open is a table of its catalogs (source.events.impressions.table)."
            )
        _at_least("source.split_bytes", self.split_bytes, 1)
        if not 1 << 10 <= self.max_line_bytes <= 1 << 29:
            raise InputError(
                f"source.max_line_bytes={self.max_line_bytes} is not between 1024 and {1 << 29}; the longest line of "
                "Ali-CCP has less than 100,000 bytes."
            )


@dataclass
class VocabularySettings:
    """The group `vocabulary`: which raw ids get an index of their own."""

    min_count: int = 2  # rarer ids share one row of the table; or features.fields.<name>.min_count
    max_ids: int | None = None  # of a field, the most frequent ones; null: no limit; or features.fields.<name>.max_ids
    base: str | None = None  # an earlier dataset: every index of it stays, and new ids follow
    max_age_days: float | None = field(
        default=None, metadata=NEWER
    )  # of an event log: ids of the base that no train split has had for longer are retired; null: none is

    def __post_init__(self) -> None:
        _at_least("vocabulary.min_count", self.min_count, 1)
        if self.max_age_days is not None and not 0 < self.max_age_days < math.inf:
            raise InputError(
                f"vocabulary.max_age_days={self.max_age_days} is not a number of days above 0; null retires no id."
            )
        if self.max_ids is not None:
            _at_least("vocabulary.max_ids", self.max_ids, 1)


@dataclass
class SplitSettings:
    """The group `split`: the share of the train contexts, by a hash of their key, that is held out for validation."""

    validation: float = 0.1  # of the train contexts, by a hash of their key; the log's own test split stays

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise InputError(f"split.validation={self.validation} is not a share in [0, 1); 0 trains on everything.")


@dataclass
class LabelsSettings:
    """The group `labels`: the actions after a click that make a daction; empty for a dataset without that label."""

    daction: list[str] = field(default_factory=list)  # actions after a click; []: no such label

    def __post_init__(self) -> None:
        if len(set(self.daction)) != len(self.daction):
            raise InputError(f"labels.daction={self.daction} names an action twice; name each once.")


@dataclass
class ChecksSettings:
    """The group `checks`: what happens to a line with each defect (DESIGN §3.4)."""

    malformed_line: str = QUARANTINE  # quarantine: rejected | fail: the job stops
    bad_label: str = QUARANTINE
    bad_context_key: str = QUARANTINE
    bad_feature: str = QUARANTINE
    feature_count_mismatch: str = KEEP  # keep: counted, and used
    conversion_without_click: str = KEEP  # as not converted: the label is click and conversion
    missing_context: str = QUARANTINE
    duplicate_impression: str = QUARANTINE  # the first in file order stays
    duplicate_context: str = QUARANTINE  # the first in file order stays
    missing_item: str = field(default=KEEP, metadata=NEWER)  # of an event log: no action can be matched with the row
    label_without_positive: str = field(default=WARN, metadata=NEWER)  # warn | fail, as the four below
    join_without_match: str = field(default=WARN, metadata=NEWER)  # no impression finds its row in a joined table
    empty_split: str = field(default=WARN, metadata=NEWER)  # a period of source.events.boundaries without impressions
    actions_end: str = field(default=WARN, metadata=NEWER)  # the latest action is far behind all others
    shared_context: str = field(default=WARN, metadata=NEWER)  # page views of several users
    duplicates: str = WITHIN_CONTEXT  # where an impression id may occur once: context | global (one more shuffle)

    def __post_init__(self) -> None:
        if self.duplicates not in (WITHIN_CONTEXT, GLOBAL):
            raise InputError(f"checks.duplicates={self.duplicates} is not one of {WITHIN_CONTEXT}, {GLOBAL}.")
        for entry in fields(self):
            if entry.name == "duplicates":
                continue
            may_keep = entry.name in ("feature_count_mismatch", "conversion_without_click", "missing_item")
            allowed = (
                (WARN, FAIL) if entry.name in DOUBTS else (KEEP, QUARANTINE, FAIL) if may_keep else (QUARANTINE, FAIL)
            )
            if (chosen := getattr(self, entry.name)) not in allowed:
                raise InputError(f"checks.{entry.name}={chosen} is not one of {', '.join(allowed)}.")


@dataclass
class RowsSettings:
    """The group `rows`: the size of context rows, row groups and files, in impressions."""

    max_impressions: int = 64  # of a context row; longer contexts are cut (docs/benchmarks-diary.md)
    impressions_per_row_group: int = 16384
    impressions_per_file: int = 1_000_000

    def __post_init__(self) -> None:
        for name in ("max_impressions", "impressions_per_row_group", "impressions_per_file"):
            _at_least(f"rows.{name}", getattr(self, name), 1)


@dataclass
class AuditSettings:
    """The group `audit`: the AUC from which a field counts as a leak, and the number of impressions of the check."""

    leakage_auc: float = 0.9  # the audit names a field that alone reaches this AUC, well above the others
    leakage_impressions: int = 200_000  # of train, and as many of validation, to find that

    def __post_init__(self) -> None:
        if not 0.5 < self.leakage_auc <= 1:
            raise InputError(
                f"audit.leakage_auc={self.leakage_auc} is not above 0.5 and at most 1; a coin has 0.5, a leak almost 1."
            )
        _at_least("audit.leakage_impressions", self.leakage_impressions, 1)


@dataclass
class SparkSettings:
    """The group `spark`: where Spark runs, and any further Spark setting by its own name."""

    master: str = _MISSING
    conf: dict[str, Any] = field(default_factory=dict)  # '+spark.conf={spark.driver.memory: 4g}'


@dataclass
class PreprocessSettings:
    """All settings of jobs.preprocess: conf/preprocess.yaml."""

    out: str = _MISSING  # the dataset
    overwrite: bool = False  # replace a dataset made with other settings
    grace_hours: float = 24.0  # files that no manifest names any more are kept so long for running readers
    staging: str = ""  # source=events with an address as out: a directory that all workers see
    seed: int = 1  # of the hash that divides the contexts over splits, files and row groups
    source: SourceSettings = field(default_factory=SourceSettings)
    features: FeaturesSettings = field(default_factory=FeaturesSettings)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    labels: LabelsSettings = field(default_factory=LabelsSettings)
    checks: ChecksSettings = field(default_factory=ChecksSettings)
    rows: RowsSettings = field(default_factory=RowsSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    spark: SparkSettings = field(default_factory=SparkSettings)

    def __post_init__(self) -> None:
        _at_least("grace_hours", self.grace_hours, 0)
        _at_least("seed", self.seed, 0)
        if self.vocabulary.max_age_days is not None and self.source.events is None:
            raise InputError(
                f"vocabulary.max_age_days={self.vocabulary.max_age_days} needs times, and source.name={self.source.name} has "
                "none; leave it out (null)."
            )

    def determining(self, base_xxh3: str | None) -> dict[str, Any]:
        """Return the settings that decide what the dataset holds; `base_xxh3` is the hash of the base's manifest."""
        everything = asdict(self)
        chosen = {name: everything[name] for name in ("features", "vocabulary", "split", "labels", "checks", "rows")}
        chosen["features"] = self.features.determining()
        chosen["checks"] = recorded(self.checks)
        chosen["vocabulary"] = recorded(self.vocabulary)
        chosen["vocabulary"]["base"] = base_xxh3
        if self.source.events is None:
            source: dict[str, Any] = {"name": self.source.name}
            if self.source.max_line_bytes != SourceSettings.max_line_bytes:  # manifests of earlier releases have none
                source["max_line_bytes"] = self.source.max_line_bytes
            return chosen | {"seed": self.seed, "source": source}
        del chosen["split"]  # an event log is split by time alone
        events = self.source.events.determining()
        return chosen | {"seed": self.seed, "source": {"name": self.source.name, "events": events}}

    def run_only(self) -> dict[str, Any]:
        """Return the settings that do not decide it, for run.json."""
        everything = asdict(self)
        source = {key: everything["source"][key] for key in ("path", "split_bytes", "reader")}
        chosen = {name: everything[name] for name in ("out", "overwrite", "grace_hours", "staging", "audit", "spark")}
        return chosen | {"source": source, "vocabulary": {"base": self.vocabulary.base}}


def settings_xxh3(determining: dict[str, Any]) -> str:
    """Hash the determining settings. The order of features counts, the order of other keys does not."""
    ordered = {"fields": list(determining["features"]["fields"]), "settings": determining}
    return xxhash.xxh3_64_hexdigest(json.dumps(ordered, sort_keys=True).encode())


def _at_least(key: str, value: float, least: int) -> None:
    if value < least:
        raise InputError(f"{key}={value} is below {least}; give {least} or more.")
