"""The tables of an event log: their files and columns, as far as is known before Spark starts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import pyarrow as pa

from pipeline.chunks.sources import SourceFile
from pipeline.config.events import ActionsSettings, EventsSettings, ImpressionsSettings, JoinSettings
from pipeline.config.tables import TableSettings
from pipeline.events.parquet_rows import is_list
from pipeline.features.fields import Catalogue
from pipeline.spark.paths import escape_glob

ONE, MANY = "one", "many"
#: Columns that reading adds to those of a table: the text of a row that cannot be parsed, and the file of a row.
CORRUPT, FILE = "_corrupt", "_file"
#: The status of an impression's row; any other status is the reason why the row is rejected.
GOOD_STATUS, OUTSIDE_SPLIT, IMMATURE = "good", "outside_split", "immature"
EARLIER = "earlier"  # with source.events.day_by_day: the base has written it
#: The status of a row that is no reject and not written.
LEFT_OUT = (OUTSIDE_SPLIT, IMMATURE, EARLIER)


@dataclass(frozen=True)
class Table:
    """One table: its files, and the type of each column (CSV and JSON lines hold text)."""

    name: str  # as error messages call it: impressions, actions, joins[0]
    settings: TableSettings
    files: tuple[SourceFile, ...]
    columns: Mapping[str, pa.DataType]
    of_file: tuple[tuple[str, ...], ...] = ()  # the columns of each file, in its order; "" of one without a name
    partitions: tuple[Mapping[str, str | None], ...] = ()  # of each file, what its folders say of all its rows
    lacking: Mapping[str, str] = field(default_factory=dict)  # column → the first file without it
    clashes: Mapping[str, str] = field(default_factory=dict)  # column → which files have types that none holds exactly
    by_spark: bool = False  # Spark's own reader reads it
    estimated_bytes: int = 0  # of a table of Spark's catalogs, which has no files here
    parsed: str = ""  # where its rows are as Parquet, once they are read in tasks (parse_tables)

    @property
    def format(self) -> str:
        return self.settings.format

    @property
    def key(self) -> str:
        """The setting that names the table."""
        return f"source.events.{self.name}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The files as Spark takes them."""
        return tuple("file:" + escape_glob(file.path) for file in self.files)


@dataclass(frozen=True)
class EventLog:
    """The tables of an event log, checked as far as the heads of their files tell."""

    impressions: Table
    actions: Table
    joins: tuple[Table, ...]

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """Every file once, in the order of the manifest."""
        tables = (self.impressions, self.actions, *self.joins)
        return tuple({file.ordinal: file for table in tables for file in table.files}.values())

    @property
    def num_bytes(self) -> int:
        """The size of all tables, as far as it is known."""
        tables = (self.impressions, self.actions, *self.joins)
        return sum(file.bytes for file in self.files) + sum(table.estimated_bytes for table in tables)

    def with_needed(self, settings: EventsSettings, fields: Catalogue) -> Iterator[tuple["Table", Mapping[str, str]]]:
        """Yield each table with the columns that are read of it, and whether ONE or MANY values."""
        needed = needed_columns(settings, fields)
        yield self.impressions, _of_table(self.impressions, needed)
        yield self.actions, _of_table(self.actions, needed_action_columns(settings))
        for join, table in zip(settings.joins, self.joins, strict=True):
            yield table, _of_table(table, needed | dict.fromkeys(own_columns(join), ONE))

    def pin(self, settings: EventsSettings) -> EventsSettings:
        """Return the settings with the version at which each table is read."""
        joins = [cast(JoinSettings, table.settings) for table in self.joins]
        return replace(
            settings, impressions=cast(ImpressionsSettings, self.impressions.settings),
            actions=cast(ActionsSettings, self.actions.settings), joins=joins,
        )  # fmt: skip


def _of_table(table: Table, needed: Mapping[str, str]) -> dict[str, str]:
    return {name: needed[name] for name in table.columns if name in needed}


def weights_of(column: str) -> str:
    """Name the column with the weights of a weighted field's column, one for each of its values."""
    return f"{column}__weight"


def join_key(join: JoinSettings) -> list[str]:
    """Return the key columns of a joined table, by its own names."""
    return join.key or join.by


def own_columns(join: JoinSettings) -> list[str]:
    """Return the columns by which a joined table is joined: its key, and of a history its time."""
    return [*join_key(join), *([join.asof] if join.asof else [])]


def needed_columns(settings: EventsSettings, fields: Catalogue) -> dict[str, str]:
    """Return column → ONE or MANY values, for every column that is read of the impressions or a joined table."""
    entry = settings.impressions
    singles = [entry.timestamp, *entry.user, *entry.item, *entry.id, *entry.context, *entry.where]
    singles += [column for columns in entry.label_columns().values() for column in columns if column]
    singles += [column for join in settings.joins for column in join.by]
    needed = dict.fromkeys(singles, ONE)
    for wanted in fields.fields:
        needed.setdefault(wanted.raw_id, MANY if wanted.reads_lists else ONE)
        if wanted.weighted:
            needed.setdefault(weights_of(wanted.raw_id), MANY)
    return needed


def needed_action_columns(settings: EventsSettings) -> dict[str, str]:
    """Return column → ONE, for every column that is read of the actions."""
    entry = settings.actions
    columns = [entry.timestamp, *entry.user, *entry.item, entry.action, *entry.impression, *entry.where]
    return dict.fromkeys(columns, ONE)


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column of this type, or of lists of it, holds text (or nothing at all)."""
    kind = kind.value_type if is_list(kind) else kind
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )
